package projection

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"time"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// LoadRow returns a row of one stream as AppendData and AppendState have written
// it, and as the database gives it back; state is empty where there is none. A
// field that data lacks is null.
func (p *Plan) LoadRow(data, state []byte) (*Row, error) {
	r := &Row{plan: p}
	r.create()
	if err := p.layout.load(r.cells, bytes.Clone(data), p.columns); err != nil {
		return nil, fmt.Errorf("reading a row of %s: %w", p.name, err)
	}
	if len(p.stateful) > 0 && !p.shared {
		if err := r.loadState(state); err != nil {
			return nil, fmt.Errorf("reading the state of a row of %s: %w", p.name, err)
		}
	}
	return r, nil
}

// errShape says that the text is not laid out as AppendData does; it may still
// be the row.
var errShape = errors.New("it is not laid out as rows are")

// load reads an object into cells. What was written by AppendData and stored as
// jsonb comes back byte for byte, so it is read along the layout; anything else
// is brought into that form first.
func (l *layout) load(cells []cell, data []byte, columns []column) error {
	rest, err := l.read(cells, data)
	if errors.Is(err, errShape) || err == nil && len(rest) > 0 {
		if data, err = l.arrange(data, columns); err == nil {
			rest, err = l.read(cells, data)
		}
	}
	if err == nil && len(rest) > 0 {
		err = errShape
	}
	return err
}

// read reads an object in the layout's form and returns what follows it. The
// cells take texts as they lie in data, which is theirs from then on.
func (l *layout) read(cells []cell, data []byte) (rest []byte, err error) {
	for i := range l.parts {
		p := &l.parts[i]
		if !bytes.HasPrefix(data, p.before) {
			return nil, errShape
		}
		if data, err = cells[p.column].read(data[len(p.before):], p.typ); err != nil {
			return nil, err
		}
	}
	if !bytes.HasPrefix(data, l.tail) {
		return nil, errShape
	}
	return data[len(l.tail):], nil
}

// arrange brings an object into the layout's form, null where it lacks a field.
func (l *layout) arrange(data []byte, columns []column) ([]byte, error) {
	var canonical strictjson.JSONB
	var out []byte
	for i := range l.parts {
		p := &l.parts[i]
		value := json.RawMessage(data)
		for _, name := range columns[p.column].path {
			var members map[string]json.RawMessage
			if err := json.Unmarshal(value, &members); err != nil {
				return nil, err
			}
			if value = members[name]; value == nil {
				value = json.RawMessage("null")
				break
			}
		}
		out = append(out, p.before...)
		var err error
		if out, err = canonical.Append(out, value); err != nil {
			return nil, err
		}
	}
	return append(out, l.tail...), nil
}

// read reads one value and returns what follows it.
func (c *cell) read(data []byte, t valueType) (rest []byte, err error) {
	if bytes.HasPrefix(data, nullText) {
		c.clear()
		c.set = t.shape >= ShapeSet
		return data[len(nullText):], nil
	}
	c.set = true
	switch t.shape {
	case ShapeSet:
		if t.counted {
			rest, err = scanNumber(data) // its items are in the state
			if err == nil {
				c.i, _ = parseLong(data[:len(data)-len(rest)])
			}
			return rest, err
		}
		return c.readSet(data, t)
	case ShapeMap:
		return c.readMap(data)
	case ShapeChildren:
		return c.readChildren(data, t)
	}
	switch t.kind {
	case avro.Bool:
		return c.readBool(data)
	case avro.Long:
		rest, err = scanNumber(data)
		if err != nil {
			return nil, err
		}
		return rest, c.parseWhole(data[:len(data)-len(rest)])
	case avro.Double:
		if rest, err = scanNumber(data); err != nil {
			return nil, err
		}
		f, err := strconv.ParseFloat(string(data[:len(data)-len(rest)]), 64)
		c.setFloat(f)
		return rest, err
	case avro.JSON:
		n, err := scanValue(data)
		if err != nil {
			return nil, err
		}
		c.b = data[:n:n]
		return data[n:], nil
	}
	if c.b, rest, err = scanText(data); err != nil {
		return nil, err
	}
	return rest, c.parseText(t)
}

var nullText = []byte("null")

func (c *cell) readBool(data []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(data, []byte("true")):
		c.i = 1
		return data[4:], nil
	case bytes.HasPrefix(data, []byte("false")):
		c.i = 0
		return data[5:], nil
	}
	return nil, errShape
}

func (c *cell) parseWhole(text []byte) error {
	c.big = nil
	var ok bool
	if c.i, ok = parseLong(text); ok {
		return nil
	}
	c.i = 0
	if c.big, ok = new(big.Int).SetString(string(text), 10); !ok {
		return fmt.Errorf("%q is no whole number", text)
	}
	c.settle()
	return nil
}

// parseLong reads a whole number that 64 bits hold.
func parseLong(text []byte) (v int64, ok bool) {
	digits := text
	if len(text) > 0 && text[0] == '-' {
		digits = text[1:]
	}
	if len(digits) == 0 || len(digits) > 19 {
		return 0, false
	}
	var u uint64
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		u = u*10 + uint64(d-'0') // 19 digits do not overflow
	}
	if len(digits) < len(text) {
		return -int64(u), u <= 1<<63
	}
	return int64(u), u < 1<<63
}

// parseText makes a value of the text in c.b.
func (c *cell) parseText(t valueType) (err error) {
	switch t.kind {
	case avro.Bytes:
		n, err := base64.StdEncoding.Decode(c.b, c.b)
		c.b = c.b[:n]
		return err
	case avro.Timestamp:
		var at event.Time
		at, err = event.ParseTime(string(c.b))
		c.i = int64(at)
	case avro.TimeOfDay:
		var at event.Time
		at, err = event.ParseTime("1970-01-01T" + string(c.b) + "Z")
		c.i = int64(at)
	case avro.Date:
		var at time.Time
		at, err = time.Parse(time.DateOnly, string(c.b))
		c.i = at.Unix() / 86400
	case avro.Decimal:
		if i := bytes.IndexByte(c.b, '.'); i >= 0 {
			c.b = append(c.b[:i], c.b[i+1:]...)
		}
		err = c.parseWhole(c.b)
	default:
		return nil // it is the text
	}
	c.b = c.b[:0]
	return err
}

func (c *cell) readSet(data []byte, t valueType) (rest []byte, err error) {
	c.items = &items{order: orderOf(t)}
	return eachItem(data, '[', ']', func(data []byte) ([]byte, error) {
		var key []byte
		if t.items == avro.Long {
			rest, err := scanNumber(data)
			if err != nil {
				return nil, err
			}
			key, data = data[:len(data)-len(rest)], rest
		} else if key, data, err = scanText(data); err != nil {
			return nil, err
		}
		c.items.at(key).gone = false
		return data, nil
	})
}

func (c *cell) readMap(data []byte) (rest []byte, err error) {
	c.items = &items{order: byLength}
	return eachItem(data, '{', '}', func(data []byte) ([]byte, error) {
		key, data, err := scanText(data)
		if err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(data, []byte(": ")) {
			return nil, errShape
		}
		data = data[2:]
		n, err := scanValue(data)
		if err != nil {
			return nil, err
		}
		x := c.items.at(key)
		x.gone, x.value = false, bytes.Clone(data[:n])
		return data[n:], nil
	})
}

func (c *cell) readChildren(data []byte, t valueType) (rest []byte, err error) {
	c.items = &items{order: orderOf(t)}
	return eachItem(data, '[', ']', func(data []byte) ([]byte, error) {
		row := make([]cell, len(t.children.columns))
		n, err := scanValue(data)
		if err != nil {
			return nil, err
		}
		if err := t.children.layout.load(row, data[:n], t.children.columns); err != nil {
			return nil, err
		}
		x := c.items.at(row[t.children.key].appendText(nil, t.children.columns[t.children.key].typ))
		x.gone, x.row = false, row
		return data[n:], nil
	})
}

// eachItem calls each for the items of an array or object as jsonb prints it; it
// reads one and returns what follows.
func eachItem(data []byte, open, shut byte, each func([]byte) ([]byte, error)) ([]byte, error) {
	if len(data) < 2 || data[0] != open {
		return nil, errShape
	}
	data = data[1:]
	if data[0] == shut {
		return data[1:], nil
	}
	for {
		var err error
		if data, err = each(data); err != nil {
			return nil, err
		}
		if len(data) == 0 {
			return nil, errShape
		}
		if data[0] == shut {
			return data[1:], nil
		}
		if !bytes.HasPrefix(data, []byte(", ")) {
			return nil, errShape
		}
		data = data[2:]
	}
}

// loadState reads the items of distinct counts.
func (r *Row) loadState(state []byte) error {
	if len(state) == 0 {
		return nil
	}
	var members map[string]map[string]string
	if err := json.Unmarshal(state, &members); err != nil {
		return err
	}
	for _, i := range r.plan.stateful {
		col := &r.plan.columns[i]
		if len(members[col.name]) == 0 {
			continue
		}
		c := &r.cells[i]
		c.set, c.items = true, &items{order: orderOf(col.typ)}
		for key := range members[col.name] {
			c.items.at([]byte(key)).gone = false
		}
	}
	return nil
}

// scanNumber returns what follows a number.
func scanNumber(data []byte) ([]byte, error) {
	i := 0
	for i < len(data) && (data[i] >= '0' && data[i] <= '9' || data[i] == '-' || data[i] == '+' || data[i] == '.' || data[i] == 'e' || data[i] == 'E') {
		i++
	}
	if i == 0 {
		return nil, errShape
	}
	return data[i:], nil
}

// scanText returns a string without its escapes, which aliases data unless it has
// any, and what follows it.
func scanText(data []byte) (text, rest []byte, err error) {
	if len(data) < 2 || data[0] != '"' {
		return nil, nil, errShape
	}
	end := bytes.IndexByte(data[1:], '"') + 1
	if end < 1 {
		return nil, nil, errShape
	}
	if bytes.IndexByte(data[1:end], '\\') < 0 { // as nearly always
		return data[1:end:end], data[end+1:], nil
	}
	n, err := scanValue(data)
	if err != nil {
		return nil, nil, err
	}
	var s string
	if err := json.Unmarshal(data[:n], &s); err != nil {
		return nil, nil, errShape
	}
	return []byte(s), data[n:], nil
}

// scanValue returns the length of the value that data begins with.
func scanValue(data []byte) (int, error) {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			for i++; i < len(data) && data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			if depth--; depth < 0 {
				return i, nil // a number or a word ended here
			}
		case ',':
			if depth == 0 {
				return i, nil
			}
			continue
		default:
			continue
		}
		if depth == 0 && i < len(data) {
			return i + 1, nil
		}
	}
	if depth > 0 || len(data) == 0 {
		return 0, errShape
	}
	return len(data), nil
}
