// Package refoldtest tests what users of refold write, without any server: given
// events, when a command, then events or an error; and given events, expect rows.
//
// In Go, commands are tested by [Aggregate] and definitions by [Projection]:
//
//	accounts := refoldtest.NewAggregate(t, schemas.FS, user.Define())
//	accounts.Given(t, user.UserCreated{Email: "a@example.com"}).
//		When((*user.Account).Activate).
//		Then(user.UserActivated{})
//
//	users := refoldtest.NewProjection(t, schemas.FS, "rm_users")
//	users.Given(t, refoldtest.Event{Stream: "42", Data: user.UserCreated{...}}).
//		Expect("42", `{"email": "a@example.com"}`)
//
// In YAML, both stand in files beside the definitions, projections/*.test.yaml,
// which a [Suite] runs: `projector test` is one.
//
// Events go through the contracts' schemas as they would go through the log, rows
// come from the real compiler and fold, and a command's state is compared with
// what its events make and with what a snapshot keeps of it: so a command that
// writes into its aggregate without an event does not pass.
package refoldtest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Event is an event that is given or expected.
type Event struct {
	// Category may be left out where one category alone has the type.
	Category string
	// Stream is "1" where it is left out.
	Stream string
	// Type is the name of Data's struct where it is left out.
	Type string
	// Data is a struct with `avro` tags, or JSON in a string, or what becomes JSON
	// by encoding/json.
	Data any
	// SchemaVersion is the version of the type's schema that Data is written with,
	// to test what becomes of old events; the newest where it is zero.
	SchemaVersion int
	// Time is when it happened; a second after the event before where it is zero.
	Time time.Time
	// Actor, CorrelationID and CausationID are its metadata.
	Actor, CorrelationID, CausationID string
}

// kit is what all tests of a folder share.
type kit struct {
	fsys      fs.FS
	contracts *avro.Contracts
	ids       map[string]map[string]int // of newest schemas
	schemas   map[int]*avro.Schema
}

func newKit(fsys fs.FS, upcasters []avro.Upcaster) (*kit, error) {
	contracts, err := avro.LoadContracts(fsys, upcasters...)
	if err != nil {
		return nil, err
	}
	return &kit{fsys: fsys, contracts: contracts, ids: aggregate.LocalIDs(contracts), schemas: aggregate.LocalSchemas(contracts)}, nil
}

// writer returns the schema that an event was written with.
func (k *kit) writer(value []byte) *avro.Schema {
	id, _, _ := avro.SplitFrame(value) // encode has framed it
	return k.schemas[id]
}

// start is the time of the first event whose time is left out.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// given turns events into those of a log, in the order of their slots.
func (k *kit) given(events []Event) (list []event.Event, err error) {
	type slot struct {
		category string
		slot     int
	}
	seqs, versions := make(map[slot]int64), make(map[[2]string]int64)
	at := start
	for i, e := range events {
		typ, err := k.typeOf(&e)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i+1, err)
		}
		value, err := k.encode(typ, &e)
		if err != nil {
			return nil, fmt.Errorf("event %d, %s: %w", i+1, typ.Name, err)
		}
		if at = at.Add(time.Second); !e.Time.IsZero() {
			at = e.Time
		}
		category, _ := k.contracts.Category(typ.Category)
		out := event.Event{ID: event.ID{0xe, 0, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, byte((i + 1) >> 8), byte(i + 1)}, Category: typ.Category, Stream: e.Stream, Type: typ.Name, Value: value,
			Time: event.TimeOf(at), Recorded: event.TimeOf(at), Slot: event.SlotOf(e.Stream, category.Slots),
			Metadata: event.Metadata{Actor: e.Actor, CorrelationID: e.CorrelationID, CausationID: e.CausationID}}
		s, stream := slot{out.Category, out.Slot}, [2]string{out.Category, out.Stream}
		seqs[s]++
		versions[stream]++
		out.Seq, out.Version = seqs[s], versions[stream]
		list = append(list, out)
	}
	return list, nil
}

// typeOf finds an event's type and fills in what may be left out.
func (k *kit) typeOf(e *Event) (*avro.EventType, error) {
	if e.Stream == "" {
		e.Stream = "1"
	}
	if t := reflect.TypeOf(e.Data); e.Type == "" && t != nil && t.Kind() == reflect.Struct {
		e.Type = t.Name()
	}
	if err := event.CheckStreamID(e.Stream); err != nil {
		return nil, err
	}
	var found []*avro.EventType
	for _, category := range k.contracts.Categories() {
		if t, ok := category.Type(e.Type); ok && (e.Category == "" || e.Category == category.Name) {
			found = append(found, t)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("several categories have an event %s: say which", e.Type)
	default:
		return nil, fmt.Errorf("the contracts have no event %q%s", e.Type, inCategory(e.Category))
	}
}

func inCategory(name string) string {
	if name == "" {
		return ""
	}
	return " in the category " + name
}

// encode returns the value of an event, framed.
func (k *kit) encode(t *avro.EventType, e *Event) ([]byte, error) {
	schema, newest := t.Newest(), len(t.Versions)
	if n := e.SchemaVersion; n < 0 || n > newest {
		return nil, fmt.Errorf("there is no version %d of its schema", n)
	} else if n > 0 {
		schema = t.Versions[n-1]
	}
	frame := avro.AppendFrame(nil, k.ids[t.Category][t.Name]-newest+t.VersionOf(schema))
	if typ := reflect.TypeOf(e.Data); typ != nil && typ.Kind() == reflect.Struct {
		if err := schema.Fits(typ); err != nil {
			return nil, err
		}
		return schema.EncodeGo(frame, e.Data)
	}
	doc, err := documentOf(e.Data)
	if err != nil {
		return nil, err
	}
	r := strictjson.NewReader(doc)
	value, err := schema.EncodeJSON(frame, r)
	if err == nil {
		err = r.End()
	}
	return value, err
}

// documentOf returns data as JSON; nothing is an empty object.
func documentOf(data any) ([]byte, error) {
	switch d := data.(type) {
	case nil:
		return []byte("{}"), nil
	case string:
		return []byte(d), nil
	default:
		return json.Marshal(d)
	}
}

// show renders an event of the log in one line.
func (k *kit) show(category, typ string, value []byte) string {
	c, _ := k.contracts.Category(category)
	_, body, err := avro.SplitFrame(value)
	if err == nil && c != nil {
		if t, ok := c.Type(typ); ok {
			var upgrade *avro.Upgrade
			if upgrade, err = t.Upgrade(k.writer(value)); err == nil {
				value, err = upgrade.AppendJSON(nil, body)
			}
			if err == nil {
				return t.Name + " " + string(value)
			}
		}
	}
	return fmt.Sprintf("%s (unreadable: %v)", typ, err)
}

// diff renders two lists line by line: what is missing after "-", what should not
// be there after "+".
func diff(want, got []string) string {
	common := make([][]int, len(want)+1) // lengths of the longest common part of what follows
	for i := range common {
		common[i] = make([]int, len(got)+1)
	}
	for i := len(want) - 1; i >= 0; i-- {
		for j := len(got) - 1; j >= 0; j-- {
			if want[i] == got[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out strings.Builder
	for i, j := 0, 0; i < len(want) || j < len(got); {
		switch {
		case i < len(want) && j < len(got) && want[i] == got[j]:
			fmt.Fprintf(&out, "    %s\n", want[i])
			i, j = i+1, j+1
		case j == len(got) || i < len(want) && common[i+1][j] >= common[i][j+1]:
			fmt.Fprintf(&out, "  - %s\n", want[i])
			i++
		default:
			fmt.Fprintf(&out, "  + %s\n", got[j])
			j++
		}
	}
	return out.String()
}
