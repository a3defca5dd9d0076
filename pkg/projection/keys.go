package projection

import (
	"bytes"
	"encoding/json"
	"iter"
	"slices"

	"github.com/refoldhq/refold/pkg/avro"
)

// keyList is the keys of the rows that one event concerns, each once.
type keyList struct {
	text []byte
	list []eventKey
	at   int
}

type eventKey struct {
	start, end int        // in text
	source     *keySource // nil for the stream, a constant or a bucket
	each       bool
	item       cell // of a list, if each
}

func (k *keyList) current() *eventKey { return &k.list[k.at] }

func (k *keyList) of(i int) []byte { return k.text[k.list[i].start:k.list[i].end] }

// Keys goes through the keys of the rows that the event concerns, each once; Apply
// takes the row of the present one. There is never more than one unless the plan is
// shared.
func (f *Folder) Keys() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range f.keys.list {
			f.keys.at = i
			f.show()
			if !yield(f.keys.of(i)) {
				return
			}
		}
	}
}

// Key returns the present key: the first one until Keys goes on.
func (f *Folder) Key() []byte { return f.keys.of(f.keys.at) }

var bucketLayouts = map[string]string{"hour": "2006-01-02T15:00:00Z", "day": "2006-01-02", "month": "2006-01", "year": "2006"}

func (f *Folder) makeKeys() error {
	k := &f.plan.key
	f.keys.text, f.keys.list, f.keys.at = f.keys.text[:0], f.keys.list[:0], 0
	switch k.kind {
	case keyStream:
		f.keys.text = append(f.keys.text, f.event.Stream...)
	case keyConstant:
		f.keys.text = append(f.keys.text, k.value...)
	case keyBucket:
		t := f.event.Time
		if k.bucket == "$recorded" {
			t = f.event.Recorded
		}
		f.keys.text = t.Std().AppendFormat(f.keys.text, bucketLayouts[k.by])
	default:
		return f.makeFieldKeys()
	}
	return f.addKey(eventKey{})
}

func (f *Folder) makeFieldKeys() error {
	sources := f.program.keys
	for i := range sources {
		s := &sources[i]
		if s.each {
			if err := f.eachKey(s); err != nil {
				return err
			}
			continue
		}
		complete := true
		for j := range s.parts {
			v := f.value(&s.parts[j])
			if v.Kind == avro.Null {
				complete = false
				break
			}
			if j > 0 {
				f.keys.text = append(f.keys.text, ',')
			}
			if len(s.parts) > 1 {
				f.keys.text = appendEscaped(f.keys.text, v.AppendText(nil))
			} else {
				f.keys.text = v.AppendText(f.keys.text)
			}
		}
		switch {
		case complete:
			if err := f.addKey(eventKey{source: s}); err != nil {
				return err
			}
		case len(sources) == 1:
			return poison("the event has no value for the key")
		default:
			f.keys.text = f.keys.text[:f.keyEnd()]
		}
	}
	return nil
}

// eachKey adds a key for each item of a list.
func (f *Folder) eachKey(s *keySource) error {
	v := f.value(&s.parts[0])
	if v.Kind == avro.Null {
		return nil
	}
	return eachScalar(v.Bytes, func(text []byte, item cell) error {
		f.keys.text = append(f.keys.text, text...)
		item.b = bytes.Clone(item.b)
		return f.addKey(eventKey{source: s, each: true, item: item})
	})
}

// eachScalar calls each for the scalars of a list in jsonb's form, but for nulls.
func eachScalar(list []byte, each func(text []byte, item cell) error) error {
	var items []json.RawMessage
	if err := json.Unmarshal(list, &items); err != nil {
		return poison("reading a list: %v", err)
	}
	for _, raw := range items {
		item := cell{set: true}
		switch {
		case string(raw) == "null":
			continue
		case raw[0] == '"':
			var text string
			if err := json.Unmarshal(raw, &text); err != nil {
				return poison("reading a list: %v", err)
			}
			item.b = []byte(text)
			raw = item.b
		default:
			item.i, _ = parseLong(raw) // of another number the text alone counts
		}
		if err := each(raw, item); err != nil {
			return err
		}
	}
	return nil
}

// keyEnd is where the last key ends.
func (f *Folder) keyEnd() int {
	if n := len(f.keys.list); n > 0 {
		return f.keys.list[n-1].end
	}
	return 0
}

// addKey adds the text behind the last key, unless it is there already.
func (f *Folder) addKey(k eventKey) error {
	k.start, k.end = f.keyEnd(), len(f.keys.text)
	most := maxKey
	if len(f.plan.indexes) > 0 {
		most = maxIndexedKey
	}
	if n := k.end - k.start; n == 0 || n > most {
		return poison("the key has %d bytes: want 1 to %d", n, most)
	}
	text := f.keys.text[k.start:k.end]
	if slices.ContainsFunc(f.keys.list, func(o eventKey) bool { return bytes.Equal(f.keys.text[o.start:o.end], text) }) {
		f.keys.text = f.keys.text[:k.start]
		return nil
	}
	f.keys.list = append(f.keys.list, k)
	return nil
}

// appendEscaped percent-encodes all but RFC 3986's unreserved characters.
func appendEscaped(dst, text []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range text {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			dst = append(dst, c)
		default:
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst
}
