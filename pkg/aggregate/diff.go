package aggregate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Change is a difference between two states.
type Change struct {
	// Path is a JSON pointer to what differs.
	Path string `json:"path"`
	// From and To are the values; nil where there is none.
	From json.RawMessage `json:"from,omitempty"`
	To   json.RawMessage `json:"to,omitempty"`
}

// Diff returns the differences between two states in JSON, by path. Objects are
// compared by their members, arrays by index; numbers are compared as they are
// written.
func Diff(from, to []byte) ([]Change, error) {
	a, err := decodeState(from)
	if err != nil {
		return nil, err
	}
	b, err := decodeState(to)
	if err != nil {
		return nil, err
	}
	changes := []Change{}
	compare("", a, b, &changes)
	return changes, nil
}

func decodeState(raw []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("reading a state: %w", err)
	}
	return v, nil
}

// absent stands for a member that is not there, which null is not.
type absent struct{}

func compare(path string, a, b any, changes *[]Change) {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			compareObjects(path, x, y, changes)
			return
		}
	case []any:
		if y, ok := b.([]any); ok {
			for i := range max(len(x), len(y)) {
				compare(path+"/"+strconv.Itoa(i), at(x, i), at(y, i), changes)
			}
			return
		}
	}
	from, to := encodeValue(a), encodeValue(b)
	if !bytes.Equal(from, to) {
		*changes = append(*changes, Change{Path: path, From: from, To: to})
	}
}

func at(list []any, i int) any {
	if i < len(list) {
		return list[i]
	}
	return absent{}
}

func compareObjects(path string, x, y map[string]any, changes *[]Change) {
	names := maps.Clone(x)
	maps.Copy(names, y)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		compare(path+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), memberOfObject(x, name), memberOfObject(y, name), changes)
	}
}

func memberOfObject(object map[string]any, name string) any {
	if v, ok := object[name]; ok {
		return v
	}
	return absent{}
}

func encodeValue(v any) json.RawMessage {
	if _, none := v.(absent); none {
		return nil
	}
	raw, _ := json.Marshal(v) // it was read from JSON
	return raw
}
