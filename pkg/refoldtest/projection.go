package refoldtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"testing"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/projection"
)

// Projection tests a definition. It is safe for concurrent use.
type Projection struct {
	kit  *kit
	name string
	plan *projection.Plan
}

// NewProjection compiles a definition of a folder.
func NewProjection(t testing.TB, fsys fs.FS, name string, upcasters ...avro.Upcaster) *Projection {
	t.Helper()
	k, err := newKit(fsys, upcasters)
	if err != nil {
		t.Fatal(err)
	}
	plans, err := k.compile()
	if err != nil {
		t.Fatal(err)
	}
	if plans[name] == nil {
		t.Fatalf("there is no projection %s", name)
	}
	return &Projection{kit: k, name: name, plan: plans[name]}
}

func (k *kit) compile() (map[string]*projection.Plan, error) {
	definitions, err := projection.LoadDefinitions(k.fsys)
	if err != nil {
		return nil, err
	}
	plans := make(map[string]*projection.Plan)
	for _, d := range definitions {
		if plans[d.Name], err = projection.Compile(d, k.contracts); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

// Given folds events.
func (p *Projection) Given(t testing.TB, events ...Event) *Rows {
	t.Helper()
	list, err := p.kit.given(events)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := p.kit.fold(p.plan, list)
	if err != nil {
		t.Fatal(err)
	}
	return &Rows{t: t, name: p.name, rows: rows}
}

// fold returns the rows of events, as JSON by key.
func (k *kit) fold(plan *projection.Plan, events []event.Event) (map[string][]byte, error) {
	folder, rows := plan.NewFolder(), make(map[string]*projection.Row)
	for i := range events {
		e := &events[i]
		outcome, err := folder.Begin(e, k.writer(e.Value))
		if err == nil && outcome == projection.Applies {
			for key := range folder.Keys() {
				if rows[string(key)] == nil {
					rows[string(key)] = plan.NewRow()
				}
				err = errors.Join(err, folder.Apply(rows[string(key)]))
			}
		}
		if err != nil {
			return nil, fmt.Errorf("event %d, %s of %s/%s, cannot be applied: %w", i+1, e.Type, e.Category, e.Stream, err)
		}
	}
	out := make(map[string][]byte)
	for key, row := range rows {
		if row.Exists() {
			out[key] = row.AppendData(nil)
		}
	}
	return out, nil
}

// Rows is what became of events.
type Rows struct {
	t    testing.TB
	name string
	rows map[string][]byte
}

// Expect expects a row in which the fields of a JSON object have its values.
// Fields that it does not name may have any. null expects that there is no row.
func (r *Rows) Expect(key, fields string) *Rows {
	r.t.Helper()
	if problem := compareRow(r.name, key, r.rows, []byte(fields)); problem != "" {
		r.t.Fatal(problem)
	}
	return r
}

// ExpectKeys expects rows with exactly these keys.
func (r *Rows) ExpectKeys(keys ...string) *Rows {
	r.t.Helper()
	want, got := slices.Sorted(slices.Values(keys)), slices.Sorted(maps.Keys(r.rows))
	if !slices.Equal(want, got) {
		r.t.Fatalf("%s has other rows than expected:\n%s", r.name, diff(want, got))
	}
	return r
}

// compareRow returns how a row differs from the fields that are expected, or "".
func compareRow(name, key string, rows map[string][]byte, fields []byte) string {
	want, err := membersOf(fields)
	if err != nil {
		return fmt.Sprintf("%s %s: what is expected is no JSON object: %v", name, key, err)
	}
	row, ok := rows[key]
	if want == nil {
		if ok {
			return fmt.Sprintf("%s has a row %s: %s", name, key, row)
		}
		return ""
	}
	if !ok {
		return fmt.Sprintf("%s has no row %s; there are %q", name, key, slices.Sorted(maps.Keys(rows)))
	}
	got, err := membersOf(row)
	if err != nil {
		return fmt.Sprintf("%s %s: the row is no JSON object: %v", name, key, err)
	}
	var left, right []string
	for _, field := range slices.Sorted(maps.Keys(want)) {
		left = append(left, field+": "+string(want[field]))
		if value, ok := got[field]; ok {
			right = append(right, field+": "+string(value))
		}
	}
	if slices.Equal(left, right) {
		return ""
	}
	return fmt.Sprintf("%s %s differs:\n%s", name, key, diff(left, right))
}

// membersOf returns an object's members, each in a form of its own; nil for null.
func membersOf(raw []byte) (map[string][]byte, error) {
	var members map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&members); err != nil {
		return nil, err
	}
	if members == nil {
		return nil, nil
	}
	out := make(map[string][]byte, len(members))
	for name, value := range members {
		var buf bytes.Buffer
		e := json.NewEncoder(&buf)
		e.SetEscapeHTML(false)
		if err := e.Encode(value); err != nil {
			return nil, err
		}
		out[name] = bytes.TrimSpace(buf.Bytes())
	}
	return out, nil
}
