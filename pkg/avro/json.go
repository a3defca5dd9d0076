package avro

import "github.com/refoldhq/refold/pkg/strictjson"

// AppendJSON appends a payload to dst as JSON, by the rules of [Schema.EncodeJSON],
// with the fields in the schema's order. It walks the payload as [Schema.Scan]
// does; the error wraps [ErrCorrupt].
func (s *Schema) AppendJSON(dst, payload []byte) ([]byte, error) {
	return appendWhole(dst, payload, s.same)
}

// AppendJSON appends an old payload to dst as JSON of the reader's schema.
func (res *Resolution) AppendJSON(dst, payload []byte) ([]byte, error) {
	return appendWhole(dst, payload, res.root)
}

func appendWhole(dst, payload []byte, root *resolved) ([]byte, error) {
	c := cursor{in: payload}
	dst, err := c.json(dst, root)
	if err != nil {
		return nil, err
	}
	return dst, c.end()
}

// json reads one value and appends it as the reader has it.
func (c *cursor) json(dst []byte, n *resolved) ([]byte, error) {
	switch n.w.kind {
	case Record:
		return c.jsonRecord(dst, n)
	case Union:
		i, err := c.branch(n.w)
		if err != nil {
			return nil, err
		}
		return c.json(dst, n.branches[i])
	case Array:
		return c.jsonItems(dst, n, '[', ']')
	case Map:
		return c.jsonItems(dst, n, '{', '}')
	default:
		v, err := c.value(n)
		if err != nil {
			return nil, err
		}
		return v.AppendJSON(dst), nil
	}
}

func (c *cursor) jsonRecord(dst []byte, n *resolved) (_ []byte, err error) {
	dst = append(dst, '{')
	first := len(dst)
	for _, f := range n.fields {
		if f.resolved == nil {
			if err := c.skip(f.w); err != nil {
				return nil, err
			}
			continue
		}
		if dst, err = c.json(appendName(dst, first, f.r.name), f.resolved); err != nil {
			return nil, err
		}
	}
	for _, f := range n.missing {
		if dst, err = f.appendDefault(appendName(dst, first, f.name)); err != nil {
			return nil, err
		}
	}
	return append(dst, '}'), nil
}

func appendName(dst []byte, first int, name string) []byte {
	if len(dst) > first {
		dst = append(dst, ',')
	}
	dst = append(append(dst, '"'), name...) // names are ASCII letters, digits and underscores
	return append(dst, '"', ':')
}

// appendDefault appends a field's default as JSON.
func (f *field) appendDefault(dst []byte) ([]byte, error) {
	same, err := resolve(f.node, f.node, "")
	if err != nil {
		return nil, err
	}
	return appendWhole(dst, f.def, same)
}

func (c *cursor) jsonItems(dst []byte, n *resolved, open, close byte) ([]byte, error) {
	dst = append(dst, open)
	first := len(dst)
	var b blocks
	for {
		more, err := c.next(&b)
		if err != nil {
			return nil, err
		}
		if !more {
			return append(dst, close), nil
		}
		if len(dst) > first {
			dst = append(dst, ',')
		}
		if n.w.kind == Map {
			key, err := c.text()
			if err != nil {
				return nil, err
			}
			dst = append(strictjson.AppendText(dst, key), ':')
		}
		if dst, err = c.json(dst, n.items); err != nil {
			return nil, err
		}
	}
}

// value reads a leaf and promotes it to the reader's type.
func (c *cursor) value(n *resolved) (v Value, err error) {
	if err = c.leaf(n.w, &v); err == nil {
		err = n.promote(&v)
	}
	return v, err
}

func (n *resolved) promote(v *Value) error {
	if n.w.kind == Enum {
		v.Int = int64(n.symbols[v.Int])
		v.Bytes = n.r.symbolText[v.Int]
		return nil
	}
	if n.w.kind == n.r.kind {
		return nil
	}
	switch n.r.kind {
	case Long:
		v.Kind = Long
	case Float, Double:
		if n.w.kind != Float {
			v.Float = float64(v.Int)
		}
		if n.r.kind == Float {
			v.Float = float64(float32(v.Float))
		}
		v.Kind, v.Int = n.r.kind, 0
	case String:
		if !validText(v.Bytes) {
			return errText
		}
		v.Kind = String
	case Bytes:
		v.Kind = Bytes
	}
	return nil
}
