package strictjson

import (
	"encoding"
	"encoding/base64"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
)

// Misfit says that a document, fine as JSON, does not fit the Go type.
type Misfit struct {
	// Pointer is the place in the document.
	Pointer string
	Msg     string
}

func (e *Misfit) Error() string { return e.Msg + " at " + pointerOrRoot(e.Pointer) }

// Unmarshal reads one document into v, a pointer, by the names of `json` tags,
// and refuses more than encoding/json does: what [Reader] refuses, names in
// another case, unknown names, numbers that the type does not hold exactly, and
// a missing field unless its tag says omitempty or omitzero or it is a pointer.
//
// It reads what commands and configurations are made of: structs, slices, maps
// with string keys, strings, booleans, integers (also as strings where they have
// 64 bits), floats, []byte in base64, and types with UnmarshalText. v is as it
// was read so far after an error, which is an [*Error] for what is no acceptable
// JSON, unknown names included, and a [*Misfit] for what does not fit.
func Unmarshal(in []byte, v any) error {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return fmt.Errorf("strictjson: reading into %T, which is no pointer", v)
	}
	r := NewReader(in)
	if err := r.into(p.Elem()); err != nil {
		return err
	}
	return r.End()
}

func (r *Reader) misfit(format string, args ...any) error {
	return &Misfit{Pointer: r.Pointer(), Msg: fmt.Sprintf(format, args...)}
}

// fits refuses a value of another kind, or what is no value.
func (r *Reader) fits(want Kind) error {
	found := r.Peek()
	if found == want {
		return nil
	}
	pointer := r.Pointer()
	if err := r.Skip(); err != nil {
		return err
	}
	return &Misfit{Pointer: pointer, Msg: fmt.Sprintf("%s where %s belongs", found, want)}
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

func (r *Reader) into(v reflect.Value) error {
	if v.Kind() == reflect.Pointer {
		if r.Peek() == Null {
			v.SetZero()
			return r.ReadNull()
		}
		v.Set(reflect.New(v.Type().Elem()))
		return r.into(v.Elem())
	}
	if v.CanAddr() && v.Addr().Type().Implements(textType) {
		return r.intoText(v)
	}
	switch v.Kind() {
	case reflect.Struct:
		return r.intoStruct(v)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return r.intoBytes(v)
		}
		return r.intoSlice(v)
	case reflect.Map:
		return r.intoMap(v)
	case reflect.String:
		if err := r.fits(String); err != nil {
			return err
		}
		s, err := r.ReadString()
		v.SetString(string(s))
		return err
	case reflect.Bool:
		if err := r.fits(Bool); err != nil {
			return err
		}
		b, err := r.ReadBool()
		v.SetBool(b)
		return err
	case reflect.Float32, reflect.Float64:
		return r.intoFloat(v)
	default:
		if v.CanInt() || v.CanUint() {
			return r.intoInteger(v)
		}
		return fmt.Errorf("strictjson: the type %s is not supported", v.Type())
	}
}

func (r *Reader) intoText(v reflect.Value) error {
	if err := r.fits(String); err != nil {
		return err
	}
	s, err := r.ReadString()
	if err != nil {
		return err
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText(s); err != nil {
		return r.misfit("%.60q is no %s", s, v.Type().Name())
	}
	return nil
}

func (r *Reader) intoBytes(v reflect.Value) error {
	if err := r.fits(String); err != nil {
		return err
	}
	s, err := r.ReadString()
	if err != nil {
		return err
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(string(s))
	if err != nil {
		return r.misfit("a string that is not base64")
	}
	v.SetBytes(raw)
	return nil
}

func (r *Reader) intoSlice(v reflect.Value) error {
	if err := r.fits(Array); err != nil {
		return err
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	return r.ReadArray(func(i int) error {
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		return r.into(v.Index(i))
	})
}

func (r *Reader) intoMap(v reflect.Value) error {
	if v.Type().Key().Kind() != reflect.String {
		return fmt.Errorf("strictjson: the type %s is not supported", v.Type())
	}
	if err := r.fits(Object); err != nil {
		return err
	}
	v.Set(reflect.MakeMap(v.Type()))
	return r.ReadObject(func(key []byte) error {
		name := string(key)
		item := reflect.New(v.Type().Elem()).Elem()
		if err := r.into(item); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), item)
		return nil
	})
}

func (r *Reader) intoFloat(v reflect.Value) error {
	if err := r.fits(Number); err != nil {
		return err
	}
	text, err := r.ReadNumber()
	if err != nil {
		return err
	}
	f, err := strconv.ParseFloat(string(text), v.Type().Bits())
	if err != nil || math.IsInf(f, 0) {
		return r.misfit("%s is beyond the range of the type", text)
	}
	v.SetFloat(f)
	return nil
}

func (r *Reader) intoInteger(v reflect.Value) error {
	if r.Peek() == String && v.Type().Bits() == 64 {
		text, err := r.ReadString()
		if err != nil {
			return err
		}
		return r.setInteger(v, string(text))
	}
	if err := r.fits(Number); err != nil {
		return err
	}
	text, err := r.ReadNumber()
	if err != nil {
		return err
	}
	return r.setInteger(v, string(text))
}

func (r *Reader) setInteger(v reflect.Value, text string) error {
	if v.CanUint() {
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil || strconv.FormatUint(n, 10) != text {
			return r.misfit("%.60q is no whole number of %d bits", text, v.Type().Bits())
		}
		v.SetUint(n)
		return nil
	}
	n, err := strconv.ParseInt(text, 10, v.Type().Bits())
	if err != nil || strconv.FormatInt(n, 10) != text {
		return r.misfit("%.60q is no whole number of %d bits", text, v.Type().Bits())
	}
	v.SetInt(n)
	return nil
}

// Field is a field of a struct as it stands in JSON.
type Field struct {
	Name     string
	Index    []int
	Type     reflect.Type
	Required bool
}

// Fields returns the fields of a struct in order: exported ones that are not
// left out by the tag `json:"-"`, those of embedded structs included.
func Fields(t reflect.Type) []Field {
	var list []Field
	for _, f := range reflect.VisibleFields(t) {
		tag, _ := f.Tag.Lookup("json")
		name, options, _ := strings.Cut(tag, ",")
		if !f.IsExported() || tag == "-" || f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct {
			continue
		}
		if name == "" {
			name = f.Name
		}
		optional := f.Type.Kind() == reflect.Pointer || strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
		list = append(list, Field{Name: name, Index: f.Index, Type: f.Type, Required: !optional})
	}
	return list
}

func (r *Reader) intoStruct(v reflect.Value) error {
	if err := r.fits(Object); err != nil {
		return err
	}
	fields := Fields(v.Type())
	seen := make([]bool, len(fields))
	err := r.ReadObject(func(key []byte) error {
		for i, f := range fields {
			if f.Name == string(key) {
				seen[i] = true
				return r.into(v.FieldByIndex(f.Index))
			}
		}
		return r.Errorf("unknown member %q", key)
	})
	if err != nil {
		return err
	}
	for i, f := range fields {
		if f.Required && !seen[i] {
			return r.misfit("the member %q is missing", f.Name)
		}
	}
	return nil
}
