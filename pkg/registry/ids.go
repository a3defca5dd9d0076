package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/avro"
)

// ids finds what schema ids stand for in the table of all that were given out or
// used, whoever gave them. It is safe for concurrent use.
type ids struct {
	pool *pgxpool.Pool

	mu   sync.RWMutex
	byID map[int]*avro.Schema // ids never change their meaning, so this only grows
}

func newIDs(pool *pgxpool.Pool) ids { return ids{pool: pool, byID: make(map[int]*avro.Schema)} }

// SchemaByID returns the schema with an id, or [ErrUnknownSchema].
func (t *ids) SchemaByID(ctx context.Context, id int) (*avro.Schema, error) {
	t.mu.RLock()
	known := t.byID[id]
	t.mu.RUnlock()
	if known != nil {
		return known, nil
	}
	source, err := t.source(ctx, id)
	if err != nil {
		return nil, err
	}
	schema, err := avro.Parse([]byte(source))
	if err != nil {
		return nil, fmt.Errorf("parsing schema %d: %w", id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[id] = schema
	return schema, nil
}

func (t *ids) source(ctx context.Context, id int) (source string, err error) {
	err = t.pool.QueryRow(ctx, `select source from refold.schema where id = $1`, id).Scan(&source)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("%w: %d", ErrUnknownSchema, id)
	}
	if err != nil {
		return "", fmt.Errorf("reading schema %d: %w", id, err)
	}
	return source, nil
}

// Clash says that the external registry has another schema under an id than the one
// that events of the log were written with.
type Clash struct {
	ID int
	// Known is the record that the log has under the id, Given what the registry says.
	Known, Given string
}

func (e *Clash) Error() string {
	return fmt.Sprintf("the schema registry says that schema %d is %s, and for the log it is %s: an id stands for one schema for ever", e.ID, e.Given, e.Known)
}

// pin makes schema what an id stands for from now on. It is a [*Clash] when the id
// stands for another one.
func (t *ids) pin(ctx context.Context, id int, schema *avro.Schema) error {
	fingerprint := schema.Fingerprint()
	_, err := t.pool.Exec(ctx, `insert into refold.schema (id, fingerprint, source) values ($1, $2, $3) on conflict (id) do nothing`, id, fingerprint[:], schema.String())
	if err != nil {
		return fmt.Errorf("keeping schema %d: %w", id, err)
	}
	known, err := t.SchemaByID(ctx, id)
	if err == nil && known.Fingerprint() != fingerprint {
		return clash(id, known, schema)
	}
	return err
}

func clash(id int, known, given *avro.Schema) *Clash {
	c := &Clash{ID: id, Known: known.FullName(), Given: given.FullName()}
	if c.Known == c.Given {
		c.Known, c.Given = known.String(), given.String()
	}
	return c
}
