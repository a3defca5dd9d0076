package eventstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/registry"
)

// History says of the events of one type and version in the log whether they can
// be read as the newest version.
type History struct {
	Category string `json:"category"`
	// Type is the name under which the events are stored.
	Type string `json:"type"`
	// SchemaVersion is 0 for a schema that is none of the contracts'.
	SchemaVersion int   `json:"schemaVersion"`
	Events        int64 `json:"events"`
	Failed        int64 `json:"failed"`
	// Position and Error are those of the first event that failed.
	Position string `json:"position,omitempty"`
	Error    string `json:"error,omitempty"`
}

// sampleRun is how many events are read at one place of a slot: places cost, their
// neighbours do not.
const sampleRun = 32

// CheckHistory reads events of the log as the newest versions of contracts have
// them: all with a sample of 0, else about so many, in runs that are spread evenly
// over every slot, the first and the last events among them. It returns a line for
// each category, type and version, in this order. The error is that of the
// database or the registry; events that cannot be read are in the lines.
func CheckHistory(ctx context.Context, pool *pgxpool.Pool, schemas registry.Schemas, contracts *avro.Contracts, sample int) ([]History, error) {
	categories, err := ReadCategories(ctx, pool)
	if err != nil {
		return nil, err
	}
	h := history{reader: NewReader(pool), schemas: schemas, contracts: contracts, lines: make(map[historyKey]*History)}
	slots := 0
	for _, c := range categories {
		slots += c.Slots
	}
	for _, c := range categories {
		heads, err := h.reader.Heads(ctx, c)
		if err != nil {
			return nil, err
		}
		for slot, head := range heads {
			if err := h.checkSlot(ctx, c, slot, head, runs(head, sample, slots)); err != nil {
				return nil, err
			}
		}
	}
	lines := make([]History, 0, len(h.lines))
	for _, line := range h.lines {
		lines = append(lines, *line)
	}
	slices.SortFunc(lines, func(a, b History) int {
		return cmp.Or(cmp.Compare(a.Category, b.Category), cmp.Compare(a.Type, b.Type), a.SchemaVersion-b.SchemaVersion)
	})
	return lines, nil
}

// runs returns how many runs of a slot are read; 0 for all of it.
func runs(head int64, sample, slots int) int64 {
	if sample == 0 {
		return 0
	}
	n := max(2, int64(sample/max(slots, 1)/sampleRun))
	if n*sampleRun >= head {
		return 0
	}
	return n
}

type historyKey struct {
	category, typ string
	version       int
}

type history struct {
	reader    *Reader
	schemas   registry.Schemas
	contracts *avro.Contracts
	lines     map[historyKey]*History
}

func (h *history) checkSlot(ctx context.Context, c Category, slot int, head, runs int64) error {
	if runs > 0 {
		for i := range runs {
			if _, err := h.checkRun(ctx, c, slot, (head-sampleRun)*i/(runs-1), sampleRun); err != nil {
				return err
			}
		}
		return nil
	}
	for after := int64(0); after < head; {
		last, err := h.checkRun(ctx, c, slot, after, 1000)
		if err != nil {
			return err
		}
		if last == 0 { // archived, or written since
			return nil
		}
		after = last
	}
	return nil
}

// checkRun reads events behind a seq and returns the last one's.
func (h *history) checkRun(ctx context.Context, c Category, slot int, after int64, limit int) (last int64, _ error) {
	events, err := h.reader.SlotEvents(ctx, c, slot, after, limit)
	if err != nil {
		return 0, err
	}
	for i := range events {
		if err := h.check(ctx, &events[i]); err != nil {
			return 0, err
		}
		last = events[i].Seq
	}
	return last, nil
}

func (h *history) check(ctx context.Context, e *event.Event) error {
	version, failure, err := h.read(ctx, e)
	if err != nil {
		return err
	}
	key := historyKey{e.Category, e.Type, version}
	line := h.lines[key]
	if line == nil {
		line = &History{Category: e.Category, Type: e.Type, SchemaVersion: version}
		h.lines[key] = line
	}
	line.Events++
	if failure == nil {
		return nil
	}
	if line.Failed++; line.Failed == 1 {
		line.Position, line.Error = e.Position().String(), failure.Error()
	}
	return nil
}

// read reads one event; failure says why it cannot be.
func (h *history) read(ctx context.Context, e *event.Event) (version int, failure, err error) {
	writer, body, err := registry.WriterOf(ctx, h.schemas, e.Value)
	if errors.Is(err, registry.ErrUnknownSchema) {
		return 0, err, nil
	}
	if err != nil {
		return 0, nil, err
	}
	category, ok := h.contracts.Category(e.Category)
	if !ok {
		return 0, fmt.Errorf("the contracts have no category %s", e.Category), nil
	}
	typ, ok := category.Type(e.Type)
	if !ok {
		return 0, fmt.Errorf("the contracts have no event type %s", e.Type), nil
	}
	version = typ.VersionOf(writer)
	upgrade, err := typ.Upgrade(writer)
	if err != nil {
		return version, err, nil //nolint:nilerr // it is the event's failure
	}
	newest, err := upgrade.Append(nil, body)
	if err == nil {
		err = typ.Newest().Scan(newest)
	}
	return version, err, nil
}
