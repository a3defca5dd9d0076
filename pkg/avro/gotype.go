package avro

import (
	"fmt"
	"reflect"
	"strings"
)

// GoType is an event type together with the Go struct that programs use for it.
// It reads payloads of every version and writes the newest. It is safe for
// concurrent use.
type GoType struct {
	typ *EventType
}

// NewGoType checks a Go struct against the newest schema of an event type: every
// field of the schema has a field of the struct, by its `avro` tag, and the
// other way round, and their types fit. The error names the field.
func NewGoType(typ *EventType, t reflect.Type) (*GoType, error) {
	if err := typ.Newest().Fits(t); err != nil {
		return nil, err
	}
	return &GoType{typ}, nil
}

// Fits checks a Go struct against a schema, as [NewGoType] does.
func (s *Schema) Fits(t reflect.Type) error {
	if t.Kind() != reflect.Struct {
		return fmt.Errorf("%s is no struct", t)
	}
	if err := checkGo(s.root, t, ""); err != nil {
		return fmt.Errorf("%s does not fit the schema of %s: %w", t, s.Name(), err)
	}
	// Zeros are the least value of any schema, so they show whether all types fit.
	zeros := make([]byte, s.root.min+1024)
	if err := goCodec.Unmarshal(s.parsed, zeros, reflect.New(t).Interface()); err != nil {
		return fmt.Errorf("%s does not fit the schema of %s: %w", t, s.Name(), err)
	}
	return nil
}

// Encode appends v, a value or pointer of the Go type, to dst as the newest
// schema has it.
func (g *GoType) Encode(dst []byte, v any) ([]byte, error) { return g.typ.Newest().EncodeGo(dst, v) }

// Decode reads a payload that was written with any version of the event type
// into v, a pointer to the Go type. The error wraps [ErrCorrupt] for a payload
// that is not what the writer's schema says, or is an [*UpcastError].
func (g *GoType) Decode(writer *Schema, payload []byte, v any) error {
	upgrade, err := g.typ.Upgrade(writer)
	if err != nil {
		return err
	}
	if !upgrade.same {
		if payload, err = upgrade.Append(nil, payload); err != nil {
			return err
		}
	}
	return g.typ.Newest().DecodeGo(payload, v)
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
