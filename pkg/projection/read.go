package projection

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

var yamlPosition = regexp.MustCompile(`^\[(\d+):(\d+)\] (.*)`)

func syntaxError(file, source string, err error) error {
	at := place{1, 1}
	msg, _, _ := strings.Cut(err.Error(), "\n")
	if m := yamlPosition.FindStringSubmatch(msg); m != nil {
		fmt.Sscan(m[1], &at.line) // digits, says the expression
		fmt.Sscan(m[2], &at.column)
		msg = m[3]
	}
	return sourceError(file, source, at, "%s", msg)
}

// reader reads the nodes of one document.
type reader struct {
	file, source string
}

func (r *reader) fail(n ast.Node, format string, args ...any) error {
	return sourceError(r.file, r.source, placeOf(n), format, args...)
}

func placeOf(n ast.Node) place {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		return placeOf(m.Values[0].Key)
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return at(t)
	}
	return place{1, 1}
}

func at(t *token.Token) place { return place{t.Position.Line, t.Position.Column} }

// nameOf is a member's name, without the quotes that it may be written in.
func nameOf(k ast.MapKeyNode) string {
	if s, ok := k.(*ast.StringNode); ok {
		return s.Value
	}
	return k.String()
}

// members calls each for the members of a mapping and refuses repeated ones.
func (r *reader) members(n ast.Node, what string, each func(key string, k, v ast.Node) error) error {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return r.fail(n, "%s is a mapping", what)
	}
	seen := make(map[string]bool)
	for _, v := range values {
		key := nameOf(v.Key)
		if seen[key] {
			return r.fail(v.Key, "%s has %s twice", what, key)
		}
		seen[key] = true
		if err := each(key, v.Key, v.Value); err != nil {
			return err
		}
	}
	return nil
}

var (
	projectionName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)
	fieldName      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
	reserved       = map[string]bool{"key": true, "order": true, "select": true, "limit": true, "cursor": true, "count": true, "and": true, "or": true, "not": true}
)

func (r *reader) definition(n ast.Node) (*Definition, error) {
	d := &Definition{at: placeOf(n)}
	err := r.members(n, "a definition", func(key string, k, v ast.Node) (err error) {
		switch key {
		case "projection":
			d.Name, err = r.text(v)
			if err == nil && !projectionName.MatchString(d.Name) {
				err = r.fail(v, "%q cannot name a projection: want [a-z][a-z0-9_]{0,39}", d.Name)
			}
		case "category", "categories":
			d.Categories, err = r.texts(v)
			d.categoryAt = placeOf(v)
		case "key":
			d.key, err = r.key(v)
		case "fields":
			d.fields, err = r.fields(v)
		case "remove":
			d.remove, err = r.refs(v)
		case "indexes":
			d.indexes, err = r.indexes(v)
		case "fold":
			d.fold, err = r.fold(v)
		default:
			err = r.fail(k, "unknown member %q%s", key, suggest(key, []string{"projection", "category", "categories", "key", "fields", "remove", "indexes", "fold"}))
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case d.Name == "":
		return nil, r.fail(n, "projection: the name is missing")
	case len(d.Categories) == 0:
		return nil, r.fail(n, "category: the projection %s has none", d.Name)
	case len(d.fields) == 0:
		return nil, r.fail(n, "fields: the projection %s has none", d.Name)
	}
	return d, nil
}

func (r *reader) text(n ast.Node) (string, error) {
	s, ok := n.(ast.ScalarNode)
	if !ok {
		return "", r.fail(n, "a text belongs here")
	}
	if text, ok := s.GetValue().(string); ok {
		return text, nil
	}
	return s.String(), nil
}

// list calls each for the items of a sequence, or for the one item that stands
// in place of a sequence.
func (r *reader) list(n ast.Node, each func(ast.Node) error) error {
	sequence, ok := n.(*ast.SequenceNode)
	if !ok {
		return each(n)
	}
	for _, v := range sequence.Values {
		if err := each(v); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) texts(n ast.Node) (texts []string, err error) {
	err = r.list(n, func(n ast.Node) error {
		s, err := r.text(n)
		texts = append(texts, s)
		return err
	})
	return texts, err
}

func (r *reader) refs(n ast.Node) (refs []ref, err error) {
	err = r.list(n, func(n ast.Node) error {
		x, err := r.ref(n)
		refs = append(refs, x)
		return err
	})
	return refs, err
}

// ref reads a reference: Event, Event.path, or the long form
// {event, value, transform, when}, of a map's operators with a key too.
func (r *reader) ref(n ast.Node) (x ref, err error) {
	if isMapping(n) {
		return r.longRef(n)
	}
	s, err := r.text(n)
	if err != nil {
		return ref{}, err
	}
	parts := strings.Split(s, ".")
	for _, p := range parts {
		if p == "" {
			return ref{}, r.fail(n, "%q names no event: want Event or Event.field", s)
		}
	}
	return ref{event: parts[0], path: parts[1:], at: placeOf(n)}, nil
}

func (r *reader) longRef(n ast.Node) (x ref, err error) {
	err = r.members(n, "a reference", func(key string, k, v ast.Node) (err error) {
		switch key {
		case "event":
			if isMapping(v) {
				return r.fail(v, "an event's name belongs here")
			}
			var named ref
			named, err = r.ref(v)
			x.event, x.path, x.at = named.event, named.path, named.at
		case "value":
			x.value, err = r.expression(v)
		case "when":
			x.when, err = r.expression(v)
		case "key":
			x.key, err = r.expression(v)
		case "transform":
			x.transforms, err = r.texts(v)
			for _, t := range x.transforms {
				if err == nil && !slices.Contains(transforms, t) {
					err = r.fail(v, "there is no transform %q: want %s%s", t, strings.Join(transforms, ", "), suggest(t, transforms))
				}
			}
		default:
			err = r.fail(k, "unknown member %q of a reference%s", key, suggest(key, []string{"event", "value", "when", "key", "transform"}))
		}
		return err
	})
	switch {
	case err != nil:
	case x.event == "":
		err = r.fail(n, "event: the name is missing")
	case len(x.path) > 0 && x.value != nil:
		err = r.fail(n, "%s names a value, and so does value: leave one out", x)
	}
	return x, err
}

func (r *reader) expression(n ast.Node) (*exprDef, error) {
	s, err := r.text(n)
	if err == nil && strings.TrimSpace(s) == "" {
		err = r.fail(n, "the expression is empty")
	}
	return &exprDef{s, placeOf(n)}, err
}

func isMapping(n ast.Node) bool {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return true
	}
	return false
}

func (r *reader) key(n ast.Node) (k keyDef, err error) {
	k.at = placeOf(n)
	if !isMapping(n) {
		parts, err := r.texts(n)
		k.kind = keyFields
		for _, p := range parts {
			if slices.Contains(strings.Split(p, "."), "") {
				return k, r.fail(n, "%q names no field", p)
			}
			k.parts = append(k.parts, ref{path: strings.Split(p, "."), at: k.at})
		}
		switch {
		case err != nil:
		case len(parts) == 0:
			err = r.fail(n, "the key has no parts")
		case len(parts) == 1 && parts[0] == "$stream":
			k = keyDef{at: k.at}
		}
		return k, err
	}
	err = r.members(n, "a key", func(key string, kn, v ast.Node) (err error) {
		if k.kind != keyStream && key != "by" {
			return r.fail(kn, "a key is made in one way: %s comes on top", key)
		}
		switch key {
		case "bucket":
			k.kind = keyBucket
			k.bucket, err = r.text(v)
		case "by":
			k.by, err = r.text(v)
		case "constant":
			k.kind = keyConstant
			if k.value, err = r.text(v); err == nil && (k.value == "" || len(k.value) > maxIndexedKey || strings.ContainsRune(k.value, 0)) {
				err = r.fail(v, "a constant key has 1 to %d bytes", maxIndexedKey)
			}
		case "from", "each":
			k.kind, k.each = keyFields, key == "each"
			k.parts, err = r.keyRefs(v, k.each)
		default:
			err = r.fail(kn, "unknown member %q of a key%s", key, suggest(key, []string{"bucket", "by", "constant", "from", "each"}))
		}
		return err
	})
	switch {
	case err != nil:
	case k.kind == keyBucket && k.bucket != "$time" && k.bucket != "$recorded":
		err = r.fail(n, "a bucket is one of $time or $recorded, not %q", k.bucket)
	case k.kind == keyBucket && bucketLayouts[k.by] == "":
		err = r.fail(n, "by is hour, day, month or year, not %q", k.by)
	case k.kind != keyBucket && k.by != "":
		err = r.fail(n, "by belongs to a bucket")
	case k.kind == keyStream, k.kind == keyFields && len(k.parts) == 0:
		err = r.fail(n, "a key is a field, a list of fields, {bucket, by}, {constant}, {from} or {each}")
	}
	return k, err
}

// keyRefs reads references for a key; each may name a list in every event.
func (r *reader) keyRefs(n ast.Node, each bool) ([]ref, error) {
	refs, err := r.refs(n)
	for i := range refs {
		if x := &refs[i]; each && len(x.path) == 0 && x.value == nil {
			x.path, x.event = []string{x.event}, ""
		}
	}
	if each && len(refs) > 1 {
		for _, x := range refs {
			if x.event == "" {
				return nil, r.fail(n, "each is one list in every event, or lists of events: Event.list")
			}
		}
	}
	return refs, err
}

var operators = []string{"from", "set", "clear", "initial", "count", "increment", "decrement", "add", "subtract", "min", "max", "first", "last", "distinct",
	"include", "exclude", "put", "delete", "fields", "children", "key"}

func (r *reader) fields(n ast.Node) (fields []fieldDef, err error) {
	err = r.members(n, "fields", func(key string, k, v ast.Node) error {
		f := fieldDef{name: key, at: placeOf(k)}
		if !fieldName.MatchString(key) || reserved[key] {
			return r.fail(k, "%q cannot name a field%s", key, map[bool]string{true: ": it means something in queries"}[reserved[key]])
		}
		err := r.members(v, "a field", func(op string, ok, ov ast.Node) error { return r.operator(&f, op, ok, ov) })
		if err == nil && (f.fields != nil || f.children != nil) && (len(f.ops) > 0 || f.hasInitial || f.key || f.fields != nil && f.children != nil) {
			for _, o := range f.ops {
				if f.children != nil && o.name == "clear" {
					continue
				}
				return r.fail(k, "the field %s has fields of its own, so %s has no place beside them", key, o.name)
			}
			if f.hasInitial || f.key || f.fields != nil && f.children != nil {
				return r.fail(k, "the field %s has fields of its own, so nothing has a place beside them", key)
			}
		}
		fields = append(fields, f)
		return err
	})
	return fields, err
}

func (r *reader) operator(f *fieldDef, op string, k, v ast.Node) (err error) {
	switch op {
	case "key":
		b, ok := v.(*ast.BoolNode)
		if !ok || !b.Value {
			return r.fail(v, "key is true or left out")
		}
		f.key = true
	case "initial":
		l, err := r.literal(v)
		f.initial, f.hasInitial = l, true
		return err
	case "set":
		return r.members(v, "set", func(event string, k, v ast.Node) error {
			l, err := r.literal(v)
			f.ops = append(f.ops, opDef{name: "set", ref: ref{event: event, at: placeOf(k)}, literal: l})
			return err
		})
	case "fields":
		f.fields, err = r.fields(v)
		if err == nil && len(f.fields) == 0 {
			err = r.fail(v, "an object has fields")
		}
	case "children":
		f.children, err = r.children(v)
	case "type":
		f.typ, err = r.typ(v)
	case "from", "clear", "count", "increment", "decrement", "add", "subtract", "min", "max", "first", "last", "distinct", "include", "exclude", "put", "delete":
		refs, err := r.refs(v)
		for _, x := range refs {
			if x.key != nil && op != "put" && op != "delete" {
				return r.fail(k, "%s knows no key: that is for put and delete", op)
			}
			f.ops = append(f.ops, opDef{name: op, ref: x})
		}
		return err
	default:
		return r.fail(k, "unknown operator %q%s", op, suggest(op, operators))
	}
	return err
}

func (r *reader) children(n ast.Node) (*childrenDef, error) {
	c := &childrenDef{at: placeOf(n)}
	err := r.members(n, "children", func(key string, k, v ast.Node) (err error) {
		switch key {
		case "key":
			c.key, err = r.key(v)
		case "fields":
			c.fields, err = r.fields(v)
		case "remove":
			c.remove, err = r.refs(v)
		default:
			err = r.fail(k, "unknown member %q of children%s", key, suggest(key, []string{"key", "fields", "remove"}))
		}
		return err
	})
	switch {
	case err != nil:
	case c.key.kind != keyFields || c.key.each || len(c.key.parts) > 1 && c.key.parts[0].event == "":
		err = r.fail(n, "children have a key: one field of their events, or {from: [Event.field]}")
	case len(c.fields) == 0:
		err = r.fail(n, "children have fields")
	}
	return c, err
}

func (r *reader) literal(n ast.Node) (*literal, error) {
	l := &literal{at: placeOf(n)}
	switch n := n.(type) {
	case *ast.NullNode:
	case *ast.BoolNode:
		l.value = n.Value
	case *ast.IntegerNode:
		switch v := n.Value.(type) {
		case int64:
			l.value = v
		case uint64:
			if v > 1<<63-1 {
				return nil, r.fail(n, "the number is beyond 64 bits")
			}
			l.value = int64(v)
		}
	case *ast.FloatNode:
		l.value = n.Value
	case *ast.StringNode:
		l.value = n.Value
	default:
		return nil, r.fail(n, "a constant belongs here: null, a boolean, a number or a text")
	}
	return l, nil
}

func (r *reader) indexes(n ast.Node) (indexes []indexDef, err error) {
	err = r.list(n, func(n ast.Node) error {
		x := indexDef{at: placeOf(n)}
		err := r.members(n, "an index", func(key string, k, v ast.Node) (err error) {
			switch key {
			case "fields":
				x.fields, err = r.texts(v)
			case "unique":
				b, ok := v.(*ast.BoolNode)
				if !ok {
					return r.fail(v, "unique is true or false")
				}
				x.unique = b.Value
			default:
				err = r.fail(k, "unknown member %q of an index%s", key, suggest(key, []string{"fields", "unique"}))
			}
			return err
		})
		if err == nil && len(x.fields) == 0 {
			err = r.fail(n, "an index has fields")
		}
		indexes = append(indexes, x)
		return err
	})
	return indexes, err
}
