package aggregate

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
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
func checkState(t reflect.Type, path string) error { return checkType(t, path, nil) }

func checkType(t reflect.Type, path string, open []reflect.Type) error {
	if marshalsItself(t) || slices.Contains(open, t) { // it takes care of itself, like time.Time; or it contains itself by a pointer or a slice
		return nil
	}
	open = append(open, t)
	switch t.Kind() {
	case reflect.Struct:
		return checkFields(t, path, open)
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return checkType(t.Elem(), path+"[]", open)
	case reflect.Map:
		return checkType(t.Elem(), path+"{}", open)
	case reflect.Chan, reflect.Func, reflect.Interface, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128, reflect.Uintptr:
		return fmt.Errorf("the field %s has the type %s, which a snapshot cannot hold", path, t)
	}
	return nil
}

func checkFields(t reflect.Type, path string, open []reflect.Type) error {
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
		if err := checkType(f.Type, at, open); err != nil {
			return err
		}
	}
	return nil
}

func marshalsItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(textMarshaler) && p.Implements(textUnmarshaler) || p.Implements(jsonMarshaler) && p.Implements(jsonUnmarshaler)
}

// describeState writes all of a state's type that its JSON depends on. What a type
// that marshals itself keeps is described too, though its functions decide what of it
// is in the JSON: a change there costs a fold, one that is missed a wrong state.
func describeState(w io.Writer, t reflect.Type) { describeType(w, t, make(map[reflect.Type]int)) }

// describeType describes each type once, and names it by its number from then on:
// there are types that contain themselves, and those of libraries share a lot.
func describeType(w io.Writer, t reflect.Type, seen map[reflect.Type]int) {
	if n, ok := seen[t]; ok {
		fmt.Fprintf(w, "type %d\n", n)
		return
	}
	seen[t] = len(seen)
	fmt.Fprintf(w, "%s %s, marshals itself: %t\n", t, t.Kind(), marshalsItself(t))
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Type == rootType {
				continue
			}
			fmt.Fprintf(w, "%s %q, embedded: %t: ", f.Name, f.Tag.Get("json"), f.Anonymous) // JSON has the fields of an embedded struct beside the others
			describeType(w, f.Type, seen)
		}
		fmt.Fprintln(w, "end")
	case reflect.Array:
		fmt.Fprintf(w, "%d ", t.Len())
		describeType(w, t.Elem(), seen)
	case reflect.Pointer, reflect.Slice:
		describeType(w, t.Elem(), seen)
	case reflect.Map:
		describeType(w, t.Key(), seen)
		describeType(w, t.Elem(), seen)
	}
}
