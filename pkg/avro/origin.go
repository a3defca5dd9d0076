package avro

import (
	"fmt"
	"slices"
	"strings"
)

// Origin returns the name that the event type had in its first version. No later
// version changes it, and no two types of a category share it.
func (t *EventType) Origin() string { return t.Versions[0].Name() }

// OriginOf returns what identifies a field of the newest version, given its path:
// the path of the first version that had it. Renames by aliases do not change it,
// nor does any other later version, and no two fields share it. A path that is no
// field is returned as it is.
func (t *EventType) OriginOf(path ...string) string {
	joined := strings.Join(path, ".")
	if origin, ok := t.origins[joined]; ok {
		return origin
	}
	return joined
}

// originsOf finds the origins of all fields of the last version.
func originsOf(versions []*Schema) map[string]string {
	var origins map[string]string
	var before []Field
	for n, schema := range versions {
		o := origination{before: origins, now: make(map[string]string), taken: make(map[string]bool)}
		o.inherit(schema.Fields(), before, "", "")
		o.begin(n + 1)
		origins, before = o.now, schema.Fields()
	}
	return origins
}

// origination finds the origins of one version from those of the one before.
type origination struct {
	before, now map[string]string // by path
	taken       map[string]bool   // origins of this version
	born        []string          // paths that the version before did not have
}

// inherit walks the fields of a record and of those in it, beside what they were:
// the field of the same name, or else the one that an alias names, as the
// resolution of data has it.
func (o *origination) inherit(fields, olds []Field, prefix, oldPrefix string) {
	for _, f := range fields {
		path := prefix + f.Name
		old := predecessor(f, fields, olds)
		if old == nil {
			o.born = append(o.born, path)
			o.inherit(f.Type.Fields, nil, path+".", "")
			continue
		}
		if origin := o.before[oldPrefix+old.Name]; !o.taken[origin] {
			o.now[path], o.taken[origin] = origin, true
		} else { // two fields claim to go on one
			o.born = append(o.born, path)
		}
		o.inherit(f.Type.Fields, old.Type.Fields, path+".", oldPrefix+old.Name+".")
	}
}

func predecessor(f Field, siblings, olds []Field) *Field {
	for i := range olds {
		if olds[i].Name == f.Name {
			return &olds[i]
		}
	}
	for i := range olds {
		name := olds[i].Name
		if slices.Contains(f.aliases, name) && !slices.ContainsFunc(siblings, func(s Field) bool { return s.Name == name }) {
			return &olds[i]
		}
	}
	return nil
}

// begin gives the fields that are new their own paths as origins, unless another
// field began with that one.
func (o *origination) begin(version int) {
	for _, path := range o.born {
		origin := path
		if o.taken[origin] {
			origin = fmt.Sprintf("%s (of version %d)", path, version)
		}
		o.now[path], o.taken[origin] = origin, true
	}
}
