package projection

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// items are the members of a set, the entries of a map or the children of a row,
// sorted, so that a row has one form whatever the order in which they came.
type items struct {
	order itemOrder
	list  []item
}

// itemOrder is how items are sorted: as jsonb prints them.
type itemOrder uint8

const (
	byBytes  itemOrder = iota // texts of a set, and children
	byNumber                  // whole numbers of a set, and children
	byLength                  // names of a map, as jsonb sorts them
)

type item struct {
	key    []byte // as text
	number int64  // of the order byNumber
	value  []byte // of a map: as jsonb prints it
	row    []cell // of children
	// Of a shared row: when it was put or, if gone, taken away. A tombstone stays, as
	// another partition may yet bring what is older.
	stamp stamp
	gone  bool
}

func orderOf(t valueType) itemOrder {
	switch {
	case t.shape == ShapeMap:
		return byLength
	case t.items == avro.Long:
		return byNumber
	default:
		return byBytes
	}
}

// find returns where an item stands, or belongs.
func (s *items) find(key []byte, number int64) (int, bool) {
	return slices.BinarySearchFunc(s.list, key, func(x item, key []byte) int {
		switch s.order {
		case byNumber:
			return cmp.Compare(x.number, number)
		case byLength:
			return cmp.Or(cmp.Compare(len(x.key), len(key)), bytes.Compare(x.key, key))
		default:
			return bytes.Compare(x.key, key)
		}
	})
}

// at returns the item of a key, which is inserted if there is none.
func (s *items) at(key []byte) *item {
	var number int64
	if s.order == byNumber {
		number, _ = strconv.ParseInt(string(key), 10, 64) // it was made of one
	}
	i, found := s.find(key, number)
	if !found {
		s.list = slices.Insert(s.list, i, item{key: bytes.Clone(key), number: number, gone: true})
	}
	return &s.list[i]
}

// get returns the item of a key, nil for none.
func (s *items) get(key []byte) *item {
	var number int64
	if s.order == byNumber {
		number, _ = strconv.ParseInt(string(key), 10, 64)
	}
	if i, found := s.find(key, number); found {
		return &s.list[i]
	}
	return nil
}

// drop takes an item away, leaving nothing.
func (s *items) drop(key []byte) {
	var number int64
	if s.order == byNumber {
		number, _ = strconv.ParseInt(string(key), 10, 64)
	}
	if i, found := s.find(key, number); found {
		s.list = slices.Delete(s.list, i, i+1)
	}
}

// len counts the items that are there.
func (s *items) len() (n int) {
	if s == nil {
		return 0
	}
	for i := range s.list {
		if !s.list[i].gone {
			n++
		}
	}
	return n
}

func (s *items) size() (n int) {
	if s == nil {
		return 0
	}
	for i := range s.list {
		x := &s.list[i]
		n += 136 + len(x.key) + len(x.value)
		for j := range x.row {
			n += cellSize + len(x.row[j].b) + x.row[j].items.size()
		}
	}
	return n
}

func (s *items) appendSet(dst []byte, t valueType) []byte {
	dst = append(dst, '[')
	first := len(dst)
	if s != nil {
		for i := range s.list {
			if s.list[i].gone {
				continue
			}
			if len(dst) > first {
				dst = append(dst, ", "...)
			}
			dst = appendItemKey(dst, s.list[i].key, t.items)
		}
	}
	return append(dst, ']')
}

func appendItemKey(dst, key []byte, kind avro.Kind) []byte {
	if kind == avro.Long {
		return append(dst, key...)
	}
	return strictjson.AppendText(dst, key)
}

func (s *items) appendMap(dst []byte) []byte {
	dst = append(dst, '{')
	first := len(dst)
	if s != nil {
		for i := range s.list {
			if s.list[i].gone {
				continue
			}
			if len(dst) > first {
				dst = append(dst, ", "...)
			}
			dst = append(strictjson.AppendText(dst, s.list[i].key), ": "...)
			dst = append(dst, s.list[i].value...)
		}
	}
	return append(dst, '}')
}

func (s *items) appendChildren(dst []byte, c *childPlan) []byte {
	dst = append(dst, '[')
	if s != nil {
		for i := range s.list {
			if i > 0 {
				dst = append(dst, ", "...)
			}
			dst = c.layout.append(dst, s.list[i].row)
		}
	}
	return append(dst, ']')
}

// appendState appends what merging needs: for each key when it was put (+) or
// taken away (-), and a map's value.
func (s *items) appendState(dst []byte, t valueType, categories []string) []byte {
	dst = append(dst, '{')
	list := s.list
	if s.order != byLength {
		list = slices.Clone(list)
		slices.SortFunc(list, func(a, b item) int { return cmp.Or(cmp.Compare(len(a.key), len(b.key)), bytes.Compare(a.key, b.key)) })
	}
	for i := range list {
		x := &list[i]
		if i > 0 {
			dst = append(dst, ", "...)
		}
		dst = append(strictjson.AppendText(dst, x.key), ": "...)
		if t.shape == ShapeMap {
			dst = append(dst, '[')
		}
		dst = append(dst, '"')
		if x.stamp.seq != 0 {
			dst = x.stamp.append(dst, categories)
		}
		if x.gone {
			dst = append(dst, `-"`...)
		} else {
			dst = append(dst, `+"`...)
		}
		if t.shape == ShapeMap {
			if !x.gone {
				dst = append(append(dst, ", "...), x.value...)
			}
			dst = append(dst, ']')
		}
	}
	return append(dst, '}')
}
