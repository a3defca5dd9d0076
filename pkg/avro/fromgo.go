package avro

import (
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"time"
)

// SchemaFromGo returns the schema, as text, that fits a Go struct whose fields are
// named by `avro` tags: for those who begin with code. The struct is what
// [NewGoType] takes with the schema then.
//
// bool, int32, int64, float32, float64, string and []byte are themselves, and int a
// long; time.Time is a timestamp in microseconds, time.Duration a time of day; a
// pointer may be null and is so by default; slices, arrays of bytes, maps with
// string keys and structs nest. Further tags: `default:"0"` gives a default, in
// JSON, without which a field cannot come into a version later; `doc:"..."` says
// what it means; `aliases:"old,older"` gives its former names; `decimal:"12,2"`, on
// a *big.Rat, precision and scale.
func SchemaFromGo(t reflect.Type, name, namespace string) (string, error) {
	g := fromGo{records: make(map[string]reflect.Type)}
	record, err := g.record(t, name)
	if err != nil {
		return "", fmt.Errorf("making the schema of %s: %w", t, err)
	}
	if namespace != "" {
		record.Namespace = namespace
	}
	raw, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return "", err
	}
	schema, err := Parse(raw)
	if err == nil {
		err = schema.Fits(t)
	}
	return string(raw) + "\n", err
}

type fromGo struct {
	records map[string]reflect.Type
}

type goRecord struct {
	Type      string    `json:"type"`
	Name      string    `json:"name"`
	Namespace string    `json:"namespace,omitempty"`
	Fields    []goField `json:"fields"`
}

type goField struct {
	Name    string          `json:"name"`
	Type    any             `json:"type"`
	Aliases []string        `json:"aliases,omitempty"`
	Default json.RawMessage `json:"default,omitempty"`
	Doc     string          `json:"doc,omitempty"`
}

func (g *fromGo) record(t reflect.Type, name string) (*goRecord, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%s is no struct", t)
	}
	r := &goRecord{Type: "record", Name: name, Fields: []goField{}}
	for _, f := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("avro"), ",")
		switch {
		case f.Anonymous || tag == "-":
			continue
		case tag == "":
			return nil, fmt.Errorf("the field %s has no `avro` tag", f.Name)
		}
		field, err := g.field(f, tag)
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", f.Name, err)
		}
		r.Fields = append(r.Fields, field)
	}
	return r, nil
}

func (g *fromGo) field(f reflect.StructField, name string) (goField, error) {
	typ, err := g.typeOf(f.Type, f.Tag)
	field := goField{Name: name, Type: typ, Doc: f.Tag.Get("doc")}
	if aliases := f.Tag.Get("aliases"); aliases != "" {
		field.Aliases = strings.Split(aliases, ",")
	}
	text, given := f.Tag.Lookup("default")
	_, decimal := f.Tag.Lookup("decimal")
	switch {
	case given && json.Valid([]byte(text)):
		field.Default = json.RawMessage(text)
	case given: // a string need not be quoted twice
		field.Default, _ = json.Marshal(text)
	case f.Type.Kind() == reflect.Pointer && !decimal:
		field.Default = json.RawMessage("null")
	}
	return field, err
}

type logical map[string]any

var fromGoKinds = map[reflect.Kind]string{reflect.Bool: "boolean", reflect.Int32: "int", reflect.Int64: "long", reflect.Int: "long", reflect.Float32: "float", reflect.Float64: "double", reflect.String: "string"}

func (g *fromGo) typeOf(t reflect.Type, tag reflect.StructTag) (any, error) {
	switch t {
	case reflect.TypeFor[time.Time]():
		return logical{"type": "long", "logicalType": "timestamp-micros"}, nil
	case reflect.TypeFor[time.Duration]():
		return logical{"type": "long", "logicalType": "time-micros"}, nil
	case reflect.TypeFor[*big.Rat]():
		var precision, scale int
		if _, err := fmt.Sscanf(tag.Get("decimal"), "%d,%d", &precision, &scale); err != nil {
			return nil, fmt.Errorf("a decimal needs a tag such as `decimal:\"12,2\"`, precision and scale")
		}
		return logical{"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}, nil
	}
	if name := fromGoKinds[t.Kind()]; name != "" {
		return name, nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		typ, err := g.typeOf(t.Elem(), tag)
		return []any{"null", typ}, err
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes", nil
		}
		items, err := g.typeOf(t.Elem(), tag)
		return logical{"type": "array", "items": items}, err
	case reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return logical{"type": "fixed", "name": fmt.Sprintf("Bytes%d", t.Len()), "size": t.Len()}, nil
		}
	case reflect.Map:
		if t.Key().Kind() == reflect.String {
			values, err := g.typeOf(t.Elem(), tag)
			return logical{"type": "map", "values": values}, err
		}
	case reflect.Struct:
		return g.nested(t)
	}
	return nil, fmt.Errorf("there is no Avro type for %s", t)
}

// nested returns a record inside another, by its name from the second time on.
func (g *fromGo) nested(t reflect.Type) (any, error) {
	if known, ok := g.records[t.Name()]; ok {
		if known != t {
			return nil, fmt.Errorf("%s and %s would be one record", known, t)
		}
		return t.Name(), nil
	}
	if t.Name() == "" {
		return nil, fmt.Errorf("a struct without a name cannot be a record")
	}
	g.records[t.Name()] = t
	return g.record(t, t.Name())
}
