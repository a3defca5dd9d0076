package projection

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Outcome says what an event is to a plan.
type Outcome int

const (
	// Filtered: the event concerns no row of the plan.
	Filtered Outcome = iota
	// Applies: the event concerns the rows of Folder.Keys.
	Applies
)

// Poison says why an event cannot be applied, whoever tries.
type Poison struct{ Reason string }

func (e *Poison) Error() string { return e.Reason }

func poison(format string, args ...any) error { return &Poison{fmt.Sprintf(format, args...)} }

// Limits that are decided here, so that live runs and rebuilds agree. A btree
// entry holds 2,704 bytes: the key and the texts of one index share them.
const (
	maxIndexedText = 2000 // bytes of all texts in one index
	maxKey         = 2000
	maxIndexedKey  = 600 // of rows that have indexes; a stream's id has 400
	// maxItems is the most that a set, a map or the children of a row of one stream
	// hold: each change writes them all. Shared ones have no bound that every order
	// of partitions would agree on.
	maxItems = 10_000
)

// Folder folds the events of one partition. It is not safe for concurrent use.
// What it gives back is valid until the next Begin.
type Folder struct {
	plan     *Plan
	category string
	programs map[string]*program // of that category

	event      *event.Event
	program    *program
	writer     *avro.Schema // of the event, for a fold in Go
	stamp      stamp
	selectors  [][]writerSelector // by program
	values     []avro.Value       // decoded
	derived    []avro.Value
	all        []avro.Value // results of expressions, key by key
	results    []avro.Value // those for the present key
	keys       keyList
	scratch    []byte // of texts that were made of others
	jsonb      strictjson.JSONB
	sums       []cell // by column, of sums that are tried
	tried      []bool
	activation activation
}

type writerSelector struct {
	writer   *avro.Schema
	selector *avro.Selector
}

// NewFolder returns a folder.
func (p *Plan) NewFolder() *Folder {
	f := &Folder{plan: p, selectors: make([][]writerSelector, p.count)}
	f.activation.folder = f
	return f
}

// Uses tells whether the plan uses events of a type.
func (p *Plan) Uses(category, typ string) bool { return p.program(category, typ) != nil }

// program returns what is done with events of a type, by the name that they are
// stored under: that of the type or a former one.
func (p *Plan) program(category, typ string) *program {
	if known := p.programs[category][typ]; known != nil || len(p.former) == 0 {
		return known
	}
	return p.former[[2]string{category, typ}]
}

// Begin decodes what the plan needs of an event, whose value was written with
// the schema writer (nil: nobody knows it), and finds the keys of its rows. The
// event must stay as it is until the last Apply. The error is a [*Poison]. Whatever can be known to be
// wrong without the row is found here, so for a shared plan Apply does not fail:
// an event is folded into all of its rows or into none.
func (f *Folder) Begin(e *event.Event, writer *avro.Schema) (Outcome, error) {
	f.event = e
	f.find(e)
	if f.program == nil {
		return Filtered, nil
	}
	if writer == nil {
		return Applies, poison("the value names no schema that the registry has")
	}
	if f.plan.fold != nil {
		return f.beginGo(writer)
	}
	f.stamp = stamp{}
	f.scratch = f.scratch[:0]
	if err := f.decode(writer); err != nil {
		return Applies, err
	}
	if err := f.makeKeys(); err != nil {
		return Applies, err
	}
	return f.evaluate()
}

// find looks up what the plan does with the event.
func (f *Folder) find(e *event.Event) {
	if f.programs == nil || f.category != e.Category {
		f.programs = f.plan.programs[e.Category]
		f.category = ""
		if f.programs != nil {
			i := slices.Index(f.plan.categories, e.Category)
			f.category = f.plan.categories[i] // not the event's, whose memory is somebody else's
		}
	}
	if f.program = f.programs[e.Type]; f.program == nil && len(f.plan.former) > 0 {
		f.program = f.plan.program(e.Category, e.Type)
	}
}

// decode reads the fields that the plan needs.
func (f *Folder) decode(writer *avro.Schema) error {
	p := f.program
	_, body, err := avro.SplitFrame(f.event.Value)
	if err != nil {
		return poison("%v", err)
	}
	selector, err := f.selector(writer)
	if err != nil {
		return err
	}
	f.values = slices.Grow(f.values[:0], len(p.paths))[:len(p.paths)]
	if err := selector.Select(body, f.values); err != nil {
		return poison("%v", err)
	}
	for i := range f.values {
		if v := &f.values[i]; v.Kind == avro.JSON {
			if err := f.normalize(v); err != nil {
				return poison("the field %v: %v", p.paths[i], err)
			}
		}
	}
	f.derived = f.derived[:0]
	for i := range p.derived {
		d := &p.derived[i]
		v, err := f.transform(f.value(&d.from), d.transforms)
		if err != nil {
			return err
		}
		f.derived = append(f.derived, v)
	}
	return f.checkTexts()
}

// selector returns what reads the fields of the newest version from payloads of a
// writer's schema, through upcasters where there are any.
func (f *Folder) selector(writer *avro.Schema) (*avro.Selector, error) {
	p := f.program
	for _, s := range f.selectors[p.index] {
		if s.writer == writer {
			return s.selector, nil
		}
	}
	upgrade, err := p.typ.Upgrade(writer)
	if err != nil && writer.Name() != p.typ.Name {
		return nil, poison("the value is a %s, the event a %s", writer.Name(), p.typ.Name)
	}
	if err != nil {
		return nil, poison("the schema of the value cannot be read as that of %s: %v", p.typ.Name, err)
	}
	selector, err := upgrade.Selector(p.paths)
	if err != nil {
		return nil, poison("the schema of the value cannot be read as that of %s: %v", p.typ.Name, err)
	}
	f.selectors[p.index] = append(f.selectors[p.index], writerSelector{writer, selector})
	return selector, nil
}

// normalize writes JSON as jsonb will print it, so that a row has one form.
func (f *Folder) normalize(v *avro.Value) error {
	start := len(f.scratch)
	out, err := f.jsonb.Append(f.scratch, v.Bytes)
	if err != nil {
		return err
	}
	f.scratch, v.Bytes = out, out[start:len(out):len(out)]
	return nil
}

// value returns what a source gives for the present event; constants apart.
func (f *Folder) value(s *source) avro.Value {
	e := f.event
	switch s.kind {
	case fromField:
		return f.values[s.index]
	case fromDerived:
		return f.derived[s.index]
	case fromExpression:
		return f.results[s.index]
	case fromTime:
		return avro.Value{Kind: avro.Timestamp, Int: int64(e.Time)}
	case fromRecorded:
		return avro.Value{Kind: avro.Timestamp, Int: int64(e.Recorded)}
	case fromID:
		return avro.Value{Kind: avro.UUID, Bytes: f.keep(func(b []byte) []byte { return e.ID.Append(b) })}
	case fromType:
		return avro.Value{Kind: avro.String, Bytes: f.keep(func(b []byte) []byte { return append(b, f.program.typ.Name...) })}
	case fromStream:
		return avro.Value{Kind: avro.String, Bytes: f.keep(func(b []byte) []byte { return append(b, e.Stream...) })}
	case fromVersion:
		return avro.Value{Kind: avro.Long, Int: e.Version}
	case fromActor:
		if e.Metadata.Actor == "" {
			return avro.Value{}
		}
		return avro.Value{Kind: avro.String, Bytes: f.keep(func(b []byte) []byte { return append(b, e.Metadata.Actor...) })}
	default:
		return avro.Value{}
	}
}

// keep appends to the scratch memory of the event and returns what was appended.
func (f *Folder) keep(add func([]byte) []byte) []byte {
	start := len(f.scratch)
	f.scratch = add(f.scratch)
	return f.scratch[start:len(f.scratch):len(f.scratch)]
}

// cellOf loads a source's value, which aliases the event, into c.
func (f *Folder) cellOf(s *source, c *cell) {
	if s.kind == fromConstant {
		*c = s.value
		return
	}
	v := f.value(s)
	c.load(&v)
}

// checkTexts refuses what Postgres would: text that is too long for an index, or
// metadata that no jsonb holds.
func (f *Folder) checkTexts() error {
	if m := f.event.Metadata.Actor; !utf8.ValidString(m) || bytes.IndexByte([]byte(m), 0) >= 0 {
		return poison("the actor is not valid UTF-8 or holds NUL")
	}
	for _, at := range []event.Time{f.event.Time, f.event.Recorded} {
		if at < event.MinTime || at > event.MaxTime {
			return poison("the event's time is outside the years 0001 to 9999")
		}
	}
	for _, i := range f.program.texts {
		o := &f.program.ops[i]
		if o.source.kind == fromExpression {
			continue // see evaluate
		}
		if err := f.checkText(o); err != nil {
			return err
		}
	}
	return nil
}

func (f *Folder) checkText(o *op) error {
	v, col := f.value(&o.source), &f.plan.columns[o.column]
	if n := len(v.Bytes); n > col.maxText {
		return poison("the field %s is indexed and would have %d bytes: at most %d", col.name, n, col.maxText)
	}
	return nil
}

// Apply folds the event of the last Begin into the row of Key. On an error, which
// is a [*Poison], the row is as it was.
func (f *Folder) Apply(row *Row) error {
	if f.plan.fold != nil {
		return f.applyGo(row)
	}
	p := f.program
	for _, when := range p.removes {
		if f.holds(when) {
			row.remove()
			return nil
		}
	}
	if !f.plan.shared {
		if err := f.check(row); err != nil {
			return err
		}
	}
	if !row.exists {
		row.create()
		f.setKeyFields(row)
	}
	for i := range p.ops {
		if o := &p.ops[i]; f.holds(o.when) {
			f.apply(o, row.cells, row.stamps)
		}
	}
	return nil
}

// holds tells whether a condition is true for the event and the present key.
func (f *Folder) holds(when int) bool { return when == none || f.results[when].Int != 0 }

// check finds out whether the row can take the event, before it is touched: no
// sum leaves its type and nothing grows without a bound.
func (f *Folder) check(row *Row) error {
	p := f.program
	for _, i := range p.grows {
		o := &p.ops[i]
		if row.exists && row.cells[o.column].items.len() >= maxItems && f.holds(o.when) {
			return poison("the field %s holds %d items: no more fit", f.plan.columns[o.column].name, maxItems)
		}
	}
	for _, i := range p.grows {
		if o := &p.ops[i]; o.kind == opChild {
			if err := f.checkChild(row, o); err != nil {
				return err
			}
		}
	}
	if len(p.sums) == 0 {
		return nil
	}
	if f.sums == nil {
		f.sums, f.tried = make([]cell, len(f.plan.columns)), make([]bool, len(f.plan.columns))
	}
	for _, i := range p.sums {
		f.tried[p.ops[i].column] = false
	}
	for _, i := range p.sums {
		o := &p.ops[i]
		if !f.holds(o.when) {
			continue
		}
		sum := &f.sums[o.column]
		if !f.tried[o.column] {
			f.tried[o.column] = true
			if *sum = f.plan.columns[o.column].initial; row.exists {
				*sum = row.cells[o.column]
			}
		}
		f.apply(o, f.sums, nil)
		if err := sum.checkSum(&f.plan.columns[o.column]); err != nil {
			return err
		}
	}
	return nil
}

func (c *cell) checkSum(col *column) error {
	switch {
	case col.typ.kind == avro.Long && col.typ.shape == ShapeValue && c.big != nil:
		return poison("the sum %s would leave 64 bits", col.name)
	case col.typ.kind == avro.Double && math.IsInf(c.float(), 0):
		return poison("the sum %s would not be finite", col.name)
	}
	return nil
}

// checkChild does for a child what check does for the row. Children are few and
// small, so all of their operators on numbers are tried.
func (f *Folder) checkChild(row *Row, o *op) error {
	child := o.typ.children
	tried := make([]cell, len(child.columns))
	initialize(tried, child.columns)
	if row.exists && row.cells[o.column].items != nil {
		f.eachItem(&o.key, func(key []byte) {
			if x := row.cells[o.column].items.get(key); x != nil {
				copy(tried, x.row)
			}
		})
	}
	for i := range o.child {
		c := &o.child[i]
		if col := &child.columns[c.column]; (col.typ.kind == avro.Long || col.typ.kind == avro.Double) && col.typ.shape == ShapeValue && f.holds(c.when) {
			f.apply(c, tried, nil)
			if err := tried[c.column].checkSum(col); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *Folder) setKeyFields(row *Row) {
	for i := range f.plan.fields {
		field := &f.plan.fields[i]
		if !field.Key {
			continue
		}
		to := &row.cells[field.column]
		switch part := f.keys.current(); {
		case part.source == nil: // the whole of the key, as text
			to.assign(&cell{set: true, b: f.Key()})
		case part.each:
			to.assign(&part.item)
		default:
			n := 0
			if len(part.source.parts) > 1 {
				n = slices.Index(f.plan.key.parts, field.Name)
			}
			var v cell
			f.cellOf(&part.source.parts[n], &v)
			to.assign(&v)
		}
	}
}

// apply folds one operator into cells; stamps are nil unless rows are shared.
func (f *Folder) apply(o *op, cells []cell, stamps []stamp) {
	to := &cells[o.column]
	if o.kind >= opInclude {
		f.applyItems(o, to, stamps != nil)
		return
	}
	var v cell
	f.cellOf(&o.source, &v)
	switch o.kind {
	case opAssign:
		if stamps != nil && !f.wins(&stamps[o.column], true) {
			return
		}
		to.assign(&v)
	case opFirst:
		switch {
		case !v.set:
		case stamps != nil:
			if f.wins(&stamps[o.column], false) {
				to.assign(&v)
			}
		case !to.set:
			to.assign(&v)
		}
	case opAdd, opSubtract:
		if !v.set {
			return
		}
		if o.typ.kind == avro.Double {
			to.addFloat(&v, o.kind == opSubtract)
		} else {
			to.add(&v, o.kind == opSubtract)
		}
	case opMin, opMax:
		if !v.set {
			return
		}
		if to.set {
			if c := compare(&v, to, o.typ.kind); c == 0 || c < 0 != (o.kind == opMin) {
				return
			}
		}
		to.assign(&v)
	}
}
