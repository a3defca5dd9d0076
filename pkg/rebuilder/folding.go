package rebuilder

import (
	"context"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// lookUpTimeout bounds asking for one schema or one event.
const lookUpTimeout = 10 * time.Second

// fold folds one event, as the engine would: a stream whose event cannot be
// applied is parked, unless it is only the record of the topic that is damaged.
func (l *loader) fold(e *event.Event) error {
	if len(l.skip) > 0 && l.skip.Skips(e) {
		if l.pass == 1 {
			l.counts.skipped++
		}
		return nil
	}
	if len(l.parked) > 0 {
		if parked := l.parked[e.Stream]; parked != nil && e.Seq >= parked.from {
			l.park(parked, e)
			return nil
		}
	}
	why, err := l.apply(e)
	if err != nil || why == "" {
		return err
	}
	original, err := l.original(e)
	if err != nil {
		return err
	}
	if original != nil {
		e = original
		if why, err = l.apply(e); err != nil || why == "" {
			return err
		}
	}
	return l.parkFirst(e, why)
}

// original returns the event as the event table holds it, when the record of the
// topic is another; nil when it is not.
func (l *loader) original(e *event.Event) (*event.Event, error) {
	if l.part.source != FromTopic {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookUpTimeout)
	defer cancel()
	o, err := engine.Original(ctx, l.job.events, l.part.category, e)
	if o != nil && l.pass == 1 {
		l.job.log.Warn("a record is damaged; its event is taken from the event table", "topic", l.part.category.Topic, "partition", l.part.partition, "event_id", e.ID, "position", e.Position().String())
	}
	return o, err
}

// apply folds an event into those of its rows that are of this pass, and says why
// that is impossible; empty when it was done.
func (l *loader) apply(e *event.Event) (why string, err error) {
	plan := l.job.plan
	if !plan.Uses(e.Category, e.Type) {
		l.filter()
		return "", nil
	}
	if !plan.Shared() && !l.inRange(bytesOf(e.Stream)) {
		return "", nil
	}
	writer, err := l.schemas.of(e)
	if err != nil {
		return "", err
	}
	outcome, poison := l.folder.Begin(e, writer)
	if poison != nil {
		return poison.Error(), nil
	}
	if outcome == projection.Filtered {
		l.filter()
		return "", nil
	}
	for key := range l.folder.Keys() {
		if err := l.applyTo(key); err != nil { // of a row of one stream, which is the only one then
			return err.Error(), nil
		}
	}
	return "", nil
}

// filter counts an event that concerns no row.
func (l *loader) filter() {
	if l.pass == 1 {
		l.counts.filtered++
	}
}

// applyTo folds the event that the folder has into one of its rows. The error says
// why that is impossible.
func (l *loader) applyTo(key []byte) error {
	row := l.rows[string(key)]
	if row != nil {
		return l.folder.Apply(row)
	}
	if !l.inRange(key) {
		return nil
	}
	row = l.job.plan.NewRow()
	if err := l.folder.Apply(row); err != nil {
		return err
	}
	l.rows[strings.Clone(textOf(key))] = row
	l.size += rowSize(len(key), row)
	if l.size > l.limit {
		l.shrink()
	}
	return nil
}

// rowSize estimates the memory of a row with its place in the map.
func rowSize(key int, row *projection.Row) int64 { return int64(row.Size() + key + 96) }

// shrink measures the rows anew, and gives up half of the pass's range if they
// are too large indeed.
func (l *loader) shrink() {
	measure := func() {
		l.size = 0
		for key, row := range l.rows {
			l.size += rowSize(len(key), row)
		}
	}
	measure()
	for l.size > l.limit*9/10 && l.high-l.low > 1 {
		l.high = l.low + (l.high-l.low+1)/2
		for key := range l.rows {
			if !l.inRange(bytesOf(key)) {
				delete(l.rows, key)
			}
		}
		kept := make(map[string]*projection.Row, len(l.rows)) // a map gives no memory back
		for key, row := range l.rows {
			kept[key] = row
		}
		l.rows = kept
		measure()
	}
}

// schemaCache keeps the schemas that the registry has answered with. It is not safe
// for concurrent use.
type schemaCache struct {
	registry registry.Schemas
	known    map[int]*avro.Schema
}

func newSchemaCache(registry registry.Schemas) *schemaCache {
	return &schemaCache{registry, make(map[int]*avro.Schema)}
}

// of returns the schema that an event was written with; nil where there is none.
func (c *schemaCache) of(e *event.Event) (*avro.Schema, error) {
	return registry.WriterIfKnown(context.Background(), c, e.Value)
}

// SchemaByID asks the registry once for each schema.
func (c *schemaCache) SchemaByID(ctx context.Context, id int) (*avro.Schema, error) {
	if schema := c.known[id]; schema != nil {
		return schema, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	schema, err := c.registry.SchemaByID(ctx, id)
	if err == nil {
		c.known[id] = schema
	}
	return schema, err
}
