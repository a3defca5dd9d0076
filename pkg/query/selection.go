package query

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// selection is the fields of a row that a client wants, in its order; nil for the
// row as it is.
type selection []string

const maxSelected = 1000

func parseSelection(text string) (s selection, err error) {
	for name := range strings.SplitSeq(text, ",") {
		if slices.Contains(s, name) {
			return nil, bad("select", "the field "+strconv.Quote(name)+" stands twice")
		}
		if len(s) == maxSelected {
			return nil, bad("select", "at most "+strconv.Itoa(maxSelected)+" fields")
		}
		s = append(s, name)
	}
	return s, nil
}

// check finds out whether the version that has answered has the fields.
func (s selection) check(plans *readmodel.Plans, v readmodel.Version) error {
	if s == nil {
		return nil
	}
	plan, err := plans.Plan(v)
	if err != nil {
		return err
	}
	for _, name := range s {
		if name != "key" && !slices.ContainsFunc(plan.Fields(), func(f projection.Field) bool { return f.Name == name }) {
			return bad("select", "the read model has no field "+strconv.Quote(name))
		}
	}
	return nil
}

// appendRow appends what is selected of a row.
func (s selection) appendRow(b []byte, row json.RawMessage, key string) []byte {
	if s == nil {
		return append(b, row...)
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(row, &members) != nil {
		return append(b, row...) // what the database gave is JSON
	}
	b = append(b, '{')
	for i, name := range s {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(strictjson.AppendText(b, []byte(name)), ':')
		switch {
		case name == "key":
			b = strictjson.AppendText(b, []byte(key))
		case members[name] == nil: // a field that the row was written before
			b = append(b, "null"...)
		default:
			b = append(b, members[name]...)
		}
	}
	return append(b, '}')
}
