package aggregate

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// command is a command that has a name, so that it can be sent over HTTP.
type command[A any] struct {
	name    string
	creates bool
	input   reflect.Type
	decode  func(body []byte) (func(*A) error, error)
}

var commandName = regexp.MustCompile(`^[a-z][A-Za-z0-9]{0,63}$`)

// Command names a command of aggregates that exist. C is the struct of what it
// needs; its `json` tags name the members of the body, and struct{} needs none.
func Command[A, C any](d *Definition[A], name string, run func(*A, C) error) {
	addCommand(d, name, false, run)
}

// Creates names a command that creates an aggregate.
func Creates[A, C any](d *Definition[A], name string, run func(*A, C) error) {
	addCommand(d, name, true, run)
}

func addCommand[A, C any](d *Definition[A], name string, creates bool, run func(*A, C) error) {
	if !commandName.MatchString(name) {
		d.fail(fmt.Errorf("%q cannot name a command: want [a-z][A-Za-z0-9]{0,63}", name))
	}
	for _, other := range d.commands {
		if other.name == name {
			d.fail(fmt.Errorf("two commands are named %s", name))
		}
	}
	input := reflect.TypeFor[C]()
	if input.Kind() != reflect.Struct {
		d.fail(fmt.Errorf("command %s: %s is no struct", name, input))
	} else if _, err := schemaOf(input, nil); err != nil {
		d.fail(fmt.Errorf("command %s: %w", name, err))
	}
	d.commands = append(d.commands, &command[A]{name: name, creates: creates, input: input,
		decode: func(body []byte) (func(*A) error, error) {
			var c C
			if err := strictjson.Unmarshal(body, &c); err != nil {
				return nil, err
			}
			return func(a *A) error { return run(a, c) }, nil
		}})
}

// ErrUnknownCommand says that an aggregate has no command of a name.
var ErrUnknownCommand = errors.New("there is no such command")

// Decode reads the body of a named command and returns what it does, and whether
// it creates the aggregate. The error is [ErrUnknownCommand], or a
// [*strictjson.Error] or [*strictjson.Misfit] of the body.
func (d *Definition[A]) Decode(name string, body []byte) (run func(*A) error, creates bool, err error) {
	for _, c := range d.commands {
		if c.name == name {
			run, err = c.decode(body)
			return run, c.creates, err
		}
	}
	return nil, false, fmt.Errorf("%w: %s", ErrUnknownCommand, name)
}

// CommandInfo describes a command for documents.
type CommandInfo struct {
	Category, Name string
	// Creates says that it creates the aggregate, which must not exist.
	Creates bool
	// Schema is the JSON Schema (2020-12, as in OpenAPI 3.1) of its body.
	Schema json.RawMessage
}

func (d *Definition[A]) describeCommands() []CommandInfo {
	list := make([]CommandInfo, len(d.commands))
	for i, c := range d.commands {
		doc, _ := schemaOf(c.input, nil) // it was checked by addCommand
		schema, _ := json.Marshal(doc)   // maps, strings and numbers only
		list[i] = CommandInfo{Category: d.category, Name: c.name, Creates: c.creates, Schema: schema}
	}
	return list
}

var wellKnown = map[reflect.Type]string{reflect.TypeFor[time.Time](): "date-time", reflect.TypeFor[event.Time](): "date-time", reflect.TypeFor[event.ID](): "uuid"}

// schemaOf returns the JSON Schema of what [strictjson.Unmarshal] reads into t.
func schemaOf(t reflect.Type, open []reflect.Type) (map[string]any, error) {
	if format := wellKnown[t]; format != "" {
		return map[string]any{"type": "string", "format": format}, nil
	}
	if reflect.PointerTo(t).Implements(textUnmarshaler) {
		return map[string]any{"type": "string"}, nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		inner, err := schemaOf(t.Elem(), open)
		return map[string]any{"anyOf": []any{inner, map[string]any{"type": "null"}}}, err
	case reflect.String:
		return map[string]any{"type": "string"}, nil
	case reflect.Bool:
		return map[string]any{"type": "boolean"}, nil
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}, nil
	case reflect.Int64, reflect.Int, reflect.Uint64, reflect.Uint:
		return map[string]any{"type": []string{"integer", "string"}, "format": "int64"}, nil
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return map[string]any{"type": "integer"}, nil
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": "string", "contentEncoding": "base64"}, nil
		}
		items, err := schemaOf(t.Elem(), open)
		return map[string]any{"type": "array", "items": items}, err
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return nil, fmt.Errorf("the type %s is not supported", t)
		}
		values, err := schemaOf(t.Elem(), open)
		return map[string]any{"type": "object", "additionalProperties": values}, err
	case reflect.Struct:
		return schemaOfStruct(t, open)
	default:
		return nil, fmt.Errorf("the type %s is not supported", t)
	}
}

func schemaOfStruct(t reflect.Type, open []reflect.Type) (map[string]any, error) {
	for _, o := range open {
		if o == t {
			return nil, fmt.Errorf("the type %s contains itself", t)
		}
	}
	properties, required := make(map[string]any), []string{}
	for _, f := range strictjson.Fields(t) {
		schema, err := schemaOf(f.Type, append(open, t))
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", f.Name, err)
		}
		properties[f.Name] = schema
		if f.Required {
			required = append(required, f.Name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}, nil
}
