package readmodel

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Filter selects rows that are read as T.
type Filter[T any] struct{ Condition Condition }

// Field is a field of rows that are read as T, whose values are V. It is made by
// [FieldOf], so that a field that T does not have, or a value of another type,
// does not compile.
type Field[T, V any] struct{ name string }

// FieldOf names a field of T by pointing at it:
//
//	email := readmodel.FieldOf(func(u *User) *string { return &u.Email })
//
// The field of the read model has the name of the json tag, else that of the Go
// field with its first letters in lower case (ID is id, LastSeen is lastSeen). It
// panics when the function points at something else than a field of T.
func FieldOf[T, V any](of func(*T) *V) Field[T, V] {
	row := new(T)
	return Field[T, V]{fieldName(reflect.ValueOf(row).Elem(), reflect.ValueOf(of(row)).Pointer(), reflect.TypeFor[V]())}
}

// NullableOf is FieldOf for a field that is a pointer in T because it can be null.
func NullableOf[T, V any](of func(*T) **V) Field[T, V] {
	return Field[T, V]{FieldOf(of).name}
}

// KeyOf is the row's key.
func KeyOf[T any]() Field[T, string] { return Field[T, string]{"key"} }

func fieldName(row reflect.Value, at uintptr, typ reflect.Type) string {
	for i := range row.NumField() {
		field := row.Type().Field(i)
		if row.Field(i).Addr().Pointer() == at && field.Type == typ {
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
				return name
			}
			return lowerFirst(field.Name)
		}
	}
	panic(fmt.Sprintf("readmodel: the function points at no field of %s of the type %s", row.Type(), typ))
}

// lowerFirst lowers the first letter, or all of an initialism but the letter that
// begins the next word.
func lowerFirst(name string) string {
	upper := len(name) - len(strings.TrimLeftFunc(name, unicode.IsUpper))
	if _, last := utf8.DecodeLastRuneInString(name[:upper]); upper < len(name) && upper > last {
		upper -= last
	}
	return strings.ToLower(name[:upper]) + name[upper:]
}

func (f Field[T, V]) where(op operator, values ...V) Filter[T] {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = textOfValue(v)
	}
	return Filter[T]{Condition{op: op, field: f.name, values: texts}}
}

// textOfValue writes a value as the JSON of rows does, texts without quotes.
func textOfValue(v any) string {
	switch v := v.(type) {
	case time.Time:
		return v.UTC().Format("2006-01-02T15:04:05.999999Z")
	case encoding.TextMarshaler:
		text, err := v.MarshalText()
		if err != nil {
			return "\x00" // no value of any field, so the query is refused
		}
		return string(text)
	}
	return fmt.Sprint(v)
}

// Eq selects rows whose field equals a value.
func (f Field[T, V]) Eq(v V) Filter[T] { return f.where(opEq, v) }

// Neq selects rows whose field has another value; null is none.
func (f Field[T, V]) Neq(v V) Filter[T] { return f.where(opNeq, v) }

// Gt selects rows whose field is greater.
func (f Field[T, V]) Gt(v V) Filter[T] { return f.where(opGt, v) }

// Gte selects rows whose field is greater or equal.
func (f Field[T, V]) Gte(v V) Filter[T] { return f.where(opGte, v) }

// Lt selects rows whose field is less.
func (f Field[T, V]) Lt(v V) Filter[T] { return f.where(opLt, v) }

// Lte selects rows whose field is less or equal.
func (f Field[T, V]) Lte(v V) Filter[T] { return f.where(opLte, v) }

// In selects rows whose field has one of the values, at most [MaxValues].
func (f Field[T, V]) In(values ...V) Filter[T] { return f.where(opIn, values...) }

// Like selects rows whose text matches a pattern, with % for any text and _ for
// one character.
func (f Field[T, V]) Like(pattern string) Filter[T] {
	return Filter[T]{Condition{op: opLike, field: f.name, values: []string{pattern}}}
}

// IsNull selects rows whose field has no value.
func (f Field[T, V]) IsNull() Filter[T] {
	return Filter[T]{Condition{op: opIs, field: f.name, values: []string{"null"}}}
}

// Asc orders by the field, nulls last.
func (f Field[T, V]) Asc() Order { return Order{Field: f.name} }

// Desc orders by the field downward, nulls first.
func (f Field[T, V]) Desc() Order { return Order{Field: f.name, Descending: true} }

// AllOf selects the rows that all filters select.
func AllOf[T any](filters ...Filter[T]) Filter[T] { return Filter[T]{And(conditionsOf(filters)...)} }

// AnyOf selects the rows that any of the filters selects.
func AnyOf[T any](filters ...Filter[T]) Filter[T] { return Filter[T]{Or(conditionsOf(filters)...)} }

// NoneOf selects the rows for which all filters are false.
func NoneOf[T any](filters ...Filter[T]) Filter[T] {
	return Filter[T]{Not(Or(conditionsOf(filters)...))}
}

func conditionsOf[T any](filters []Filter[T]) []Condition {
	conditions := make([]Condition, len(filters))
	for i, f := range filters {
		conditions[i] = f.Condition
	}
	return conditions
}
