package avro

import (
	"fmt"
	"reflect"
)

// Upcaster makes data of one version of an event type into data of the next
// version: what Avro's resolution cannot express, such as a name that is split in
// two or an amount in another unit. It is made by [Upcast] and handed to
// [LoadContracts]; every reader goes through it then.
type Upcaster struct {
	// Category and Type are whose data it takes, From is the version of that data.
	Category, Type string
	From           int

	bind func(old, new *Schema) (upcast, error)
}

// upcast makes a payload of a version into one of the next.
type upcast func(payload []byte) ([]byte, error)

// UpcastError says that an upcaster refused data, or panicked.
type UpcastError struct {
	Type string
	From int
	Err  error
}

func (e *UpcastError) Error() string {
	return fmt.Sprintf("upcasting %s from version %d to %d: %v", e.Type, e.From, e.From+1, e.Err)
}

func (e *UpcastError) Unwrap() error { return e.Err }

// Upcast returns the upcaster of an event type from one version to the next. Old
// and New are structs whose fields are named by `avro` tags and fit the schemas of
// the two versions.
//
// f must be a pure function: the same data always gives the same, whenever and
// wherever it is read, and f changes nothing else. It is called at each reading,
// by many goroutines at once; what is stored stays as it is. Data that f refuses
// with an error cannot be read: projections park its stream.
func Upcast[Old, New any](category, eventType string, from int, f func(Old) (New, error)) Upcaster {
	return Upcaster{Category: category, Type: eventType, From: from, bind: func(old, new *Schema) (upcast, error) {
		if err := old.Fits(reflect.TypeFor[Old]()); err != nil {
			return nil, err
		}
		if err := new.Fits(reflect.TypeFor[New]()); err != nil {
			return nil, err
		}
		return func(payload []byte) ([]byte, error) {
			var before Old
			if err := old.DecodeGo(payload, &before); err != nil {
				return nil, err
			}
			after, err := pure(f, before)
			if err == nil {
				payload, err = new.EncodeGo(nil, &after)
			}
			if err != nil {
				return nil, &UpcastError{eventType, from, err}
			}
			return payload, nil
		}, nil
	}}
}

// pure calls an upcaster's function; a panic is an error of the data.
func pure[Old, New any](f func(Old) (New, error), before Old) (after New, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panicked: %v", p)
		}
	}()
	return f(before)
}
