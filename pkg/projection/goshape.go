package projection

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// goShape is a Go struct as rows: its exported fields in order, each a column.
type goShape struct {
	typ    reflect.Type
	fields []goField
	types  goTypes
}

type goField struct {
	name  string // of the row's field
	index []int
	typ   reflect.Type // without its pointer
	ptr   bool
	value valueType
	field reflect.StructField
}

var (
	timeType  = reflect.TypeFor[time.Time]()
	instant   = reflect.TypeFor[event.Time]()
	idType    = reflect.TypeFor[event.ID]()
	bytesType = reflect.TypeFor[[]byte]()
)

// shapeOf reads the exported fields of a struct; embedded structs count as if
// their fields stood there. The error names the field.
func shapeOf(t reflect.Type) (*goShape, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%s is no struct", t)
	}
	s := &goShape{typ: t}
	for _, f := range reflect.VisibleFields(t) {
		if f.Anonymous || !f.IsExported() || f.Tag.Get("json") == "-" || f.Tag.Get("refold") == "-" || throughPointer(t, f.Index) {
			continue
		}
		g := goField{name: rowName(f), index: f.Index, typ: f.Type, field: f}
		if !fieldName.MatchString(g.name) || reserved[g.name] {
			return nil, fmt.Errorf("the field %s: %q cannot name a field of a row: give it another by a json tag", f.Name, g.name)
		}
		for _, other := range s.fields {
			if other.name == g.name {
				return nil, fmt.Errorf("the fields %s and %s are both %q in rows", other.field.Name, f.Name, g.name)
			}
		}
		if f.Type.Kind() == reflect.Pointer {
			g.typ, g.ptr = f.Type.Elem(), true
		}
		var ok bool
		if g.value, ok = goValueType(g.typ); !ok {
			return nil, fmt.Errorf("the field %s: no value of a row is a %s", f.Name, f.Type)
		}
		s.fields = append(s.fields, g)
	}
	if len(s.fields) == 0 {
		return nil, fmt.Errorf("%s has no exported fields", t)
	}
	return s, nil
}

func throughPointer(t reflect.Type, index []int) bool {
	for _, i := range index[:len(index)-1] {
		if t = t.Field(i).Type; t.Kind() == reflect.Pointer {
			return true
		}
	}
	return false
}

// rowName is a struct field's name in rows: that of its json tag, else its own in
// lower case up to the second word.
func rowName(f reflect.StructField) string {
	if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
		return name
	}
	runes := []rune(f.Name)
	for i := range runes {
		if i > 0 && i+1 < len(runes) && unicode.IsLower(runes[i+1]) || unicode.IsLower(runes[i]) {
			break
		}
		runes[i] = unicode.ToLower(runes[i])
	}
	return string(runes)
}

// goValueType is the type of a row's value that a Go type holds.
func goValueType(t reflect.Type) (valueType, bool) {
	switch t {
	case timeType, instant:
		return valueType{kind: avro.Timestamp}, true
	case idType:
		return valueType{kind: avro.UUID}, true
	case bytesType:
		return valueType{kind: avro.Bytes}, true
	}
	switch t.Kind() {
	case reflect.Bool:
		return valueType{kind: avro.Bool}, true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return valueType{kind: avro.Long}, true
	case reflect.Float32, reflect.Float64:
		return valueType{kind: avro.Double}, true
	case reflect.String:
		return valueType{kind: avro.String}, true
	case reflect.Slice:
		items, ok := goValueType(t.Elem())
		if items.shape != ShapeValue || items.kind == avro.Bytes {
			items.kind = avro.Null
		}
		return valueType{kind: avro.JSON, shape: ShapeList, items: items.kind}, ok
	case reflect.Map:
		return valueType{kind: avro.JSON, shape: ShapeDocument}, t.Key().Kind() == reflect.String
	case reflect.Struct:
		return valueType{kind: avro.JSON, shape: ShapeDocument}, true
	}
	return valueType{}, false
}

func (s *goShape) new() reflect.Value { return reflect.New(s.typ).Elem() }

// fill sets a struct's fields from cells; null leaves a field zero.
func (s *goShape) fill(to reflect.Value, cells []cell) error {
	for i := range s.fields {
		f, c := &s.fields[i], &cells[i]
		if !c.set {
			continue
		}
		v := to.FieldByIndex(f.index)
		if f.ptr {
			v.Set(reflect.New(f.typ))
			v = v.Elem()
		}
		switch f.value.kind {
		case avro.Bool:
			v.SetBool(c.i != 0)
		case avro.Long:
			if v.CanInt() {
				v.SetInt(c.i)
			} else {
				v.SetUint(uint64(c.i))
			}
		case avro.Double:
			v.SetFloat(c.float())
		case avro.String:
			v.SetString(string(c.b))
		case avro.Timestamp:
			if f.typ == instant {
				v.SetInt(c.i)
			} else {
				v.Set(reflect.ValueOf(event.Time(c.i).Std()))
			}
		case avro.UUID:
			id, err := event.ParseID(string(c.b))
			if err != nil {
				return fmt.Errorf("the field %s: %w", f.name, err)
			}
			v.Set(reflect.ValueOf(id))
		case avro.Bytes:
			v.SetBytes(bytes.Clone(c.b))
		default:
			if err := json.Unmarshal(c.b, v.Addr().Interface()); err != nil {
				return fmt.Errorf("the field %s: %w", f.name, err)
			}
		}
	}
	return nil
}

// read sets cells from a struct's fields and refuses what no row holds.
func (s *goShape) read(from reflect.Value, cells []cell, jsonb *strictjson.JSONB) error {
	for i := range s.fields {
		f, c := &s.fields[i], &cells[i]
		c.clear()
		v := from.FieldByIndex(f.index)
		if f.ptr {
			if v.IsNil() {
				continue
			}
			v = v.Elem()
		}
		c.set = true
		if err := c.readGo(f, v, jsonb); err != nil {
			return fmt.Errorf("the field %s: %w", f.name, err)
		}
	}
	return nil
}

func (c *cell) readGo(f *goField, v reflect.Value, jsonb *strictjson.JSONB) error {
	switch f.value.kind {
	case avro.Bool:
		if v.Bool() {
			c.i = 1
		}
	case avro.Long:
		if v.CanInt() {
			c.i = v.Int()
		} else {
			c.i = int64(v.Uint())
		}
	case avro.Double:
		if math.IsNaN(v.Float()) || math.IsInf(v.Float(), 0) {
			return fmt.Errorf("%v is no number", v.Float())
		}
		c.setFloat(positiveZero(v.Float()))
	case avro.String:
		c.b = append(c.b, v.String()...)
		if !utf8.Valid(c.b) || bytes.IndexByte(c.b, 0) >= 0 {
			return errText
		}
	case avro.Timestamp:
		return c.readTime(f, v)
	case avro.UUID:
		id := v.Interface().(event.ID)
		if c.set = !id.IsZero(); c.set {
			c.b = id.Append(c.b)
		}
	case avro.Bytes:
		c.set = !v.IsNil()
		c.b = append(c.b, v.Bytes()...)
	default:
		return c.readJSON(v, jsonb)
	}
	return nil
}

// readTime takes a time; the zero of time.Time is null.
func (c *cell) readTime(f *goField, v reflect.Value) error {
	var at event.Time
	if f.typ == instant {
		at = event.Time(v.Int())
	} else {
		t := v.Interface().(time.Time)
		if c.set = !t.IsZero(); !c.set {
			return nil
		}
		at = event.TimeOf(t)
	}
	if at < event.MinTime || at > event.MaxTime {
		return errors.New("the time is outside the years 0001 to 9999")
	}
	c.i = int64(at)
	return nil
}

func (c *cell) readJSON(v reflect.Value, jsonb *strictjson.JSONB) error {
	if k := v.Kind(); (k == reflect.Slice || k == reflect.Map) && v.IsNil() {
		c.set = false
		return nil
	}
	raw, err := json.Marshal(v.Interface())
	if err != nil {
		return err
	}
	if c.b, err = jsonb.Append(c.b, raw); err != nil {
		return err
	}
	return validText(c.b)
}

// validText refuses what no jsonb holds.
func validText(b []byte) error {
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 || holdsEscapedNUL(b) {
		return errText
	}
	return nil
}

var errText = errors.New("text that is not valid UTF-8 or holds NUL")

// holdsEscapedNUL tells whether NUL stands in JSON.
func holdsEscapedNUL(b []byte) bool {
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		if bytes.HasPrefix(b[i+1:], []byte("u0000")) {
			return true
		}
		i++ // what is escaped
	}
	return false
}

// goTypes keeps how events are decoded into Go structs. It is safe for concurrent
// use.
type goTypes struct {
	mu    sync.RWMutex
	known map[goTypeKey]*avro.GoType
}

type goTypeKey struct {
	event *avro.EventType
	typ   reflect.Type
}

func (g *goTypes) of(event *avro.EventType, v any) (*avro.GoType, error) {
	t := reflect.TypeOf(v)
	if t == nil || t.Kind() != reflect.Pointer {
		return nil, fmt.Errorf("decoding into %T: want a pointer to a struct", v)
	}
	key := goTypeKey{event, t.Elem()}
	g.mu.RLock()
	typ := g.known[key]
	g.mu.RUnlock()
	if typ != nil {
		return typ, nil
	}
	typ, err := avro.NewGoType(event, t.Elem())
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known == nil {
		g.known = make(map[goTypeKey]*avro.GoType)
	}
	g.known[key] = typ
	return typ, nil
}
