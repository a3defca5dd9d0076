package main

import (
	"crypto/sha256"
	"strconv"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// stamp gives the events of a line that have no id one which is made of the
// import's name, the line's number and contents, and the event's place in it: the
// same line gets the same ids in every run, and a retry is a replay for ever. A
// line that cannot be read is left as it is, for the server to refuse.
func stamp(name string, number int64, line []byte) []byte {
	places, err := withoutID(line)
	if err != nil || len(places) == 0 {
		return line
	}
	h := sha256.New()
	h.Write([]byte(name + "\n" + strconv.FormatInt(number, 10) + "\n"))
	h.Write(line)
	seed := h.Sum(nil)
	out := make([]byte, 0, len(line)+45*len(places))
	from := 0
	for i, at := range places {
		out = append(append(out, line[from:at]...), `"id":"`...)
		out = append(idOf(seed, i).Append(out), `",`...)
		from = at
	}
	return append(out, line[from:]...)
}

// idOf makes the i-th id of a seed: a UUID of version 8 (RFC 9562), whose bits are
// for its maker to choose.
func idOf(seed []byte, i int) event.ID {
	sum := sha256.Sum256(strconv.AppendInt(seed[:len(seed):len(seed)], int64(i), 10))
	id := event.ID(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// withoutID returns where the members of the events without an id begin.
func withoutID(line []byte) (places []int, err error) {
	r := strictjson.NewReader(line)
	one := func(int) error {
		if r.Peek() != strictjson.Object {
			return r.Skip()
		}
		at, has, members := r.Offset()+1, false, 0
		err := r.ReadObject(func(key []byte) error {
			has, members = has || string(key) == "id", members+1
			return r.Skip()
		})
		if err == nil && !has && members > 0 {
			places = append(places, at)
		}
		return err
	}
	within := func(name string, inside func() error) error {
		if r.Peek() != strictjson.Object {
			return r.Skip()
		}
		return r.ReadObject(func(key []byte) error {
			if string(key) != name || r.Peek() != strictjson.Array {
				return r.Skip()
			}
			return inside()
		})
	}
	err = within("appends", func() error {
		return r.ReadArray(func(int) error {
			return within("events", func() error { return r.ReadArray(one) })
		})
	})
	return places, err
}
