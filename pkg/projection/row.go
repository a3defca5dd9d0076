package projection

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// cell is one value of a row; the zero value is null.
type cell struct {
	set bool
	i   int64    // Bool, Long, Timestamp, Date, TimeOfDay
	f   float64  // Double
	b   []byte   // String, Enum, UUID, Bytes, JSON
	big *big.Int // Decimal, unscaled; never changed in place
}

// Row is one row while it is folded: the whole of it for rows of one stream, a
// part that started empty for shared rows. It is not safe for concurrent use.
type Row struct {
	plan   *Plan
	exists bool
	cells  []cell
	stamps []string // of a shared row: of the value that stands, by field
}

// NewRow returns a row that does not exist yet.
func (p *Plan) NewRow() *Row { return &Row{plan: p} }

// Exists tells whether there is a row: it was created and not removed.
func (r *Row) Exists() bool { return r.exists }

func (r *Row) create() {
	r.exists = true
	r.cells = make([]cell, len(r.plan.fields))
	for i := range r.plan.fields {
		r.cells[i] = r.plan.fields[i].initial
	}
	if r.plan.shared {
		r.stamps = make([]string, len(r.plan.fields))
	}
}

// Size estimates the memory that the row takes, in bytes.
func (r *Row) Size() int {
	n := 64 + len(r.cells)*72
	for i := range r.cells {
		n += len(r.cells[i].b)
	}
	return n
}

// AppendData appends the row as JSON: every field of the definition, null until
// set.
func (r *Row) AppendData(dst []byte) []byte {
	dst = append(dst, '{')
	for i := range r.plan.fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), r.plan.fields[i].Name...), '"', ':')
		dst = r.cells[i].append(dst, &r.plan.fields[i])
	}
	return append(dst, '}')
}

func (c *cell) append(dst []byte, f *Field) []byte {
	if !c.set {
		return append(dst, "null"...)
	}
	if f.Kind == avro.Decimal {
		dst = append(dst, '"')
		dst = avro.AppendDecimal(dst, c.big, f.Scale)
		return append(dst, '"')
	}
	return avro.Value{Kind: f.Kind, Int: c.i, Float: c.f, Bytes: c.b}.AppendJSON(dst)
}

// AppendState appends what merging needs and clients never see, or nothing for
// rows that need none.
func (r *Row) AppendState(dst []byte) []byte {
	if !r.plan.shared {
		return dst
	}
	dst = append(dst, '{')
	first := len(dst)
	for i, stamp := range r.stamps {
		if stamp == "" {
			continue
		}
		if len(dst) > first {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), r.plan.fields[i].Name...), `":"`...)
		dst = append(append(dst, stamp...), '"')
	}
	return append(dst, '}')
}

// LoadRow returns a row of one stream as AppendData has written it.
func (p *Plan) LoadRow(data []byte) (*Row, error) {
	r := &Row{plan: p, exists: true, cells: make([]cell, len(p.fields))}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, fmt.Errorf("reading a row of %s: %w", p.name, err)
	}
	for i := range p.fields {
		raw := bytes.TrimSpace(members[p.fields[i].Name])
		if raw == nil || string(raw) == "null" {
			continue
		}
		if err := r.cells[i].load(raw, &p.fields[i]); err != nil {
			return nil, fmt.Errorf("reading the field %s of a row of %s: %w", p.fields[i].Name, p.name, err)
		}
	}
	return r, nil
}

func (c *cell) load(raw []byte, f *Field) (err error) {
	c.set = true
	switch f.Kind {
	case avro.Bool:
		if string(raw) == "true" {
			c.i = 1
		}
		return nil
	case avro.Long:
		c.i, err = strconv.ParseInt(string(raw), 10, 64)
		return err
	case avro.Double:
		c.f, err = strconv.ParseFloat(string(raw), 64)
		return err
	case avro.JSON:
		c.b = bytes.Clone(raw)
		return nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return err
	}
	return c.loadText(text, f)
}

func (c *cell) loadText(text string, f *Field) (err error) {
	switch f.Kind {
	case avro.Bytes:
		c.b, err = base64.StdEncoding.DecodeString(text)
	case avro.Timestamp:
		var t event.Time
		t, err = event.ParseTime(text)
		c.i = int64(t)
	case avro.TimeOfDay:
		var t event.Time
		t, err = event.ParseTime("1970-01-01T" + text + "Z")
		c.i = int64(t)
	case avro.Date:
		var t time.Time
		t, err = time.Parse(time.DateOnly, text)
		c.i = t.Unix() / 86400
	case avro.Decimal:
		var ok bool
		if c.big, ok = new(big.Int).SetString(strings.Replace(text, ".", "", 1), 10); !ok {
			err = fmt.Errorf("%q is no decimal", text)
		}
	default:
		c.b = []byte(text)
	}
	return err
}
