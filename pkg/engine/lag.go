package engine

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// lagEvery is how often lag is measured.
const lagEvery = 2 * time.Second

// watchLag measures how far the fed versions are behind the log, and tells Kafka
// the offsets of the active ones under the name of a group without members, which
// dashboards and autoscalers watch across promotions.
func (e *Engine) watchLag(ctx context.Context) {
	groups := memberless{engine: e, sent: make(map[partitionID]int64)}
	defer groups.close()
	for ctx.Err() == nil {
		if err := e.measureLag(ctx, &groups); err != nil && ctx.Err() == nil {
			e.log.Debug("measuring lag", "err", err)
		}
		wait(ctx, lagEvery)
	}
}

// lagSQL compares the last seqs of fed versions with the heads of the log: one
// index probe for each slot.
const lagSQL = `select p.projection, p.version, p.category, p.generation, p.partition, c.topic, p.next_offset, v.state = 'active',
		coalesce((select sum(greatest(coalesce((select e.seq from refold.event e where e.category = c.id and e.slot = u.slot order by e.seq desc limit 1), 0) - u.seq, 0))
			from unnest(p.slots, p.seqs) u (slot, seq)), 0)::bigint,
		coalesce((select extract(epoch from clock_timestamp() - min((select e.recorded from refold.event e where e.category = c.id and e.slot = u.slot and e.seq = u.seq + 1)))
			from unnest(p.slots, p.seqs) u (slot, seq)), 0)::float8
	from refold.progress p join refold.projection_version v on v.projection = p.projection and v.version = p.version
		join refold.category c on c.name = p.category
	where v.state in ('active', 'ready') and p.phase = 'live' and (p.projection, p.version) in (select * from unnest($1::text[], $2::int[]))`

// lagRow is how far a version is in one partition.
type lagRow struct {
	id      partitionID
	topic   string
	next    int64
	active  bool
	events  int64
	seconds float64
}

func (e *Engine) measureLag(ctx context.Context, groups *memberless) error {
	fed, owned := make(map[string]int), make(map[partitionID]bool)
	var names []string
	var numbers []int
	e.each(func(w *worker) {
		v := w.feed.Version
		if key := fmt.Sprint(v.Projection, "/", v.Number); fed[key] == 0 {
			fed[key] = 1
			names, numbers = append(names, v.Projection), append(numbers, v.Number)
		}
		if w.shown().claimed {
			owned[partitionID{v.Projection, v.Number, w.category.Name, w.category.Generation, w.partition}] = true
		}
	})
	var list []lagRow
	if len(names) > 0 {
		rows, err := e.pool.Query(ctx, lagSQL, names, numbers)
		if err != nil {
			return err
		}
		var r lagRow
		if _, err = pgx.ForEachRow(rows, []any{&r.id.projection, &r.id.version, &r.id.category, &r.id.generation, &r.id.partition, &r.topic, &r.next, &r.active, &r.events, &r.seconds}, func() error {
			list = append(list, r)
			return nil
		}); err != nil {
			return err
		}
	}
	var events, seconds []reading
	for _, r := range list {
		labels := []string{r.id.projection, strconv.Itoa(r.id.version), r.id.category, strconv.Itoa(r.id.partition)}
		events = append(events, reading{labels, float64(r.events)})
		seconds = append(seconds, reading{labels, max(0, r.seconds)})
	}
	e.metrics.lagEvents.set(events)
	e.metrics.lagSeconds.set(seconds)
	return groups.tell(ctx, list, owned)
}

// memberless commits offsets to groups that nobody is a member of.
type memberless struct {
	engine *Engine
	client *kgo.Client
	sent   map[partitionID]int64
}

// tell commits the offsets of active versions, those of partitions that this
// process owns.
func (m *memberless) tell(ctx context.Context, list []lagRow, owned map[partitionID]bool) error {
	groups := make(map[string]kadm.Offsets)
	fresh := make(map[partitionID]int64)
	for _, r := range list {
		if sent, known := m.sent[r.id]; !r.active || !owned[r.id] || known && sent == r.next {
			continue
		}
		name := m.engine.cfg.Prefix + "." + r.id.projection
		if groups[name] == nil {
			groups[name] = make(kadm.Offsets)
		}
		offsets := groups[name]
		offsets.AddOffset(r.topic, int32(r.id.partition), r.next, -1)
		fresh[r.id] = r.next
	}
	if len(groups) == 0 {
		return nil
	}
	if m.client == nil {
		options, err := m.engine.cfg.Kafka.Options()
		if err != nil {
			return err
		}
		if m.client, err = kgo.NewClient(options...); err != nil {
			return err
		}
	}
	admin := kadm.NewClient(m.client)
	for name, offsets := range groups {
		if err := admin.CommitAllOffsets(ctx, name, offsets); err != nil {
			return fmt.Errorf("committing the offsets of %s: %w", name, err)
		}
	}
	for id, next := range fresh {
		m.sent[id] = next
	}
	return nil
}

func (m *memberless) close() {
	if m.client != nil {
		m.client.Close()
	}
}
