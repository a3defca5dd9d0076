// Package registry keeps schemas by id and by subject: in Postgres, with
// Confluent's REST API in front, so that other tools decode refold's topics
// without another server.
//
// An id stands for one schema for ever. A schema that is registered again, under
// any subject, has the id that it got first.
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

// ErrUnknownSchema says that no schema has the id. Any other error of a look-up
// means that the registry could not be asked.
var ErrUnknownSchema = errors.New("unknown schema id")

// ErrUnknownSubject and ErrUnknownVersion say that a subject or a version of it
// does not exist.
var (
	ErrUnknownSubject = errors.New("unknown subject")
	ErrUnknownVersion = errors.New("unknown version of the subject")
)

// Registry is the built-in registry. It is safe for concurrent use.
type Registry struct {
	pool *pgxpool.Pool

	mu   sync.RWMutex
	byID map[int]*avro.Schema // ids never change their meaning, so this only grows
}

// New returns the registry of a database.
func New(pool *pgxpool.Pool) *Registry {
	return &Registry{pool: pool, byID: make(map[int]*avro.Schema)}
}

// Register makes schema a version of subject, unless it is one already, and
// returns its id.
func (r *Registry) Register(ctx context.Context, subject string, schema *avro.Schema) (id int, err error) {
	fingerprint := schema.Fingerprint()
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		// One registration of a subject at a time: versions are dense.
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended('refold.registry', 0))`); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `select id from refold.schema where fingerprint = $1`, fingerprint[:]).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			err = tx.QueryRow(ctx, `insert into refold.schema (id, fingerprint, source) values (nextval('refold.schema_id'), $1, $2) returning id`,
				fingerprint[:], schema.String()).Scan(&id)
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `insert into refold.subject_version (subject, version, schema)
			select $1, coalesce(max(version), 0) + 1, $2 from refold.subject_version where subject = $1
			on conflict (subject, schema) do nothing`, subject, id)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("registering a schema under %s: %w", subject, err)
	}
	return id, nil
}

// SchemaByID returns the schema with an id, or [ErrUnknownSchema].
func (r *Registry) SchemaByID(ctx context.Context, id int) (*avro.Schema, error) {
	r.mu.RLock()
	known := r.byID[id]
	r.mu.RUnlock()
	if known != nil {
		return known, nil
	}
	source, err := r.source(ctx, id)
	if err != nil {
		return nil, err
	}
	schema, err := avro.Parse([]byte(source))
	if err != nil {
		return nil, fmt.Errorf("parsing schema %d: %w", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID[id] = schema
	return schema, nil
}

func (r *Registry) source(ctx context.Context, id int) (source string, err error) {
	err = r.pool.QueryRow(ctx, `select source from refold.schema where id = $1`, id).Scan(&source)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("%w: %d", ErrUnknownSchema, id)
	}
	if err != nil {
		return "", fmt.Errorf("reading schema %d: %w", id, err)
	}
	return source, nil
}

// Version is one version of a subject.
type Version struct {
	Subject string `json:"subject"`
	ID      int    `json:"id"`
	Version int    `json:"version"`
	Schema  string `json:"schema"`
}

// Subjects returns all subjects, sorted.
func (r *Registry) Subjects(ctx context.Context) ([]string, error) {
	rows, err := r.pool.Query(ctx, `select distinct subject from refold.subject_version order by 1`)
	if err != nil {
		return nil, fmt.Errorf("listing subjects: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Versions returns the versions of a subject in order, or [ErrUnknownSubject].
func (r *Registry) Versions(ctx context.Context, subject string) ([]Version, error) {
	rows, err := r.pool.Query(ctx, `select v.subject, v.schema, v.version, s.source
		from refold.subject_version v join refold.schema s on s.id = v.schema where v.subject = $1 order by v.version`, subject)
	if err != nil {
		return nil, fmt.Errorf("listing versions of %s: %w", subject, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Version])
	if err == nil && len(list) == 0 {
		err = ErrUnknownSubject
	}
	return list, err
}

// Find returns the version of a subject that has this very schema.
func (r *Registry) Find(ctx context.Context, subject string, schema *avro.Schema) (Version, error) {
	list, err := r.Versions(ctx, subject)
	if err != nil {
		return Version{}, err
	}
	fingerprint := schema.Fingerprint()
	var id int
	err = r.pool.QueryRow(ctx, `select id from refold.schema where fingerprint = $1`, fingerprint[:]).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return Version{}, fmt.Errorf("looking for a schema: %w", err)
	}
	for _, v := range list {
		if err == nil && v.ID == id {
			return v, nil
		}
	}
	return Version{}, ErrUnknownSchema
}

// Usages returns where a schema is used.
func (r *Registry) Usages(ctx context.Context, id int) ([]Version, error) {
	if _, err := r.source(ctx, id); err != nil {
		return nil, err
	}
	rows, err := r.pool.Query(ctx, `select v.subject, v.schema, v.version, '' from refold.subject_version v where v.schema = $1 order by 1, 3`, id)
	if err != nil {
		return nil, fmt.Errorf("listing usages of schema %d: %w", id, err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Version])
}

// Compatibility returns the level of a subject, or that of all others for "".
func (r *Registry) Compatibility(ctx context.Context, subject string) (level string, own bool, err error) {
	err = r.pool.QueryRow(ctx, `select compatibility, subject = $1 from refold.registry_config where subject in ($1, '') order by subject desc limit 1`, subject).Scan(&level, &own)
	if errors.Is(err, pgx.ErrNoRows) {
		return "BACKWARD_TRANSITIVE", subject == "", nil
	}
	return level, own, err
}

// SetCompatibility sets the level of a subject, or that of all others for "".
func (r *Registry) SetCompatibility(ctx context.Context, subject, level string) error {
	_, err := r.pool.Exec(ctx, `insert into refold.registry_config values ($1, $2) on conflict (subject) do update set compatibility = excluded.compatibility`, subject, level)
	return err
}

// IDs are the ids of the newest version of every event type.
type IDs map[string]map[string]int

// RegisterContracts registers every version of every event type, oldest first,
// under <topic>-<full name of the record>.
func (r *Registry) RegisterContracts(ctx context.Context, contracts *avro.Contracts, topicOf func(category string) string) (IDs, error) {
	ids := make(IDs)
	for _, category := range contracts.Categories() {
		ids[category.Name] = make(map[string]int)
		for _, typ := range category.Types {
			for _, schema := range typ.Versions {
				id, err := r.Register(ctx, topicOf(category.Name)+"-"+schema.FullName(), schema)
				if err != nil {
					return nil, err
				}
				ids[category.Name][typ.Name] = id
			}
		}
	}
	return ids, nil
}
