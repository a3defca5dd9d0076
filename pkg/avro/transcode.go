package avro

import "slices"

// Append appends an old payload to dst as the reader's schema has it. It walks
// the payload as [Schema.Scan] does; the error wraps [ErrCorrupt].
func (res *Resolution) Append(dst, payload []byte) ([]byte, error) {
	c := cursor{in: payload}
	dst, err := c.transcode(dst, res.root)
	if err != nil {
		return nil, err
	}
	return dst, c.end()
}

// transcode reads one value of the writer and appends it as one of the reader.
func (c *cursor) transcode(dst []byte, n *resolved) ([]byte, error) {
	if n.branch > 0 {
		dst = appendLong(dst, int64(n.branch-1))
	}
	if n.same {
		start := c.at
		if err := c.skip(n.w); err != nil {
			return nil, err
		}
		return append(dst, c.in[start:c.at]...), nil
	}
	switch n.w.kind {
	case Union:
		i, err := c.branch(n.w)
		if err != nil {
			return nil, err
		}
		return c.transcode(dst, n.branches[i])
	case Record:
		return c.transcodeRecord(dst, n)
	case Array, Map:
		return c.transcodeItems(dst, n)
	default:
		v, err := c.value(n)
		if err != nil {
			return nil, err
		}
		return appendLeaf(dst, n.r, v), nil
	}
}

// transcodeRecord finds where the writer's fields lie and then goes through those
// of the reader.
func (c *cursor) transcodeRecord(dst []byte, n *resolved) ([]byte, error) {
	var few [24]int // most records have no more fields, and then nothing is allocated
	starts := few[:0]
	for _, f := range n.fields {
		starts = append(starts, c.at)
		if err := c.skip(f.w); err != nil {
			return nil, err
		}
	}
	end := c.at
	for i, f := range n.r.fields {
		from := n.from[i]
		if from < 0 {
			dst = append(dst, f.def...)
			continue
		}
		c.at = starts[from]
		var err error
		if dst, err = c.transcode(dst, n.fields[from].resolved); err != nil {
			return nil, err
		}
	}
	c.at = end
	return dst, nil
}

func (c *cursor) transcodeItems(dst []byte, n *resolved) ([]byte, error) {
	start, count := len(dst), 0
	var b blocks
	for {
		more, err := c.next(&b)
		if err != nil {
			return nil, err
		}
		if !more {
			return closeBlock(dst, start, count), nil
		}
		count++
		if n.w.kind == Map {
			key, err := c.text()
			if err != nil {
				return nil, err
			}
			dst = appendBytes(dst, key)
		}
		if dst, err = c.transcode(dst, n.items); err != nil {
			return nil, err
		}
	}
}

// appendLeaf appends a value of a type that is neither record, union, array nor
// map.
func appendLeaf(dst []byte, n *node, v Value) []byte {
	switch n.kind {
	case Null:
		return dst
	case Bool:
		return appendBool(dst, v.Int != 0)
	case Int, Long, Enum, Date:
		return appendLong(dst, v.Int)
	case Timestamp, TimeOfDay:
		return appendTime(dst, n, v.Int)
	case Float, Double:
		return appendFloat(dst, n.kind, v.Float)
	}
	if n.fixed {
		return append(dst, v.Bytes...)
	}
	return appendBytes(dst, v.Bytes)
}

// setSame notes whether the bytes of the writer are those of the reader, once the
// parts of n are resolved.
func (n *resolved) setSame() {
	w, r := n.w, n.r
	if w.kind != r.kind {
		return
	}
	switch w.kind {
	case Record:
		n.same = len(n.fields) == len(n.from)
		for i, from := range n.from {
			n.same = n.same && from == i && n.fields[i].copied()
		}
	case Array, Map:
		n.same = n.items.copied()
	case Union:
		n.same = len(n.branches) == len(r.branches)
		for i, b := range n.branches {
			n.same = n.same && b.same && b.branch == i+1
		}
	case Enum:
		n.same = slices.Equal(w.symbols, r.symbols)
	default:
		n.same = w.fixed == r.fixed && w.size == r.size && w.millis == r.millis && w.scale == r.scale
	}
}

// copied tells whether the writer's bytes are all that the reader has.
func (n *resolved) copied() bool { return n.same && n.branch == 0 }
