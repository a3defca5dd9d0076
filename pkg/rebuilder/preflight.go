package rebuilder

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// part is one partition to load: where it ends was pinned when the rebuild began,
// so that every attempt loads the same.
type part struct {
	category   eventstore.Category
	partition  int
	source     Source // topic or eventstore
	topicID    [16]byte
	start, end int64   // offsets; end is exclusive
	sent       []int64 // by place in the partition: what the topic must hold below end
	heads      []int64 // what the event table held after end was read

	loaded bool
	merged bool
	rows   int64
	digest int64
	meter  *partMeter
}

// slots returns how many slots lie in the partition.
func (p *part) slots() int { return p.category.Slots / p.category.Partitions }

// place returns where a slot stands among those of its partition.
func (p *part) place(slot int) int { return slot / p.category.Partitions }

// slot is the inverse of place.
func (p *part) slot(place int) int { return place*p.category.Partitions + p.partition }

// events returns how many events the event table held of the partition.
func (p *part) events() (n int64) {
	for _, head := range p.heads {
		n += head
	}
	return n
}

// Incomplete says that a source does not hold the whole history.
type Incomplete struct {
	Source    Source
	Topic     string // or the category, from the event store
	Partition int
	Slot      int
	// First is the first seq of the slot that is missing.
	First    int64
	Category string
	Why      string
}

func (e *Incomplete) Error() string {
	where, help := fmt.Sprintf("topic %s partition %d", e.Topic, e.Partition), "; --source=eventstore reads the history from Postgres, --source=auto where it has to"
	if e.Source == FromEventStore {
		where, help = "the event table", "; nothing else holds these events: restore them, then run again"
	}
	return fmt.Sprintf("the history is incomplete: %s: %s; slot %d, first missing seq %d (%s/%d/%d)%s", where, e.Why, e.Slot, e.First, e.Category, e.Slot, e.First, help)
}

// preflight checks what is cheap, pins what is to be loaded, and makes the
// version.
func (j *job) preflight(ctx context.Context) error {
	if err := j.checkServer(ctx); err != nil {
		return err
	}
	parts, err := j.pin(ctx, j.rebuild.Options.Source)
	if err != nil {
		return err
	}
	if err := j.checkRoom(ctx, len(parts)); err != nil {
		return err
	}
	return j.advance(ctx, StepLoad, func(tx pgx.Tx) error {
		var sources []readmodel.Source
		for _, c := range j.categories {
			sources = append(sources, readmodel.Source{Category: c.Name, Generation: c.Generation, Slots: c.Slots, Partitions: c.Partitions})
		}
		v, err := readmodel.CreateBuilding(ctx, tx, j.plan, sources)
		if err != nil {
			return err
		}
		if j.plan.Shared() {
			if err := createParts(ctx, tx, v); err != nil {
				return err
			}
		}
		return j.keepParts(ctx, tx, v, parts)
	})
}

// keepParts writes down what was pinned, and which version the rebuild is about.
func (j *job) keepParts(ctx context.Context, tx pgx.Tx, v readmodel.Version, parts []*part) error {
	for _, p := range parts {
		if _, err := tx.Exec(ctx, `insert into refold.rebuild_partition (rebuild, category, generation, partition, source, topic_id, start_offset, end_offset, sent, heads)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, j.id, p.category.Name, p.category.Generation, p.partition, p.source, p.topicID, p.start, p.end, p.sent, p.heads); err != nil {
			return fmt.Errorf("pinning a partition: %w", err)
		}
	}
	if _, err := tx.Exec(ctx, `update refold.rebuild set version = $2 where id = $1`, j.id, v.Number); err != nil {
		return fmt.Errorf("noting version %d: %w", v.Number, err)
	}
	j.version, j.rebuild.Version = v, v.Number
	j.setParts(parts)
	return nil
}

func createParts(ctx context.Context, tx pgx.Tx, v readmodel.Version) error {
	if _, err := tx.Exec(ctx, `create table `+partsTable(v)+` (category text collate "C", partition integer, key text collate "C", data jsonb not null, state jsonb)`); err != nil {
		return fmt.Errorf("creating the table of parts: %w", err)
	}
	return nil
}

// partsTable is where the parts of shared rows wait to be merged.
func partsTable(v readmodel.Version) string {
	return fmt.Sprintf("refold.parts_%s_v%d", v.Projection, v.Number)
}

// checkServer makes sure that rows are hashed here as they are on the server.
func (j *job) checkServer(ctx context.Context) error {
	const probe = "refold rebuild probe"
	var theirs int64
	if err := j.pool.QueryRow(ctx, `select hashtextextended($1, 0)`, probe).Scan(&theirs); err != nil {
		return fmt.Errorf("asking the server for a hash: %w", err)
	}
	if ours := int64(hash([]byte(probe))); ours != theirs {
		return fmt.Errorf("the server hashes text in another way (it is big-endian?), so what is written could not be checked: %d here, %d there", ours, theirs)
	}
	return nil
}

// pin reads what there is to load: of each partition what the relay has had
// acknowledged, then the end of the topic, then the heads of the event table. In
// this order the topic must hold the first below the second, and the third is at
// least what it holds there.
func (j *job) pin(ctx context.Context, source Source) ([]*part, error) {
	client, err := j.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	var parts []*part
	for _, c := range j.categories {
		list, err := j.pinCategory(ctx, admin, c, source)
		if err != nil {
			return nil, err
		}
		parts = append(parts, list...)
	}
	return parts, nil
}

func (r *Rebuilder) client(more ...kgo.Opt) (*kgo.Client, error) {
	cfg := r.cfg.Kafka
	cfg.ClientID = r.cfg.Prefix + "-rebuild-" + r.cfg.Owner
	options, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(options, more...)...)
	if err != nil {
		return nil, fmt.Errorf("making a Kafka client: %w", err)
	}
	return client, nil
}

func (r *Rebuilder) pinCategory(ctx context.Context, admin *kadm.Client, c eventstore.Category, source Source) ([]*part, error) {
	parts := make([]*part, c.Partitions)
	for p := range parts {
		parts[p] = &part{category: c, partition: p, source: FromTopic, sent: make([]int64, c.Slots/c.Partitions), heads: make([]int64, c.Slots/c.Partitions)}
		if source == FromEventStore {
			parts[p].source = FromEventStore
		}
	}
	if err := r.readSent(ctx, c, parts); err != nil {
		return nil, err
	}
	if err := readOffsets(ctx, admin, c, parts); err != nil {
		return nil, err
	}
	heads, err := r.events.Heads(ctx, c)
	if err != nil {
		return nil, err
	}
	for slot, head := range heads {
		p := parts[slot%c.Partitions]
		p.heads[p.place(slot)] = head
	}
	for _, p := range parts {
		if source == FromEither && (p.start > 0 || p.end == 0 && slices.Max(p.heads) > 0) {
			p.source = FromEventStore
		}
	}
	return parts, nil
}

func (r *Rebuilder) readSent(ctx context.Context, c eventstore.Category, parts []*part) error {
	rows, err := r.pool.Query(ctx, `select partition, slots, seqs from refold.relay_partition where category = $1 and generation = $2`, c.ID, c.Generation)
	if err != nil {
		return fmt.Errorf("reading what was relayed of %s: %w", c.Name, err)
	}
	var partition int
	var slots []int16
	var seqs []int64
	_, err = pgx.ForEachRow(rows, []any{&partition, &slots, &seqs}, func() error {
		for i, slot := range slots {
			if partition < len(parts) {
				parts[partition].sent[parts[partition].place(int(slot))] = seqs[i]
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading what was relayed of %s: %w", c.Name, err)
	}
	return nil
}

func readOffsets(ctx context.Context, admin *kadm.Client, c eventstore.Category, parts []*part) error {
	topic, err := kafka.ReadTopic(ctx, admin, c.Topic)
	if err != nil {
		return err
	}
	if topic.Partitions != c.Partitions {
		return fmt.Errorf("the topic %s has %d partitions, the category %s has %d", c.Topic, topic.Partitions, c.Name, c.Partitions)
	}
	starts, err := admin.ListStartOffsets(ctx, c.Topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("listing the starts of %s: %w", c.Topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, c.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("listing the ends of %s: %w", c.Topic, err)
	}
	for _, p := range parts {
		start, _ := starts.Lookup(c.Topic, int32(p.partition))
		end, ok := ends.Lookup(c.Topic, int32(p.partition))
		if !ok {
			return fmt.Errorf("the end of %s/%d is not known", c.Topic, p.partition)
		}
		p.topicID, p.start, p.end = topic.ID, start.Offset, end.Offset
	}
	return nil
}

// setParts makes the meter for what there is to load.
func (j *job) setParts(parts []*part) {
	j.parts = parts
	meters := make([]*partMeter, len(parts))
	for i, p := range parts {
		p.meter = &partMeter{category: p.category.Name, partition: p.partition, total: p.end - p.start}
		if p.source == FromEventStore {
			p.meter.total = p.events()
		}
		p.meter.source.Store(p.source)
		if p.loaded {
			p.meter.loaded.Store(true)
			p.meter.reach(p.meter.total)
		}
		meters[i] = p.meter
	}
	j.meter.mu.Lock()
	defer j.meter.mu.Unlock()
	j.meter.parts = meters
}

// readParts reads what was pinned and what of it is loaded. The source of what
// is not loaded yet follows the options of this run.
func (j *job) readParts(ctx context.Context) error {
	rows, err := j.pool.Query(ctx, `select category, partition, source, topic_id, start_offset, end_offset, sent, heads, loaded is not null, merged is not null,
		coalesce(rows, 0), coalesce(digest, 0) from refold.rebuild_partition where rebuild = $1 order by 1, 2`, j.id)
	if err != nil {
		return fmt.Errorf("reading what is loaded: %w", err)
	}
	var parts []*part
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		p := &part{}
		var category string
		if err := row.Scan(&category, &p.partition, &p.source, &p.topicID, &p.start, &p.end, &p.sent, &p.heads, &p.loaded, &p.merged, &p.rows, &p.digest); err != nil {
			return struct{}{}, err
		}
		i := slices.IndexFunc(j.categories, func(c eventstore.Category) bool { return c.Name == category })
		if i < 0 {
			return struct{}{}, fmt.Errorf("the category %s is not one of the definition", category)
		}
		p.category = j.categories[i]
		switch source := j.rebuild.Options.Source; {
		case p.loaded, j.rebuild.Step == StepFill:
		case source == FromTopic, source == FromEventStore:
			p.source = source
		}
		parts = append(parts, p)
		return struct{}{}, nil
	})
	if err != nil {
		return fmt.Errorf("reading what is loaded: %w", err)
	}
	j.setParts(parts)
	return nil
}
