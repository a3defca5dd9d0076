package rebuilder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/readmodel"
)

// ErrNotVerified says that a verification found something; the report says what.
var ErrNotVerified = errors.New("the version is not what the log makes")

// verify checks the version and lets it be promoted when all is well, or when
// somebody has given a reason to do so nevertheless.
func (j *job) verify(ctx context.Context) error {
	if j.rebuild.Kind == Fresh {
		j.feed(ctx)
	}
	report, err := j.verifyVersion(ctx, j.version, j.rebuild.Options.Verify)
	if err != nil {
		return err
	}
	if !report.OK {
		report.Forced = j.rebuild.Options.Force
	}
	j.rebuild.Report = report
	if !report.OK && report.Forced == "" {
		if err := j.write(ctx, "report", func(tx pgx.Tx) error { return j.keepReport(ctx, tx, report) }); err != nil {
			return err
		}
		var names []string
		failed := report.Failed()
		for _, c := range failed {
			names = append(names, c.Name+": "+c.Detail)
		}
		if len(failed) == 1 && failed[0].Name == "difference" { // the log spoke for this version
			return fmt.Errorf("%w, or the one that serves is not, which `rebuild verify %s` tells: %s; `rebuild run --force REASON` promotes this one nevertheless, `rebuild cancel %s` drops it",
				ErrNotVerified, j.name, names[0], j.name)
		}
		return fmt.Errorf("%w: %s; `rebuild run --force REASON` promotes it nevertheless, `rebuild cancel %s` drops it", ErrNotVerified, strings.Join(names, "; "), j.name)
	}
	return j.advance(ctx, StepPromote, func(tx pgx.Tx) error {
		if err := j.keepReport(ctx, tx, report); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `update refold.projection_version set state = 'ready' where projection = $1 and version = $2 and state = 'building'`, j.name, j.version.Number); err != nil {
			return fmt.Errorf("making version %d ready: %w", j.version.Number, err)
		}
		if _, err := tx.Exec(ctx, `drop table if exists `+partsTable(j.version)); err != nil {
			return fmt.Errorf("dropping the parts: %w", err)
		}
		return readmodel.Announce(ctx, tx)
	})
}

func (j *job) keepReport(ctx context.Context, tx pgx.Tx, report *Report) error {
	_, err := tx.Exec(ctx, `update refold.rebuild set report = $2, updated = clock_timestamp() where id = $1`, j.id, mustJSON(report))
	return err
}

// Verify verifies a version at any time, 0 for the one that serves, and keeps the
// report with the version's rebuild if there is one. It changes nothing else.
func (r *Rebuilder) Verify(ctx context.Context, name string, number int, how Verification) (*Report, error) {
	if how == "" {
		how = VerifyFull
	}
	var v readmodel.Version
	var err error
	if number == 0 {
		v, err = r.catalogue.Active(ctx, name)
	} else {
		v, err = r.findVersion(ctx, name, number)
	}
	if err != nil {
		return nil, err
	}
	options, err := Options{Verify: how}.withDefaults()
	if err != nil {
		return nil, err
	}
	j := r.newJob(name, options.Rate)
	j.version, j.rebuild.Options = v, options
	if j.plan, err = r.plans.Plan(v); err != nil {
		return nil, err
	}
	if j.categories, err = r.categories(ctx, j.plan); err != nil {
		return nil, err
	}
	report, err := j.verifyVersion(ctx, v, how)
	if err != nil {
		return nil, err
	}
	if _, err := r.pool.Exec(ctx, `update refold.rebuild set report = $3 where projection = $1 and version = $2`, name, v.Number, mustJSON(report)); err != nil {
		return nil, fmt.Errorf("keeping the report: %w", err)
	}
	return report, nil
}

// verifyVersion makes all checks. Those that look at rows do so in one snapshot, so
// that rows and progress are of one moment whoever feeds the version meanwhile; what
// takes long at a low rate, folding the log, is done outside of it.
func (j *job) verifyVersion(ctx context.Context, v readmodel.Version, how Verification) (*Report, error) {
	conn, err := j.connect(ctx, j.name)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	report, err := j.checks(ctx, conn, v, how)
	for errors.Is(err, errDecided) {
		j.log.Info("the log is folded anew", "err", err)
		report, err = j.checks(ctx, conn, v, how)
	}
	if err != nil {
		return nil, fmt.Errorf("verifying %s version %d: %w", v.Projection, v.Number, err)
	}
	return report, nil
}

func (j *job) checks(ctx context.Context, conn *pgx.Conn, v readmodel.Version, how Verification) (*Report, error) {
	report := &Report{Projection: v.Projection, Version: v.Number, At: time.Now().UTC(), OK: true}
	s := &snapshot{job: j, conn: conn, version: v}
	foldsAll, err := j.foldsAll(ctx, v, how)
	if err != nil {
		return nil, err
	}
	if foldsAll {
		if s.folded, err = j.foldLog(ctx, conn, v); err != nil {
			return nil, err
		}
	}
	if err := j.stopAt("before snapshot"); err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, `set work_mem = '64MB'`); err != nil {
		return nil, err
	}
	if err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		s.tx = tx
		return s.checks(ctx, report, how)
	}); err != nil {
		return nil, err
	}
	if how == VerifyDeterministic {
		return report, report.make(ctx, j.deterministic)
	}
	return report, nil
}

// foldsAll tells whether the whole log is folded for a verification: shared rows
// have no streams of their own that could be a sample.
func (j *job) foldsAll(ctx context.Context, v readmodel.Version, how Verification) (bool, error) {
	if how != VerifySample || !j.plan.Shared() {
		return how != VerifySample, nil
	}
	now, err := heads(ctx, j.pool, v.Projection, v.Number)
	return now.events() <= sampleBound || j.rebuild.Kind == Fields, err // whose parts were not compared
}

// snapshot is one version at one moment.
type snapshot struct {
	*job
	conn    *pgx.Conn
	tx      pgx.Tx
	version readmodel.Version
	heads   positions
	folded  *folded // nil unless the whole log was folded
}

// checks makes the checks that look at rows.
func (s *snapshot) checks(ctx context.Context, report *Report, how Verification) (err error) {
	if s.heads, err = heads(ctx, s.tx, s.version.Projection, s.version.Number); err != nil {
		return err
	}
	if s.folded != nil {
		if err := s.folded.holds(ctx, s.tx); err != nil {
			return err
		}
	}
	rows := s.sample
	if how != VerifySample {
		rows = s.full
	}
	for _, check := range []func(context.Context) (Check, error){s.definition, s.coverage, s.parked, rows, s.difference} {
		if err := report.make(ctx, check); err != nil {
			return err
		}
	}
	return nil
}

// definition checks that the version was built by the deployed definition.
func (s *snapshot) definition(context.Context) (Check, error) {
	c := Check{Name: "definition", OK: true, Detail: "the version was built by the deployed definition"}
	deployed, err := s.compile(s.version.Projection)
	switch {
	case errors.Is(err, ErrNoDefinition):
		c.OK, c.Detail = false, "no definition of this name is deployed"
	case err != nil:
		return c, err
	case s.version.Completing:
		c.Detail = "the version was built by the definition that queries go by; fields of another one are being filled"
	case deployed.Hash() != s.version.PlanHash:
		c.OK, c.Detail = false, fmt.Sprintf("the version was built by another definition (plan %s) than the deployed one (plan %s): a rebuild is due", s.version.PlanHash, deployed.Hash())
	}
	return c, nil
}

const coverageSQL = `select u.slot, u.seq, u.id = e.id from unnest($2::int[], $3::bigint[], $4::uuid[]) u (slot, seq, id)
	left join refold.event e on e.category = $1 and e.slot = u.slot and e.seq = u.seq where u.seq > 0 and u.id is distinct from e.id order by 1 limit 1`

// coverage checks that progress ends at events that the log has, in every slot,
// and that it accounts for as many as the log holds up to there. Between them
// each record was checked to follow the one before it.
func (s *snapshot) coverage(ctx context.Context) (Check, error) {
	c := Check{Name: "coverage", OK: true}
	var events, slots int64
	for _, category := range s.categories {
		rows, err := s.tx.Query(ctx, `select array_agg(slot::int order by slot), array_agg(seq order by slot), array_agg(id order by slot) from (select slot, seq, id, row_number() over (partition by slot order by seq desc) r
			from refold.progress, unnest(slots, seqs, last_ids) u (slot, seq, id) where projection = $1 and version = $2 and category = $3) p where r = 1`,
			s.version.Projection, s.version.Number, category.Name)
		if err != nil {
			return c, err
		}
		var places []int32
		var seqs []int64
		var ids [][16]byte
		if _, err := pgx.ForEachRow(rows, []any{&places, &seqs, &ids}, func() error { return nil }); err != nil {
			return c, err
		}
		var slot int
		var seq int64
		var same *bool
		err = s.tx.QueryRow(ctx, coverageSQL, category.ID, places, seqs, ids).Scan(&slot, &seq, &same)
		if err == nil {
			c.OK, c.Detail = false, fmt.Sprintf("the version has applied %s/%d/%d, which the log does not have, or has as another event", category.Name, slot, seq)
			return c, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return c, err
		}
		held, err := s.count(ctx, category.ID, places, seqs)
		if err != nil {
			return c, err
		}
		for i := range seqs {
			slots++
			events += seqs[i]
			if held[int(places[i])] != seqs[i] {
				c.OK, c.Detail = false, fmt.Sprintf("%d events of %s/%d are applied, the log holds %d up to there", seqs[i], category.Name, places[i], held[int(places[i])])
				return c, nil
			}
		}
	}
	c.Detail = fmt.Sprintf("%d events of %d slots, as many as the log holds up to there", events, slots)
	return c, nil
}

// count counts the events of each slot up to a seq, archived ones included.
func (s *snapshot) count(ctx context.Context, category int16, slots []int32, seqs []int64) (map[int]int64, error) {
	rows, err := s.tx.Query(ctx, `select u.slot, s.floor + (select count(*) from refold.event e where e.category = $1 and e.slot = u.slot and e.seq <= u.seq)
		from unnest($2::int[], $3::bigint[]) u (slot, seq) join refold.slot s on s.category = $1 and s.slot = u.slot`, category, slots, seqs)
	if err != nil {
		return nil, err
	}
	held := make(map[int]int64)
	var slot int
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&slot, &n}, func() error {
		held[slot] = n
		return nil
	})
	return held, err
}

// parked compares which streams are parked with the version that serves.
func (s *snapshot) parked(ctx context.Context) (Check, error) {
	c := Check{Name: "parked", OK: true}
	rows, err := s.tx.Query(ctx, `select n.category || '/' || n.stream, n.error, a.stream is null from refold.parked_stream n
		left join refold.projection p on p.name = n.projection
		left join refold.parked_stream a on a.projection = n.projection and a.version = p.active and a.category = n.category and a.stream = n.stream
		where n.projection = $1 and n.version = $2 order by 3 desc, 1`, s.version.Projection, s.version.Number)
	if err != nil {
		return c, err
	}
	var stream, why string
	var isNew bool
	total, more := 0, 0
	if _, err := pgx.ForEachRow(rows, []any{&stream, &why, &isNew}, func() error {
		total++
		if isNew {
			more++
			if len(c.Samples) < maxSamples {
				c.Samples = append(c.Samples, Sample{Key: stream, What: "parked", Got: why})
			}
		}
		return nil
	}); err != nil {
		return c, err
	}
	c.OK = more == 0
	c.Detail = fmt.Sprintf("%d streams are parked, %d of them are not in the version that serves", total, more)
	return c, nil
}

const maxSamples = 10
