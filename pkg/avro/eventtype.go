package avro

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// EventType is one type of events in all of its versions, oldest first. It is
// immutable and safe for concurrent use.
type EventType struct {
	Category, Name string
	// Former are the names that it had in older versions, by which events of these
	// are stored.
	Former   []string
	Versions []*Schema

	level    Level
	upcasts  []upcast          // from version i+1 to i+2; nil: Avro's resolution
	numbers  map[[32]byte]int  // versions by fingerprint
	upgrades sync.Map          // *Schema of a writer to *Upgrade
	ways     map[int][]step    // of every version but the newest
	origins  map[string]string // of the newest version's fields, by path
}

// step is a part of the way from an old version to the newest.
type step struct {
	to         *Schema
	resolution *Resolution // or
	upcast     upcast
}

// NewEventType returns the event type that has the given versions, once they fit
// together:
//   - no two of them are the same to readers;
//   - each is compatible with those before it, by the level, back to the last
//     upcaster: what comes before that need not be readable without it;
//   - from every version leads a chain of Avro resolutions and upcasters to the
//     newest.
//
// All that is wrong is reported together.
func NewEventType(category, name string, level Level, versions []*Schema, upcasters ...Upcaster) (*EventType, error) {
	t := &EventType{Category: category, Name: name, Former: formerNames(name, versions), Versions: versions, level: level, upcasts: make([]upcast, len(versions)),
		numbers: make(map[[32]byte]int), ways: make(map[int][]step), origins: originsOf(versions)}
	var failures []error
	for i, schema := range versions {
		fingerprint := schema.Fingerprint()
		if same, ok := t.numbers[fingerprint]; ok {
			failures = append(failures, t.wrong(i+1, "it is the same to readers as version %d, so that they could not tell the events of the two apart", same))
		}
		t.numbers[fingerprint] = i + 1
	}
	for _, u := range upcasters {
		failures = append(failures, t.bind(u))
	}
	for n := 2; n <= len(versions); n++ {
		for _, reason := range level.Check(versions[n-1], t.Comparable(n)) {
			failures = append(failures, t.wrong(n, "%s (%s): give new fields a default, rename by aliases, or register an upcaster from version %d to %d", reason, level, n-1, n))
		}
	}
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	for n := 1; n < len(versions); n++ {
		way, err := t.way(n)
		failures = append(failures, err)
		t.ways[n] = way
	}
	return t, errors.Join(failures...)
}

func (t *EventType) wrong(version int, format string, args ...any) error {
	return fmt.Errorf("events/%s/%s.v%d.avsc: "+format, append([]any{t.Category, t.Versions[version-1].Name(), version}, args...)...)
}

func formerNames(name string, versions []*Schema) (names []string) {
	for _, v := range versions {
		if former := v.Name(); former != name && !slices.Contains(names, former) {
			names = append(names, former)
		}
	}
	return names
}

// bind checks an upcaster against the schemas around it.
func (t *EventType) bind(u Upcaster) error {
	switch {
	case u.From < 1 || u.From >= len(t.Versions):
		return fmt.Errorf("the upcaster of %s/%s from version %d: the newest version is %d", t.Category, t.Name, u.From, len(t.Versions))
	case t.upcasts[u.From-1] != nil:
		return fmt.Errorf("the upcaster of %s/%s from version %d: there are two", t.Category, t.Name, u.From)
	}
	bound, err := u.bind(t.Versions[u.From-1], t.Versions[u.From])
	if err != nil {
		return fmt.Errorf("the upcaster of %s/%s from version %d: %w", t.Category, t.Name, u.From, err)
	}
	t.upcasts[u.From-1] = bound
	return nil
}

// Newest returns the schema of the last version.
func (t *EventType) Newest() *Schema { return t.Versions[len(t.Versions)-1] }

// VersionOf returns which version has a schema, 0 for none.
func (t *EventType) VersionOf(schema *Schema) int {
	if known, ok := t.upgrades.Load(schema); ok {
		return known.(*Upgrade).version
	}
	return t.numbers[schema.Fingerprint()]
}

// Level returns how the versions must fit together.
func (t *EventType) Level() Level { return t.level }

// Upcasts tells whether an upcaster leads from a version to the next.
func (t *EventType) Upcasts(version int) bool { return t.upcasts[version-1] != nil }

// Comparable returns the versions that version n must be compatible with: those
// before it, back to the last upcaster.
func (t *EventType) Comparable(n int) (before []Numbered) {
	for i := n - 1; i >= 1 && t.upcasts[i-1] == nil; i-- {
		before = append([]Numbered{{i, t.Versions[i-1]}}, before...)
	}
	return before
}

// way finds the steps from a version to the newest: straight to the next
// upcaster, or to the newest, by Avro's resolution, and through it. Where a level
// such as BACKWARD allows no straight resolution it goes over the versions
// between.
func (t *EventType) way(from int) (way []step, err error) {
	newest := len(t.Versions)
	for at := from; at < newest; {
		if u := t.upcasts[at-1]; u != nil {
			at++
			way = append(way, step{to: t.Versions[at-1], upcast: u})
			continue
		}
		end := at + 1 // the version with the next upcaster, or the newest
		for end < newest && t.upcasts[end-1] == nil {
			end++
		}
		var resolution *Resolution
		for ; end > at; end-- {
			if resolution, err = Resolve(t.Versions[at-1], t.Versions[end-1]); err == nil {
				break
			}
		}
		if err != nil {
			return nil, t.wrong(from, "nothing leads from its data to version %d, so no reader could make sense of it: %w: register an upcaster from version %d to %d", newest, err, at, at+1)
		}
		at = end
		way = append(way, step{to: t.Versions[at-1], resolution: resolution})
	}
	return way, nil
}

// Upgrade is how payloads of one schema are read as the newest version of their
// event type: through upcasters, as far as there are any between the two, and
// Avro's resolution. Every reader of events uses one, so all see the same; the
// stored bytes stay as they are. It is immutable and safe for concurrent use.
type Upgrade struct {
	version int
	before  []step // all but the last resolution
	last    *Resolution
	same    bool // nothing is to be done
}

// Upgrade returns how payloads of a writer's schema are read. A schema that is
// none of the versions, such as that of a newer program, is read by Avro's
// resolution alone. The error is a [*SchemaError].
func (t *EventType) Upgrade(writer *Schema) (*Upgrade, error) {
	if known, ok := t.upgrades.Load(writer); ok {
		return known.(*Upgrade), nil
	}
	u := &Upgrade{version: t.VersionOf(writer)}
	from, way := writer, t.ways[u.version]
	if n := len(way); n > 0 && way[n-1].resolution != nil {
		way = way[:n-1] // so that readers that want no more than a few fields decode no more
	}
	if len(way) > 0 {
		u.before, from = way, way[len(way)-1].to
	}
	var err error
	if u.last, err = Resolve(from, t.Newest()); err != nil {
		return nil, err
	}
	u.same = len(u.before) == 0 && u.last.root.same
	t.upgrades.Store(writer, u)
	return u, nil
}

// Version returns which version the payloads are of; 0 for one that is not in the
// contracts.
func (u *Upgrade) Version() int { return u.version }

// bring takes the steps before the last resolution. Its result aliases payload if
// there are none.
func (u *Upgrade) bring(payload []byte) (_ []byte, err error) {
	for _, s := range u.before {
		if s.upcast != nil {
			payload, err = s.upcast(payload)
		} else {
			payload, err = s.resolution.Append(nil, payload)
		}
		if err != nil {
			return nil, err
		}
	}
	return payload, nil
}

// Append appends a payload to dst as the newest version has it. The error wraps
// [ErrCorrupt] or is an [*UpcastError].
func (u *Upgrade) Append(dst, payload []byte) ([]byte, error) {
	payload, err := u.bring(payload)
	if err != nil {
		return nil, err
	}
	return u.last.Append(dst, payload)
}

// AppendJSON appends a payload to dst as JSON of the newest version, see
// [Schema.AppendJSON].
func (u *Upgrade) AppendJSON(dst, payload []byte) ([]byte, error) {
	payload, err := u.bring(payload)
	if err != nil {
		return nil, err
	}
	return u.last.AppendJSON(dst, payload)
}

// Selector returns a selector that reads fields of the newest version, see
// [NewSelector].
func (u *Upgrade) Selector(paths [][]string) (*Selector, error) {
	s, err := newSelector(u.last, paths)
	if err == nil && len(u.before) > 0 {
		s.bring = u.bring
	}
	return s, err
}
