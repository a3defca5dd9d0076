package main

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing/fstest"
	"time"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// payment is the newest version of an event, as it is in the contracts below.
type payment struct {
	First string  `avro:"first"`
	Last  string  `avro:"last"`
	Cents int64   `avro:"cents"`
	Note  *string `avro:"note"`
}

// payment1 and payment2 are the versions before, of which an upcaster makes the
// second from the first.
type payment1 struct {
	Payer  string  `avro:"payer"`
	Amount float64 `avro:"amount"`
}

type payment2 struct {
	First string `avro:"first"`
	Last  string `avro:"last"`
	Cents int64  `avro:"cents"`
}

func split(old payment1) (payment2, error) {
	first, last, ok := strings.Cut(old.Payer, " ")
	if !ok {
		return payment2{}, errors.New("a payer of one name")
	}
	return payment2{First: first, Last: last, Cents: int64(old.Amount * 100)}, nil
}

var payments = []struct{ version, schema, example string }{
	{"an older version, by an upcaster and defaults", `{"type":"record","name":"Paid","fields":[{"name":"payer","type":"string"},{"name":"amount","type":"double"}]}`, `{"payer":"Ada Lovelace","amount":12.5}`},
	{"an older version, by defaults", `{"type":"record","name":"Paid","fields":[{"name":"first","type":"string"},{"name":"last","type":"string"},{"name":"cents","type":"long"}]}`, `{"first":"Ada","last":"Lovelace","cents":1250}`},
	{"the newest version", `{"type":"record","name":"Paid","fields":[{"name":"first","type":"string"},{"name":"last","type":"string"},{"name":"cents","type":"long"},{"name":"note","type":["null","string"],"default":null}]}`, `{"first":"Ada","last":"Lovelace","cents":1250,"note":"thanks"}`},
}

// benchUpcast measures what it costs to read an event of an older version as an
// event of the newest.
func benchUpcast(b *bench) error {
	files := fstest.MapFS{}
	for i, p := range payments {
		files[fmt.Sprintf("events/Payment/Paid.v%d.avsc", i+1)] = &fstest.MapFile{Data: []byte(p.schema)}
	}
	contracts, err := avro.LoadContracts(files, avro.Upcast("Payment", "Paid", 1, split))
	if err != nil {
		return err
	}
	category, _ := contracts.Category("Payment")
	typ, _ := category.Type("Paid")
	into, err := avro.NewGoType(typ, reflect.TypeFor[payment]())
	if err != nil {
		return err
	}
	var newest time.Duration
	for i := len(payments) - 1; i >= 0; i-- {
		payload, err := typ.Versions[i].EncodeJSON(nil, strictjson.NewReader([]byte(payments[i].example)))
		if err != nil {
			return err
		}
		took, err := decodeTime(into, typ.Versions[i], payload)
		if err != nil {
			return err
		}
		if newest == 0 {
			newest = took
		}
		b.report.line("reading an event of "+payments[i].version, took.String(), "", "of the newest version: "+newest.String(), float64(took)/float64(newest))
	}
	return nil
}

// decodeTime returns what it takes to decode one payload, the mean of many.
func decodeTime(into *avro.GoType, writer *avro.Schema, payload []byte) (time.Duration, error) {
	const times = 300_000
	var p payment
	began := time.Now()
	for range times {
		if err := into.Decode(writer, payload, &p); err != nil {
			return 0, err
		}
	}
	return time.Since(began) / times, nil
}
