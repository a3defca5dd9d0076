package avro

import (
	"fmt"
	"reflect"
	"strings"
	"sync"

	"github.com/refoldhq/refold/pkg/strictjson"
)

// GoType is an event type together with the Go struct that programs use for it.
// It reads payloads of every version and writes the newest. It is safe for
// concurrent use.
type GoType struct {
	newest *Schema

	mu  sync.RWMutex
	old map[*Schema]*Resolution // nil for a schema that is the newest
}

// NewGoType checks a Go struct against the newest schema of an event type: every
// field of the schema has a field of the struct, by its `avro` tag, and the
// other way round, and their types fit. The error names the field.
func NewGoType(newest *Schema, t reflect.Type) (*GoType, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%s is no struct", t)
	}
	if err := checkGo(newest.root, t, ""); err != nil {
		return nil, fmt.Errorf("%s does not fit the schema of %s: %w", t, newest.Name(), err)
	}
	// Zeros are the least value of any schema, so they show whether all types fit.
	zeros := make([]byte, newest.root.min+1024)
	if err := goCodec.Unmarshal(newest.parsed, zeros, reflect.New(t).Interface()); err != nil {
		return nil, fmt.Errorf("%s does not fit the schema of %s: %w", t, newest.Name(), err)
	}
	return &GoType{newest: newest, old: make(map[*Schema]*Resolution)}, nil
}

// Encode appends v, a value or pointer of the Go type, to dst as the newest
// schema has it.
func (g *GoType) Encode(dst []byte, v any) ([]byte, error) { return g.newest.EncodeGo(dst, v) }

// Decode reads a payload that was written with any version of the event type
// into v, a pointer to the Go type. The error wraps [ErrCorrupt] for a payload
// that is not what the writer's schema says.
func (g *GoType) Decode(writer *Schema, payload []byte, v any) error {
	resolution, err := g.resolution(writer)
	if err != nil {
		return err
	}
	if resolution == nil {
		return g.newest.DecodeGo(payload, v)
	}
	doc, err := resolution.AppendJSON(nil, payload)
	if err != nil {
		return err
	}
	current, err := g.newest.EncodeJSON(nil, strictjson.NewReader(doc))
	if err != nil {
		return fmt.Errorf("reading an old %s as the newest: %w", g.newest.Name(), err)
	}
	return g.newest.DecodeGo(current, v)
}

// resolution returns how payloads of a writer are read, nil for as they are.
func (g *GoType) resolution(writer *Schema) (*Resolution, error) {
	if writer == g.newest {
		return nil, nil
	}
	g.mu.RLock()
	known, ok := g.old[writer]
	g.mu.RUnlock()
	if ok {
		return known, nil
	}
	var resolution *Resolution
	if writer.Fingerprint() != g.newest.Fingerprint() {
		var err error
		if resolution, err = Resolve(writer, g.newest); err != nil {
			return nil, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.old[writer] = resolution
	return resolution, nil
}

// checkGo compares the fields of records, which the codec does not: it leaves
// out what the struct lacks, and a value that has no field in the schema would
// be lost without a word.
func checkGo(n *node, t reflect.Type, path string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch n.kind {
	case Record:
		if t.Kind() != reflect.Struct {
			return nil // a map, or what the codec will refuse
		}
		return checkGoRecord(n, t, path)
	case Array:
		if t.Kind() == reflect.Slice {
			return checkGo(n.items, t.Elem(), path+"[]")
		}
	case Map:
		if t.Kind() == reflect.Map {
			return checkGo(n.items, t.Elem(), path+"{}")
		}
	case Union:
		if t.Kind() == reflect.Interface {
			return nil
		}
		for _, b := range n.branches {
			if err := checkGo(b, t, path); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkGoRecord(n *node, t reflect.Type, path string) error {
	fields := make(map[string]reflect.Type)
	for _, f := range reflect.VisibleFields(t) {
		if f.Anonymous || f.Tag.Get("avro") == "-" {
			continue
		}
		name, tagged := f.Tag.Lookup("avro")
		if !tagged {
			return fmt.Errorf("the field %s has no `avro` tag", join(path, f.Name))
		}
		if !f.IsExported() {
			return fmt.Errorf("the field %s is not exported", join(path, f.Name))
		}
		name, _, _ = strings.Cut(name, ",")
		fields[name] = f.Type
	}
	for _, f := range n.fields {
		typ, ok := fields[f.name]
		if !ok {
			return fmt.Errorf("the struct has no field with the tag `avro:%q`", join(path, f.name))
		}
		if err := checkGo(f.node, typ, join(path, f.name)); err != nil {
			return err
		}
		delete(fields, f.name)
	}
	for name := range fields {
		return fmt.Errorf("the schema has no field %s", join(path, name))
	}
	return nil
}
