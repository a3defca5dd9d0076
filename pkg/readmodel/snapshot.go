package readmodel

import (
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/postgres"
)

// snapshot is what one statement has seen of a version besides rows.
type snapshot struct {
	state    string // of the version, empty when it is not in the catalogue
	revision string // of its entry there
	clean    bool   // no event of the version is parked
	progress *Progress
	parked   []event.Position            // of the marks that were asked about
	log      map[event.Position]logPlace // likewise
	begun    uint64                      // the clock of validity before the statement
	requests *carriedOut                 // before the statement, see [standing]
	at       time.Time                   // before the statement
}

// States of a version.
const (
	stateActive  = "active"
	stateRetired = "retired"
)

// branchSQL tells runs of servers and histories apart as [postgres.Incarnation]
// does, without the cluster's identifier, which costs the reading of a file. On a
// standby it is null.
const branchSQL = `case when not pg_catalog.pg_is_in_recovery() then array[` + postgres.TimelineSQL + `, (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint] end`

// snapshotSQL reads a version's state, its progress and whether anything of it is
// parked, as rows of one shape: kind, text, slots, seqs, key, data, ids.
const snapshotSQL = `select 'v', v.state, case when exists (select from refold.parked_event p where p.projection = $1 and p.version = $2) then '{1}'::smallint[] end, ` + branchSQL + `, v.xmin::text, null::jsonb, null::uuid[]
		from refold.projection_version v where v.projection = $1 and v.version = $2
	union all select 'p', category, slots, seqs, null, null, last_ids from refold.progress where projection = $1 and version = $2 and phase <> 'loading'`

// marksSQL adds, of the given positions, which are parked and what the log has
// there and at the version's head of the slot. It stands apart because most queries
// ask about none, and the server, which expects ten, plans it anew each time.
const marksSQL = `
	union all select 'x', p.category, array[p.slot], array[p.seq], null, null, null from unnest($3::text[], $4::smallint[], $5::bigint[]) u (category, slot, seq)
		join refold.parked_event p on p.projection = $1 and p.version = $2 and p.category = u.category and p.slot = u.slot and p.seq = u.seq
	union all select 'l', u.category, array[u.slot], array[u.seq], null, null, array[
			coalesce((select e.id from refold.event e where e.category = c.id and e.slot = u.slot and e.seq = u.seq), '00000000-0000-0000-0000-000000000000'),
			coalesce((select e.id from refold.event e where e.category = c.id and e.slot = u.slot and e.seq = (select max(p.seqs[array_position(p.slots, u.slot)]) from refold.progress p
				where p.projection = $1 and p.version = $2 and p.category = u.category and p.phase <> 'loading')), '00000000-0000-0000-0000-000000000000')]
		from unnest($3::text[], $4::smallint[], $5::bigint[]) u (category, slot, seq) join refold.category c on c.name = u.category`

// begin is to be called before reading what a snapshot shows.
func (v *validity) begin() *snapshot {
	return &snapshot{begun: v.now(), requests: v.requests.Load(), at: time.Now()}
}

// queue adds the reading of the snapshot to a pipeline.
func (s *snapshot) queue(trip *pgx.Batch, v Version, marks []event.Mark) {
	sql, args := snapshotSQL, []any{v.Projection, v.Number}
	if len(marks) > 0 {
		categories, slots, seqs := markColumns(marks)
		sql, args = sql+marksSQL, append(args, categories, slots, seqs)
	}
	trip.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		return s.scan(rows, func(string, []byte) {})
	})
}

func markColumns(marks []event.Mark) (categories []string, slots []int16, seqs []int64) {
	for _, m := range marks {
		categories, slots, seqs = append(categories, m.Category), append(slots, int16(m.Slot)), append(seqs, m.Seq)
	}
	return categories, slots, seqs
}

// scan takes in what snapshotSQL and marksSQL have read, and hands rows on. Rows are most of it
// and are taken as they came; they get memory of their own.
func (s *snapshot) scan(rows pgx.Rows, row func(key string, data []byte)) error {
	defer rows.Close()
	var b progressBuilder
	var kind, text string
	var key *string
	var slots []int16
	var seqs []int64
	var ids [][16]byte
	for rows.Next() {
		if raw := rows.RawValues(); raw[0][0] == 'r' {
			row(string(raw[4]), jsonOf(raw[5]))
			continue
		}
		if err := rows.Scan(&kind, &text, &slots, &seqs, &key, nil, &ids); err != nil {
			return err
		}
		switch kind {
		case "v":
			s.state, s.clean, s.revision, b.p.branch = text, slots == nil, *key, branchOf(seqs)
		case "p":
			b.add(text, slots, seqs, ids)
		case "x":
			s.parked = append(s.parked, event.Position{Category: text, Slot: int(slots[0]), Seq: seqs[0]})
		case "l":
			if s.log == nil {
				s.log = make(map[event.Position]logPlace)
			}
			s.log[event.Position{Category: text, Slot: int(slots[0]), Seq: seqs[0]}] = logPlace{event.ID(ids[0]).Sum(), event.ID(ids[1]).Sum()}
		}
	}
	s.progress = &b.p
	return rows.Err()
}

// jsonOf returns a copy of a jsonb value as it came: as text, or in the binary
// form, which is the text behind a version number.
func jsonOf(raw []byte) []byte {
	if len(raw) > 0 && raw[0] == 1 {
		raw = raw[1:]
	}
	return slices.Clone(raw)
}

// serves tells whether the model was the one to answer from in the snapshot.
func (s *snapshot) serves(m *Model) bool { return s.state == stateActive && s.revision == m.revision }

// follows tells whether the snapshot is at least as new as another of the same
// version. Where neither has more progress it is the clock that tells.
func (s *snapshot) follows(other *snapshot) bool {
	if !s.progress.contains(other.progress) {
		return false
	}
	return s.begun >= other.begun || !other.progress.contains(s.progress)
}

// judge tells whether rows of the snapshot, in a version's leaf, contain a token.
func (s *snapshot) judge(token event.Token, leaf string, v *validity) error {
	if !s.progress.Covers(token) {
		return ErrNotCaughtUp
	}
	for i := range token {
		m := &token[i]
		if m.Written && slices.Contains(s.parked, m.Position) {
			return ErrParked
		}
		if v.known(leaf, s, m) {
			continue
		}
		if err := v.prove(leaf, s, m); err != nil {
			return err
		}
	}
	return nil
}
