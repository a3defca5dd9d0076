package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// Parked shows what is parked and takes requests about it. It writes requests
// only: the workers that own the partitions carry them out. It is safe for
// concurrent use.
type Parked struct{ pool *pgxpool.Pool }

// NewParked returns what is parked in a database.
func NewParked(pool *pgxpool.Pool) *Parked { return &Parked{pool} }

// ParkedStream is a stream that a version has parked.
type ParkedStream struct {
	Stream  string    `json:"stream"` // category/id
	Version int       `json:"version"`
	Since   time.Time `json:"since"`
	Error   string    `json:"error"`
	// Events is how many are parked: the one that could not be applied, and those
	// that wait behind it.
	Events int64 `json:"events"`
	// Event is the first of them.
	Event    ParkedEvent `json:"event"`
	Requests []Request   `json:"requests"` // those that are open, the oldest first
}

// ParkedEvent is an event that could not be applied.
type ParkedEvent struct {
	ID       event.ID  `json:"id"`
	Type     string    `json:"type"`
	Version  int64     `json:"version"` // in its stream
	Position string    `json:"position"`
	Time     time.Time `json:"time"`
}

// Request is what somebody asked of a parked stream, and what came of it.
type Request struct {
	ID        int64     `json:"id,string"`
	Stream    string    `json:"stream"`
	Action    string    `json:"action"` // retry or skip
	Reason    string    `json:"reason"`
	Requested time.Time `json:"requested"`
	// Outcomes says, by version, what came of it.
	Outcomes map[string]string `json:"outcomes"`
	// Done is when the last fed version had carried it out.
	Done *time.Time `json:"done"`
}

// Failed tells whether the stream is still parked in some version, because another
// event failed or the same one failed again.
func (r Request) Failed() bool {
	for _, outcome := range r.Outcomes {
		if strings.Contains(outcome, failedAgain) {
			return true
		}
	}
	return false
}

// Errors of [Parked].
var (
	// ErrNotParked says that no fed version of a projection has a stream parked.
	ErrNotParked = errors.New("the stream is not parked")
	// ErrNoRequest says that there is no such request.
	ErrNoRequest = errors.New("no such request")
	// ErrRequest is wrapped by what is wrong with a request.
	ErrRequest = errors.New("not a request")
)

// MaxReason is the most bytes of a reason.
const MaxReason = 1000

const parkedSQL = `select p.category, p.stream, p.version, p.since, p.error, (select count(*) from refold.parked_event e where e.projection = p.projection and e.version = p.version and e.category = p.category and e.stream = p.stream),
		e.id, e.type, e.stream_version, e.slot, e.seq, e.time
	from refold.parked_stream p cross join lateral (select * from refold.parked_event e where e.projection = p.projection and e.version = p.version and e.category = p.category and e.stream = p.stream order by e.seq limit 1) e
	where p.projection = $1 and ($2 = '' or (p.category, p.stream, p.version) > ($2, $3, $4)) order by 1, 2, 3 limit $5`

// List returns the parked streams of a projection, in order of stream and version,
// at most limit of them behind the one given; next is the one to go on behind,
// nil at the end. It is [readmodel.ErrUnknownProjection] if there is none of the
// name.
func (p *Parked) List(ctx context.Context, projection string, after *ParkedStream, limit int) (list []ParkedStream, next *ParkedStream, err error) {
	if err := p.known(ctx, projection); err != nil {
		return nil, nil, err
	}
	var category, stream string
	version := 0
	if after != nil {
		category, stream, _ = strings.Cut(after.Stream, "/")
		version = after.Version
	}
	rows, err := p.pool.Query(ctx, parkedSQL, projection, category, stream, version, limit+1)
	if err != nil {
		return nil, nil, fmt.Errorf("reading what is parked of %s: %w", projection, err)
	}
	list = []ParkedStream{}
	var s ParkedStream
	var id [16]byte
	var slot int16
	var seq int64
	_, err = pgx.ForEachRow(rows, []any{&category, &stream, &s.Version, &s.Since, &s.Error, &s.Events, &id, &s.Event.Type, &s.Event.Version, &slot, &seq, &s.Event.Time}, func() error {
		s.Stream, s.Event.ID, s.Requests = category+"/"+stream, id, []Request{}
		s.Event.Position = event.Position{Category: category, Slot: int(slot), Seq: seq}.String()
		list = append(list, s)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading what is parked of %s: %w", projection, err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = &list[limit-1]
	}
	return list, next, p.addRequests(ctx, projection, list)
}

// addRequests adds the open requests about streams.
func (p *Parked) addRequests(ctx context.Context, projection string, list []ParkedStream) error {
	if len(list) == 0 {
		return nil
	}
	open, err := p.requests(ctx, `done is null and projection = $1`, projection)
	if err != nil {
		return err
	}
	for _, r := range open {
		for i := range list {
			if list[i].Stream == r.Stream {
				list[i].Requests = append(list[i].Requests, r)
			}
		}
	}
	return nil
}

func (p *Parked) requests(ctx context.Context, where string, args ...any) ([]Request, error) {
	rows, err := p.pool.Query(ctx, `select id, category || '/' || stream, action, reason, requested, outcomes, done from refold.row_request where `+where+` order by id limit 1000`, args...)
	if err != nil {
		return nil, fmt.Errorf("reading requests: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Request])
	if err != nil {
		return nil, fmt.Errorf("reading requests: %w", err)
	}
	return list, nil
}

func (p *Parked) known(ctx context.Context, projection string) error {
	var known bool
	if err := p.pool.QueryRow(ctx, `select exists (select from refold.projection where name = $1)`, projection).Scan(&known); err != nil {
		return fmt.Errorf("looking up the projection %s: %w", projection, err)
	}
	if !known {
		return readmodel.ErrUnknownProjection
	}
	return nil
}

// Request asks that a parked stream be retried, or that the event that failed be
// skipped and those behind it applied, in every fed version that has the stream
// parked. Asked for what is asked for already it returns that request. The reason
// is kept; it must not be empty.
func (p *Parked) Request(ctx context.Context, projection, category, stream, action, reason string) (Request, error) {
	reason = strings.TrimSpace(reason)
	switch {
	case action != "retry" && action != "skip":
		return Request{}, fmt.Errorf("%w: %q: want retry or skip", ErrRequest, action)
	case reason == "":
		return Request{}, fmt.Errorf("%w: a reason is needed, which is kept", ErrRequest)
	case len(reason) > MaxReason || clean(reason) != reason:
		return Request{}, fmt.Errorf("%w: the reason has %d bytes: at most %d of text", ErrRequest, len(reason), MaxReason)
	}
	if err := p.known(ctx, projection); err != nil {
		return Request{}, err
	}
	var id int64
	// Two who ask at once for the same thing take turns at the row of the stream.
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		var slot int16
		err := tx.QueryRow(ctx, `select p.slot from refold.parked_stream p join refold.projection_version v on v.projection = p.projection and v.version = p.version and v.state in ('ready', 'active')
			where p.projection = $1 and p.category = $2 and p.stream = $3 order by p.version limit 1 for update of p`, projection, category, stream).Scan(&slot)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotParked
		}
		if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `select id from refold.row_request where projection = $1 and category = $2 and slot = $3 and stream = $4 and action = $5 and done is null limit 1`,
			projection, category, slot, stream, action).Scan(&id)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		return tx.QueryRow(ctx, `insert into refold.row_request (projection, category, slot, stream, action, reason) values ($1, $2, $3, $4, $5, $6) returning id`,
			projection, category, slot, stream, action, reason).Scan(&id)
	})
	if err != nil {
		return Request{}, fmt.Errorf("asking for a %s of %s/%s in %s: %w", action, category, stream, projection, err)
	}
	return p.Get(ctx, projection, id)
}

// Get returns a request, or [ErrNoRequest].
func (p *Parked) Get(ctx context.Context, projection string, id int64) (Request, error) {
	list, err := p.requests(ctx, `projection = $1 and id = $2`, projection, id)
	if err != nil {
		return Request{}, err
	}
	if len(list) == 0 {
		return Request{}, ErrNoRequest
	}
	return list[0], nil
}

// Await returns a request once it is done, or as it stands after the time.
func (p *Parked) Await(ctx context.Context, projection string, id int64, most time.Duration) (Request, error) {
	deadline := time.Now().Add(most)
	for {
		r, err := p.Get(ctx, projection, id)
		if err != nil || r.Done != nil || !time.Now().Before(deadline) {
			return r, err
		}
		wait(ctx, 50*time.Millisecond)
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
	}
}
