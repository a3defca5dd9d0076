package readmodel

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/event"
)

// snapshot is what one statement has seen of a version besides rows.
type snapshot struct {
	state    string // of the version, empty when it is not in the catalogue
	revision string // of its entry there
	clean    bool   // no event of the version is parked
	progress *Progress
	parked   []event.Position // of the written marks that were asked about
	begun    uint64           // the clock of validity before the statement
	requests int64            // that were carried out before the statement, see [standing]
	at       time.Time        // before the statement
}

// getter reads rows by key: one statement, one snapshot, for all who ask while
// others are being served. Under load that makes the statement's fixed costs
// those of dozens of rows; an idle getter serves a single key at once. A row is
// read after it was asked for: nobody joins a statement that has begun.
type getter struct {
	pool     *pgxpool.Pool
	validity *validity
	version  Version
	sql      string

	mu      sync.Mutex
	queue   []*get
	joined  map[string]*get // by key: queued, and without marks of their own
	running int
}

// States of a version.
const (
	stateActive  = "active"
	stateRetired = "retired"
)

// get is one key that somebody waits for. What it holds is complete once done is
// closed.
type get struct {
	key    string
	marks  []event.Mark
	done   chan struct{}
	row    []byte // nil: no such row
	of     *snapshot
	err    error
	shared bool
}

const (
	maxGets    = 512             // keys in a statement
	getTimeout = 5 * time.Second // with the wait for a connection
)

var maxStatements = max(2, runtime.GOMAXPROCS(0)) // at a time, for each version

func newGetter(pool *pgxpool.Pool, validity *validity, v Version, row string) *getter {
	return &getter{pool: pool, validity: validity, version: v, sql: snapshotSQL + ` union all select 'r', null, null, null, key, ` + row + ` from ` + v.Table() + ` where key = any($6)`,
		joined: make(map[string]*get)}
}

// snapshotSQL reads a version's state, its progress, whether anything of it is
// parked, and which of the given positions are, as rows of one shape:
// kind, text, slots, seqs, key, data.
const snapshotSQL = `select 'v', v.state, case when exists (select from refold.parked_event p where p.projection = $1 and p.version = $2) then '{1}'::smallint[] end, null::bigint[], v.xmin::text, null::jsonb
		from refold.projection_version v where v.projection = $1 and v.version = $2
	union all select 'p', category, slots, seqs, null, null from refold.progress where projection = $1 and version = $2 and phase <> 'loading'
	union all select 'x', p.category, array[p.slot], array[p.seq], null, null from unnest($3::text[], $4::smallint[], $5::bigint[]) u (category, slot, seq)
		join refold.parked_event p on p.projection = $1 and p.version = $2 and p.category = u.category and p.slot = u.slot and p.seq = u.seq`

// get reads one row. Marks are positions about which it must be known whether
// they are parked.
func (g *getter) get(ctx context.Context, key string, marks []event.Mark) (*get, error) {
	c := g.enqueue(key, marks)
	select {
	case <-c.done:
		return c, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (g *getter) enqueue(key string, marks []event.Mark) *get {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.joined[key]; c != nil && len(marks) == 0 {
		return c
	}
	c := &get{key: key, marks: marks, done: make(chan struct{})}
	if len(marks) == 0 {
		c.shared = true
		g.joined[key] = c
	}
	g.queue = append(g.queue, c)
	if g.running < maxStatements {
		g.running++
		go g.serve()
	}
	return c
}

// serve reads until nothing is queued.
func (g *getter) serve() {
	for {
		batch := g.take()
		if len(batch) == 0 {
			return
		}
		g.answer(batch)
	}
}

func (g *getter) take() []*get {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(g.queue), maxGets)
	if n == 0 {
		g.running--
		return nil
	}
	batch := g.queue[:n:n]
	g.queue = g.queue[n:]
	for _, c := range batch {
		if c.shared {
			delete(g.joined, c.key)
		}
	}
	return batch
}

func (g *getter) answer(batch []*get) {
	ctx, cancel := context.WithTimeout(context.Background(), getTimeout)
	defer cancel()
	keys := make([]string, 0, len(batch))
	var marks []event.Mark
	for _, c := range batch {
		keys, marks = append(keys, c.key), append(marks, c.marks...)
	}
	rows, of, err := g.read(ctx, keys, marks)
	for _, c := range batch {
		c.row, c.of, c.err = rows[c.key], of, err
		close(c.done)
	}
}

// read reads several rows in one snapshot.
func (g *getter) read(ctx context.Context, keys []string, marks []event.Mark) (map[string][]byte, *snapshot, error) {
	categories, slots, seqs := markColumns(marks)
	s := g.validity.begin()
	found := make(map[string][]byte, len(keys))
	rows, err := g.pool.Query(ctx, g.sql, g.version.Projection, g.version.Number, categories, slots, seqs, keys)
	if err != nil {
		return nil, nil, err
	}
	return found, s, s.scan(rows, func(key string, data []byte) { found[key] = data })
}

// begin is to be called before reading what a snapshot shows.
func (v *validity) begin() *snapshot {
	return &snapshot{begun: v.now(), requests: v.requests.Load(), at: time.Now()}
}

// queue adds the reading of the snapshot to a pipeline.
func (s *snapshot) queue(trip *pgx.Batch, v Version, marks []event.Mark) {
	categories, slots, seqs := markColumns(marks)
	trip.Queue(snapshotSQL, v.Projection, v.Number, categories, slots, seqs).Query(func(rows pgx.Rows) error {
		return s.scan(rows, func(string, []byte) {})
	})
}

// scan takes in what snapshotSQL has read, and hands rows on. Rows are most of it
// and are taken as they came; they get memory of their own.
func (s *snapshot) scan(rows pgx.Rows, row func(key string, data []byte)) error {
	defer rows.Close()
	var b progressBuilder
	var kind, text string
	var key *string
	var slots []int16
	var seqs []int64
	for rows.Next() {
		if raw := rows.RawValues(); raw[0][0] == 'r' {
			row(string(raw[4]), jsonOf(raw[5]))
			continue
		}
		if err := rows.Scan(&kind, &text, &slots, &seqs, &key, nil); err != nil {
			return err
		}
		switch kind {
		case "v":
			s.state, s.clean, s.revision = text, slots == nil, *key
		case "p":
			b.add(text, slots, seqs)
		case "x":
			s.parked = append(s.parked, event.Position{Category: text, Slot: int(slots[0]), Seq: seqs[0]})
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

func markColumns(marks []event.Mark) (categories []string, slots []int16, seqs []int64) {
	for _, m := range marks {
		categories, slots, seqs = append(categories, m.Category), append(slots, int16(m.Slot)), append(seqs, m.Seq)
	}
	return categories, slots, seqs
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

// judge tells whether rows of the snapshot contain a token.
func (s *snapshot) judge(token event.Token) error {
	if !s.progress.Covers(token) {
		return ErrNotCaughtUp
	}
	if s.clean || len(s.parked) == 0 {
		return nil
	}
	for _, m := range token {
		if m.Written && slices.Contains(s.parked, m.Position) {
			return ErrParked
		}
	}
	return nil
}

// written returns the marks of events that the client appended.
func written(token event.Token) (marks []event.Mark) {
	for _, m := range token {
		if m.Written {
			marks = append(marks, m)
		}
	}
	return marks
}
