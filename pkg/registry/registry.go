// Package registry keeps schemas by id and by subject, so that other tools decode
// refold's topics: the built-in [Registry] in Postgres, with Confluent's REST API in
// front, or a [Remote] one in its place, which is somebody else's.
//
// An id stands for one schema for ever. Whoever gave it, the table refold.schema
// says which: so the log can be read while the remote registry is away, and one that
// gives an id to another schema is found out. The built-in registry gives a schema
// that is registered again, under any subject, the id that it got first.
package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/avro"
)

// ErrUnknownSchema says that no schema has the id.
var ErrUnknownSchema = errors.New("unknown schema id")

// ErrUnknownSubject and ErrUnknownVersion say that a subject or a version of it
// does not exist.
var (
	ErrUnknownSubject = errors.New("unknown subject")
	ErrUnknownVersion = errors.New("unknown version of the subject")
)

// Registry is the built-in registry. It is safe for concurrent use.
type Registry struct{ ids }

// New returns the registry of a database.
func New(pool *pgxpool.Pool) *Registry { return &Registry{newIDs(pool)} }

// Register makes schema a version of subject, unless it is one already, and
// returns its id. A schema that the subject's level of compatibility does not
// allow is refused with an [*Incompatible], and nothing is kept of it.
func (r *Registry) Register(ctx context.Context, subject string, schema *avro.Schema) (id int, err error) {
	return r.register(ctx, subject, schema, nil)
}

// register is Register, but for versions that an upcaster lies behind: with these
// the schema need not be compatible.
func (r *Registry) register(ctx context.Context, subject string, schema *avro.Schema, upcast []*avro.Schema) (id int, err error) {
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		// One registration at a time: versions are dense, and each is compared with
		// all before it.
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended('refold.registry', 0))`); err != nil {
			return err
		}
		id, err = register(ctx, tx, subject, schema, upcast)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("registering a schema under %s: %w", subject, err)
	}
	return id, nil
}

func register(ctx context.Context, tx pgx.Tx, subject string, schema *avro.Schema, upcast []*avro.Schema) (id int, err error) {
	fingerprint := schema.Fingerprint()
	var there bool
	err = tx.QueryRow(ctx, `select id, exists (select from refold.subject_version v where v.subject = $2 and v.schema = s.id) as there
		from refold.schema s where fingerprint = $1 order by there desc, id limit 1`, fingerprint[:], subject).Scan(&id, &there)
	fresh := errors.Is(err, pgx.ErrNoRows)
	if err != nil && !fresh || there {
		return id, err
	}
	if err := checkRegistration(ctx, tx, subject, schema, upcast); err != nil {
		return 0, err
	}
	for fresh { // until there is an id that no external registry has given out before
		err = tx.QueryRow(ctx, `insert into refold.schema (id, fingerprint, source) values (nextval('refold.schema_id'), $1, $2)
			on conflict (id) do nothing returning id`, fingerprint[:], schema.String()).Scan(&id)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return 0, err
		}
		fresh = err != nil
	}
	_, err = tx.Exec(ctx, `insert into refold.subject_version (subject, version, schema)
		select $1, coalesce(max(version), 0) + 1, $2 from refold.subject_version where subject = $1`, subject, id)
	return id, err
}

// checkRegistration compares a schema with the versions of a subject, but for those
// that are upcast.
func checkRegistration(ctx context.Context, tx pgx.Tx, subject string, schema *avro.Schema, upcast []*avro.Schema) error {
	level, _, err := compatibility(ctx, tx, subject)
	if err != nil {
		return err
	}
	list, err := versions(ctx, tx, subject)
	if err != nil {
		return err
	}
	return checkCompatible(subject, level, schema, list, upcast)
}

func checkCompatible(subject string, level avro.Level, schema *avro.Schema, list []Version, upcast []*avro.Schema) error {
	var before []avro.Numbered
	for _, v := range list {
		old, err := avro.Parse([]byte(v.Schema))
		if err != nil {
			return fmt.Errorf("parsing schema %d: %w", v.ID, err)
		}
		if !slices.ContainsFunc(upcast, func(s *avro.Schema) bool { return s.Fingerprint() == old.Fingerprint() }) {
			before = append(before, avro.Numbered{Version: v.Version, Schema: old})
		}
	}
	if reasons := level.Check(schema, before); len(reasons) > 0 {
		return &Incompatible{Subject: subject, Level: level, Reasons: reasons}
	}
	return nil
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

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Versions returns the versions of a subject in order, or [ErrUnknownSubject].
func (r *Registry) Versions(ctx context.Context, subject string) ([]Version, error) {
	list, err := versions(ctx, r.pool, subject)
	if err == nil && len(list) == 0 {
		err = ErrUnknownSubject
	}
	return list, err
}

func versions(ctx context.Context, q querier, subject string) ([]Version, error) {
	rows, err := q.Query(ctx, `select v.subject, v.schema, v.version, s.source
		from refold.subject_version v join refold.schema s on s.id = v.schema where v.subject = $1 order by v.version`, subject)
	if err != nil {
		return nil, fmt.Errorf("listing versions of %s: %w", subject, err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Version])
}

// Find returns the version of a subject that has this very schema.
func (r *Registry) Find(ctx context.Context, subject string, schema *avro.Schema) (Version, error) {
	list, err := r.Versions(ctx, subject)
	if err != nil {
		return Version{}, err
	}
	for _, v := range list {
		known, err := r.SchemaByID(ctx, v.ID)
		if err != nil {
			return Version{}, err
		}
		if known.Fingerprint() == schema.Fingerprint() {
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

// Compatibility returns the level that holds for a subject, or that of all others
// for "", and whether it is the subject's own.
func (r *Registry) Compatibility(ctx context.Context, subject string) (level avro.Level, own bool, err error) {
	return compatibility(ctx, r.pool, subject)
}

func compatibility(ctx context.Context, q querier, subject string) (level avro.Level, own bool, err error) {
	err = q.QueryRow(ctx, `select compatibility, subject = $1 from refold.registry_config where subject in ($1, '') order by subject desc limit 1`, subject).Scan(&level, &own)
	if errors.Is(err, pgx.ErrNoRows) {
		return avro.BackwardTransitive, subject == "", nil
	}
	if err != nil {
		return "", false, fmt.Errorf("reading the compatibility of %s: %w", subject, err)
	}
	return level, own, nil
}

// SetCompatibility sets the level of a subject, or that of all others for "".
func (r *Registry) SetCompatibility(ctx context.Context, subject string, level avro.Level) error {
	return r.setCompatibility(ctx, subject, level, false)
}

func (r *Registry) setCompatibility(ctx context.Context, subject string, level avro.Level, contract bool) error {
	_, err := r.pool.Exec(ctx, `insert into refold.registry_config (subject, compatibility, contract) values ($1, $2, $3)
		on conflict (subject) do update set compatibility = excluded.compatibility, contract = excluded.contract`, subject, level, contract)
	if err != nil {
		return fmt.Errorf("setting the compatibility of %s: %w", subject, err)
	}
	return nil
}

// ResetCompatibility has the level of all others hold for a subject again, or the
// default for "".
func (r *Registry) ResetCompatibility(ctx context.Context, subject string) error {
	if _, err := r.pool.Exec(ctx, `delete from refold.registry_config where subject = $1`, subject); err != nil {
		return fmt.Errorf("resetting the compatibility of %s: %w", subject, err)
	}
	return nil
}

// IDs are the ids of the newest version of every event type.
type IDs map[string]map[string]int

// RegisterContracts registers every version of every event type, oldest first,
// under <topic>-<full name of the record>. Where a category says how versions must
// fit together, it is said of its subjects too.
func (r *Registry) RegisterContracts(ctx context.Context, contracts *avro.Contracts, topicOf func(category string) string) (IDs, error) {
	return eachVersion(contracts, topicOf, func(v contractVersion) (int, error) {
		if err := r.adoptLevel(ctx, v.subject, v.level); err != nil {
			return 0, err
		}
		return r.register(ctx, v.subject, v.schema, v.upcast)
	})
}

// contractVersion is a version of an event type, as it is to be registered.
type contractVersion struct {
	subject string
	schema  *avro.Schema
	level   avro.Level     // "" where the category has none
	upcast  []*avro.Schema // the versions that an upcaster lies behind
}

func eachVersion(contracts *avro.Contracts, topicOf func(category string) string, register func(contractVersion) (id int, err error)) (IDs, error) {
	ids := make(IDs)
	for _, category := range contracts.Categories() {
		ids[category.Name] = make(map[string]int)
		for _, typ := range category.Types {
			for i, schema := range typ.Versions {
				id, err := register(contractVersion{subject: topicOf(category.Name) + "-" + schema.FullName(), schema: schema,
					level: category.Compatibility, upcast: typ.Versions[:i-len(typ.Comparable(i+1))]})
				if err != nil {
					return nil, err
				}
				ids[category.Name][typ.Name] = id
			}
		}
	}
	return ids, nil
}

// adoptLevel has a category's level hold for a subject. Where the category has none
// the subject's own stays, unless it came from the category too.
func (r *Registry) adoptLevel(ctx context.Context, subject string, level avro.Level) error {
	var now avro.Level
	var contract bool
	err := r.pool.QueryRow(ctx, `select compatibility, contract from refold.registry_config where subject = $1`, subject).Scan(&now, &contract)
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("reading the compatibility of %s: %w", subject, err)
	case level == "" && contract:
		return r.ResetCompatibility(ctx, subject)
	case level == "" || level == now && contract:
		return nil
	default:
		return r.setCompatibility(ctx, subject, level, true)
	}
}
