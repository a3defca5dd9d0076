package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/refoldhq/refold/pkg/avro"
)

// Remote is an external registry in the place of the built-in one: it gives the ids.
// It is safe for concurrent use.
//
// What an id stands for is looked up in refold.schema first, where a writer puts it
// before it appends an event with it. So whoever reads the log needs the registry for
// nothing: it is asked about ids of others' records, and by writers when they start.
// While it is away, known schemas go on; a writer starts with the ids that it was
// given before; what is not known is [ErrUnavailable].
//
// Its subjects, levels of compatibility and access are its operators' business and
// are never changed. A new version of an event is compared with all before it here,
// whatever the level is there, and then there too.
type Remote struct {
	ids
	client *Client
	log    *slog.Logger
}

// NewRemote returns the external registry that a client asks, for the log in a
// database.
func NewRemote(pool *pgxpool.Pool, client *Client, log *slog.Logger) *Remote {
	return &Remote{newIDs(pool), client, log}
}

// SchemaByID returns the schema with an id, or [ErrUnknownSchema] when neither the
// log nor the registry knows it.
func (r *Remote) SchemaByID(ctx context.Context, id int) (*avro.Schema, error) {
	known, err := r.ids.SchemaByID(ctx, id)
	if !errors.Is(err, ErrUnknownSchema) {
		return known, err
	}
	given, err := r.client.schema(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := r.pin(ctx, id, given); err != nil {
		return nil, err
	}
	return given, nil
}

// RegisterContracts registers every version of every event type, oldest first,
// under <topic>-<full name of the record>, after the registry was compared with what
// the log knows. While it is away the ids that it gave before are taken; for a
// schema that it gave none the error is [ErrUnavailable].
func (r *Remote) RegisterContracts(ctx context.Context, contracts *avro.Contracts, topicOf func(category string) string) (IDs, error) {
	away := r.compare(ctx)
	if away != nil && !errors.Is(away, ErrUnavailable) {
		return nil, away
	}
	list, err := eachVersion(contracts, topicOf, func(v contractVersion) (id int, err error) {
		if away == nil {
			id, err = r.register(ctx, v)
			if !errors.Is(err, ErrUnavailable) {
				return id, err
			}
			away = err
		}
		return r.remembered(ctx, v, away)
	})
	if err == nil && away != nil {
		r.log.Warn("the schema registry is away; the ids that it gave before are used", "registry", r.client.String(), "err", away)
	}
	return list, err
}

// compareParallel is how many schemas are asked for at once: a registry may be far.
const compareParallel = 16

// compare asks the registry about every id that the log knows. It is a [*Clash]
// when the registry has another schema under one.
func (r *Remote) compare(ctx context.Context) error {
	if err := r.client.Ping(ctx); err != nil { // one failure, instead of another one each time
		return err
	}
	rows, err := r.pool.Query(ctx, `select id from refold.schema order by id`)
	if err != nil {
		return fmt.Errorf("listing schemas: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return fmt.Errorf("listing schemas: %w", err)
	}
	said := make([]error, len(list)) // nil, or what kept an id from being compared
	asking, ctx := errgroup.WithContext(ctx)
	asking.SetLimit(compareParallel)
	for i, id := range list {
		asking.Go(func() error {
			said[i] = r.compareOne(ctx, id)
			if errors.Is(said[i], ErrUnknownSchema) || errors.Is(said[i], ErrUnavailable) {
				return nil
			}
			return said[i]
		})
	}
	if err := asking.Wait(); err != nil {
		return err
	}
	var missing, unheard []int
	var why error
	for i, id := range list {
		switch {
		case errors.Is(said[i], ErrUnknownSchema):
			missing = append(missing, id)
		case said[i] != nil:
			unheard, why = append(unheard, id), said[i]
		}
	}
	if missing != nil {
		r.log.Warn("the schema registry lacks schemas that the log knows: whoever asks it cannot read events that were written with them",
			"registry", r.client.String(), "schema_ids", missing)
	}
	if unheard != nil {
		r.log.Warn("the schema registry was not compared with all that the log knows", "registry", r.client.String(), "schema_ids", unheard, "err", why)
	}
	return nil
}

// compareOne returns a [*Clash], [ErrUnknownSchema] where the registry lacks the
// schema, or what kept it from being compared.
func (r *Remote) compareOne(ctx context.Context, id int) error {
	known, err := r.ids.SchemaByID(ctx, id)
	if err != nil {
		return err
	}
	given, err := r.client.schema(ctx, id)
	switch {
	case errors.Is(err, errForeignSchema):
		return &Clash{ID: id, Known: known.FullName(), Given: "none of an event"}
	case err == nil && given.Fingerprint() != known.Fingerprint():
		return clash(id, known, given)
	}
	return err
}

// register returns the id of a version, which it gets where it has none.
func (r *Remote) register(ctx context.Context, v contractVersion) (id int, err error) {
	id, err = r.client.find(ctx, v.subject, v.schema)
	if errors.Is(err, ErrUnknownSubject) || errors.Is(err, ErrUnknownSchema) {
		id, err = r.create(ctx, v)
	}
	if err != nil {
		return 0, fmt.Errorf("registering a schema under %s: %w", v.subject, err)
	}
	return id, r.remember(ctx, v, id)
}

func (r *Remote) create(ctx context.Context, v contractVersion) (id int, err error) {
	list, err := r.client.versions(ctx, v.subject)
	if err != nil {
		return 0, err
	}
	level := v.level
	if level == "" {
		level = avro.BackwardTransitive
	}
	if err := checkCompatible(v.subject, level, v.schema, list, v.upcast); err != nil {
		return 0, err
	}
	id, err = r.client.create(ctx, v.subject, v.schema)
	if code(err) == codeConflict {
		err = fmt.Errorf("%w (it has a level of its own for the subject; refold has found nothing against the schema)", err)
	}
	return id, err
}

// remember keeps the id of a version, before an event is written with it. An id that
// is new here is asked for once more: events are written for whoever reads by it.
func (r *Remote) remember(ctx context.Context, v contractVersion, id int) error {
	given, err := r.SchemaByID(ctx, id)
	if errors.Is(err, ErrUnknownSchema) { // that of another server, say, which lags behind
		return fmt.Errorf("%w: %s does not know the id %d that it has given: %w", ErrUnavailable, r.client, id, err)
	}
	if err != nil {
		return err
	}
	fingerprint := v.schema.Fingerprint()
	if given.Fingerprint() != fingerprint {
		return clash(id, given, v.schema)
	}
	_, err = r.pool.Exec(ctx, `insert into refold.registration as r (subject, fingerprint, schema) values ($1, $2, $3)
		on conflict (subject, fingerprint) do update set schema = excluded.schema where r.schema <> excluded.schema`, v.subject, fingerprint[:], id)
	if err != nil {
		return fmt.Errorf("keeping the id of a schema under %s: %w", v.subject, err)
	}
	return nil
}

// remembered returns the id that the registry gave to a version before it went away.
func (r *Remote) remembered(ctx context.Context, v contractVersion, away error) (id int, err error) {
	fingerprint := v.schema.Fingerprint()
	err = r.pool.QueryRow(ctx, `select schema from refold.registration where subject = $1 and fingerprint = $2`, v.subject, fingerprint[:]).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("a schema of %s has no id yet: %w", v.subject, away)
	}
	if err != nil {
		return 0, fmt.Errorf("looking for the id of a schema under %s: %w", v.subject, err)
	}
	return id, nil
}
