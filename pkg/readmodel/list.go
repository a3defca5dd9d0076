package readmodel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/refoldhq/refold/pkg/event"
)

// ListQuery asks for a page of rows.
type ListQuery struct {
	Where Condition
	// Order is followed by the key, so that it is total.
	Order []Order
	// Limit is the most rows of a page; 100 when 0, at most [MaxLimit].
	Limit int
	// Cursor continues behind the page that it came with.
	Cursor string
	Count  Count
}

// Count says whether all rows that the filter selects are to be counted.
type Count uint8

// Ways of counting: not at all, exactly, or as the planner estimates.
const (
	CountNone Count = iota
	CountExact
	CountPlanned
)

const defaultLimit = 100

// Page is a part of a list.
type Page struct {
	Rows []json.RawMessage
	Keys []string
	// Next is the cursor of the next page; empty at the end.
	Next  string
	Count *int64 // nil unless asked for
}

func (p *Page) size() (n int) {
	for i := range p.Rows {
		n += len(p.Rows[i]) + len(p.Keys[i]) + 48
	}
	return n
}

// List returns a page. A wrong query is a [*QueryError].
//
// A cursor goes on with the version that it began with, while that one is active.
// After a flip it goes on with the active version if that has the same definition
// and the order is by the key or its parts, which never change: then every row
// that existed throughout is returned exactly once. Else it stays on its own
// version for as long as that is kept, and after that returns
// [ErrCursorExpired]. A changed cursor, or one of another query, is [ErrCursor].
func (r *Reader) List(ctx context.Context, name string, q ListQuery, fresh Fresh) (page *Page, from Answer, err error) {
	if q.Limit == 0 {
		q.Limit = defaultLimit
	}
	if q.Limit < 0 || q.Limit > MaxLimit {
		return nil, from, badQuery("limit", "a number from 1 to %d", MaxLimit)
	}
	l := &listing{reader: r, query: &q, bound: digest(name, &q)}
	var e *entry
	pick := func(ctx context.Context) (*Model, bool, error) { return l.pick(ctx, name) }
	from, err = r.answer(ctx, pick, fresh, func(m *Model, doubts []event.Mark, fromCache bool) (*snapshot, error) {
		k := cacheKey{leaf: m.Version.Leaf, list: true, query: l.normal()}
		if fromCache {
			if e = r.cache.find(m, k, fresh.Token); e != nil {
				return e.of, nil
			}
		}
		var err error
		holds := func(e *entry) bool { return r.cache.holds(m, e) }
		if e, err = r.fills.do(ctx, k, len(doubts) > 0, holds, func(ctx context.Context) (*entry, error) { return l.read(ctx, m, doubts) }); err != nil {
			return nil, err
		}
		if e.of.serves(m) {
			r.cache.keep(m, k, e)
		}
		return e.of, nil
	})
	from.byStream = false
	if err != nil {
		return nil, from, err
	}
	return e.page, from, nil
}

// listing is one list query under way.
type listing struct {
	reader *Reader
	query  *ListQuery
	key    []byte // that signs cursors
	bound  []byte
	after  *place
}

// normal tells apart what a version answers.
func (l *listing) normal() string {
	return string(l.bound) + strconv.Itoa(l.query.Limit) + "/" + strconv.Itoa(int(l.query.Count)) + "/" + l.query.Cursor
}

// begin reads the cursor.
func (l *listing) begin(ctx context.Context) (err error) {
	if l.key, err = l.reader.signer.load(ctx); err != nil || l.query.Cursor == "" || l.after != nil {
		return err
	}
	at, err := decodePlace(l.query.Cursor, l.key, l.bound)
	if err == nil {
		l.after = &at
	}
	return err
}

// pick finds the version that a page comes from. That the active one is another
// than the cursor's is looked up and not taken from memory: no statement that
// follows would confirm it.
func (l *listing) pick(ctx context.Context, name string) (m *Model, pinned bool, err error) {
	if err := l.begin(ctx); err != nil {
		return nil, false, err
	}
	m, err = l.reader.models.current(ctx, name)
	if err != nil || l.after == nil || l.after.version == m.Version.Number {
		return m, false, err
	}
	l.reader.models.forget(m)
	if m, err = l.reader.models.current(ctx, name); err != nil {
		return m, false, err
	}
	order, err := terms(m.Plan, l.query.Order)
	if l.after.version == m.Version.Number || err == nil && l.after.plan == m.Version.PlanHash && steady(m, order) {
		return m, false, nil
	}
	m, err = l.reader.models.numbered(ctx, name, l.after.version)
	if errors.Is(err, ErrUnknownProjection) {
		err = ErrCursorExpired
	}
	return m, true, err
}

// steady tells whether no row ever changes its place in an order.
func steady(m *Model, order []term) bool {
	for _, t := range order {
		fixed := t.name == "key"
		for _, f := range m.Plan.Fields() {
			fixed = fixed || f.Name == t.name && f.Key
		}
		if !fixed {
			return false
		}
	}
	return true
}

// read runs the query in one pipeline, which is one transaction and so, on these
// sessions, one snapshot.
//
// Where an index serves the query, the table is not read whole, although that is
// cheaper while it is small: sessions keep such a plan until the table is analyzed
// again, and by then it may have grown by a million rows.
func (l *listing) read(ctx context.Context, m *Model, marks []event.Mark) (*entry, error) {
	order, err := terms(m.Plan, l.query.Order)
	if err != nil {
		return nil, err
	}
	s, where, served, err := l.compile(ctx, m, order)
	if err != nil {
		return nil, err
	}
	rows := l.sql(s, m, where, order)
	e := &entry{page: new(Page), keys: boundKeys(l.query.Where), of: l.reader.watcher.validity.begin()}
	trip := &pgx.Batch{}
	if !served || l.query.Count != CountNone {
		trip.Queue(`set local enable_seqscan = on`)
	}
	e.of.queue(trip, m.Version, marks)
	trip.Queue(rows, s.args...).Query(e.page.scan)
	l.queueCount(trip, m, e.page)
	if err := l.reader.pool.SendBatch(ctx, trip).Close(); err != nil {
		return nil, err
	}
	e.page.cut(l, m, order)
	return e, nil
}

// compile compiles the filter, tells whether an index serves the query, and refuses
// what would be too expensive.
func (l *listing) compile(ctx context.Context, m *Model, order []term) (s *statement, where string, served bool, err error) {
	s = &statement{plan: m.Plan}
	if where, err = s.sql(l.query.Where, 0); err != nil {
		return nil, "", false, err
	}
	if l.after != nil && len(l.after.values) != len(order) {
		return nil, "", false, ErrCursor
	}
	served, err = l.reader.strict(ctx, m, l.query.Where, order)
	return s, where, served, err
}

// sql is one range of the order or, behind a cursor, the union of several, each
// of at most a page.
func (l *listing) sql(s *statement, m *Model, where string, order []term) string {
	by, limit := orderSQL(order), l.query.Limit+1 // one more tells whether another page follows
	one := func(condition string) string {
		return fmt.Sprintf(`select key, %s as data from %s where %s%s order by %s limit %d`, m.row, m.Version.Table(), where, condition, by, limit)
	}
	if l.after == nil {
		return one("")
	}
	var parts []string
	for _, condition := range s.behind(order, l.after.values) {
		parts = append(parts, "("+one(" and "+condition)+")")
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return fmt.Sprintf(`select key, data from (%s) u order by %s limit %d`, strings.Join(parts, " union all "), by, limit)
}

func (l *listing) queueCount(trip *pgx.Batch, m *Model, page *Page) {
	if l.query.Count == CountNone {
		return
	}
	s := &statement{plan: m.Plan}
	where, err := s.sql(l.query.Where, 0)
	if err != nil {
		return // it was compiled before
	}
	sql := `select count(*) from ` + m.Version.Table() + ` where ` + where
	if l.query.Count == CountExact {
		trip.Queue(sql, s.args...).QueryRow(func(row pgx.Row) error { return row.Scan(&page.Count) })
		return
	}
	sql = `explain (format json) select from ` + m.Version.Table() + ` where ` + where
	trip.Queue(sql, s.args...).QueryRow(func(row pgx.Row) error {
		var plan []struct {
			Plan struct {
				Rows int64 `json:"Plan Rows"`
			}
		}
		if err := row.Scan(&plan); err != nil {
			return err
		}
		page.Count = &plan[0].Plan.Rows
		return nil
	})
}

func (p *Page) scan(rows pgx.Rows) error {
	defer rows.Close()
	for rows.Next() {
		raw := rows.RawValues()
		p.Keys, p.Rows = append(p.Keys, string(raw[0])), append(p.Rows, jsonOf(raw[1]))
	}
	return rows.Err()
}

// cut takes the row that is too many away and makes the cursor.
func (p *Page) cut(l *listing, m *Model, order []term) {
	n := l.query.Limit
	if len(p.Rows) <= n {
		return
	}
	p.Rows, p.Keys = p.Rows[:n], p.Keys[:n]
	var members map[string]json.RawMessage
	if json.Unmarshal(p.Rows[n-1], &members) != nil {
		return // what the database gave is JSON
	}
	at := place{version: m.Version.Number, plan: m.Version.PlanHash}
	for _, t := range order {
		if t.name == "key" {
			at.values = append(at.values, &p.Keys[n-1])
			continue
		}
		at.values = append(at.values, textOf(members[t.name]))
	}
	p.Next = at.encode(l.key, l.bound)
}

// textOf is SQL's ->>: nil for null, texts without quotes.
func textOf(raw json.RawMessage) *string {
	if raw == nil || string(raw) == "null" {
		return nil
	}
	text := string(raw)
	if text[0] == '"' {
		if json.Unmarshal(raw, &text) != nil {
			return nil // what the database gave is JSON
		}
	}
	return &text
}

// boundKeys returns the hashes of the only rows that a condition can select, nil
// when it does not name them.
func boundKeys(c Condition) []uint32 {
	for _, p := range conjuncts(c) {
		if p.field == "key" && len(p.path) == 0 && (p.op == opEq || p.op == opIn) {
			keys := make([]uint32, 0, len(p.values))
			for _, v := range p.values {
				keys = append(keys, HashKey(v))
			}
			return keys
		}
	}
	return nil
}

// conjuncts returns what must all hold.
func conjuncts(c Condition) []Condition {
	switch c.op {
	case opAll:
		return nil
	case opAnd:
		var all []Condition
		for _, p := range c.parts {
			all = append(all, conjuncts(p)...)
		}
		return all
	default:
		return []Condition{c}
	}
}
