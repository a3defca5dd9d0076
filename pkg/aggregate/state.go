package aggregate

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
)

var (
	rootType        = reflect.TypeFor[Root]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
)

// checkState refuses a state that would not survive a snapshot: one with fields
// that JSON leaves out.
func checkState(t reflect.Type, path string) error {
	return walkState(t, path, nil, func(reflect.Type, string, reflect.StructTag) {})
}

// describeState writes all of a state's type that its JSON depends on.
func describeState(w io.Writer, t reflect.Type) {
	walkState(t, "", nil, func(t reflect.Type, path string, tag reflect.StructTag) { // it was checked before
		fmt.Fprintf(w, "%s %s %s %q\n", path, t, t.Kind(), tag.Get("json"))
	})
}

func walkState(t reflect.Type, path string, open []reflect.Type, visit func(reflect.Type, string, reflect.StructTag)) error {
	for _, o := range open {
		if o == t { // it contains itself by a pointer or a slice; it was visited
			return nil
		}
	}
	if p := reflect.PointerTo(t); p.Implements(textMarshaler) && p.Implements(textUnmarshaler) || p.Implements(jsonMarshaler) && p.Implements(jsonUnmarshaler) {
		return nil // it takes care of itself, like time.Time
	}
	open = append(open, t)
	switch t.Kind() {
	case reflect.Struct:
		return walkFields(t, path, open, visit)
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return walkState(t.Elem(), path+"[]", open, visit)
	case reflect.Map:
		return walkState(t.Elem(), path+"{}", open, visit)
	case reflect.Chan, reflect.Func, reflect.Interface, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128, reflect.Uintptr:
		return fmt.Errorf("the field %s has the type %s, which a snapshot cannot hold", path, t)
	}
	return nil
}

func walkFields(t reflect.Type, path string, open []reflect.Type, visit func(reflect.Type, string, reflect.StructTag)) error {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Type == rootType {
			continue
		}
		at := f.Name
		if path != "" {
			at = path + "." + f.Name
		}
		if !f.IsExported() || f.Tag.Get("json") == "-" {
			return fmt.Errorf("the field %s is not in the state's JSON, so a snapshot would lose it: export it", at)
		}
		visit(f.Type, at, f.Tag)
		if err := walkState(f.Type, at, open, visit); err != nil {
			return err
		}
	}
	return nil
}
