// Package projection turns definitions into plans and folds events into rows by
// them. It does no IO.
//
// A [Definition] is what an author wrote, in YAML; [Compile] types it against the
// event schemas and makes a [Plan]. A [Folder] folds the events of one partition:
// [Folder.Begin] decodes what the plan needs of an event and says which row it
// concerns, [Folder.Apply] folds it into that [Row].
//
// A row of one stream is written by one partition in order, so any operator is
// allowed. A shared row is fed by several streams and written from several
// partitions: its operators do not depend on the order, rows are folded from
// empty ones and merged by the statement of [Plan.MergeSQL], so that a live run,
// a rebuild and any parallelism give the same bytes.
package projection

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Definition is a projection as its author wrote it.
type Definition struct {
	Name       string
	Categories []string
	// File and Source say where it came from; the catalogue keeps Source.
	File, Source string

	key     keyDef
	fields  []fieldDef
	remove  []ref
	indexes []indexDef
	at      place
}

// place is where something stands in a source.
type place struct {
	line, column int
}

// ref names an event, and what of it: a field's path or a value that starts
// with $. "*" names every event.
type ref struct {
	event string
	path  []string
	at    place
}

func (r ref) String() string { return strings.Join(append([]string{r.event}, r.path...), ".") }

type keyDef struct {
	kind   keyKind
	parts  []ref // of a composite or a single key; the event is empty for "in every event"
	bucket string
	by     string
	value  string
	at     place
}

type keyKind int

const (
	keyStream keyKind = iota
	keyFields
	keyBucket
	keyConstant
)

// fieldDef is a field and its operators.
type fieldDef struct {
	name string
	at   place
	key  bool
	ops  []opDef
	// initial is the value of a new row.
	initial    *literal
	hasInitial bool
}

type opDef struct {
	name    string // from, count, ...
	ref     ref
	literal *literal // of set
}

// literal is a constant of the definition: nil, bool, int64, float64 or string.
type literal struct {
	value any
	at    place
}

type indexDef struct {
	fields []string
	unique bool
	at     place
}

// SourceError says what is wrong in a definition, and where.
type SourceError struct {
	File         string
	Line, Column int
	// Excerpt is the line with a caret below the column.
	Excerpt string
	Msg     string
}

func (e *SourceError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s\n%s", e.File, e.Line, e.Column, e.Msg, e.Excerpt)
}

// errorAt returns an error at a place of the definition's source.
func sourceError(file, source string, at place, format string, args ...any) error {
	e := &SourceError{File: file, Line: at.line, Column: at.column, Msg: fmt.Sprintf(format, args...)}
	if lines := strings.Split(source, "\n"); at.line >= 1 && at.line <= len(lines) {
		number := fmt.Sprintf("%4d | ", at.line)
		e.Excerpt = number + lines[at.line-1] + "\n" + strings.Repeat(" ", len(number)+max(0, at.column-1)) + "^"
	}
	return e
}

func (d *Definition) errorf(at place, format string, args ...any) error {
	return sourceError(d.File, d.Source, at, format, args...)
}

// LoadDefinitions reads projections/*.yaml below a folder, but for *.test.yaml,
// which package refoldtest reads. A folder without them is no error.
func LoadDefinitions(fsys fs.FS) ([]*Definition, error) {
	files, err := fs.Glob(fsys, "projections/*.yaml")
	if err != nil {
		return nil, err
	}
	var all []*Definition
	var failures []error
	seen := make(map[string]string)
	for _, file := range files {
		if strings.HasSuffix(file, ".test.yaml") {
			continue
		}
		raw, err := fs.ReadFile(fsys, file)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		list, err := ParseDefinitions(path.Clean(file), raw)
		failures = append(failures, err)
		for _, d := range list {
			if other := seen[d.Name]; other != "" {
				failures = append(failures, d.errorf(d.at, "the projection %s is defined in %s too", d.Name, other))
			}
			seen[d.Name] = file
			all = append(all, d)
		}
	}
	return all, errors.Join(failures...)
}

// ParseDefinitions reads the YAML documents of a file. The error is a
// [*SourceError] at the first mistake.
func ParseDefinitions(file string, src []byte) ([]*Definition, error) {
	parsed, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, syntaxError(file, string(src), err)
	}
	var list []*Definition
	for _, doc := range parsed.Docs {
		if doc.Body == nil {
			continue
		}
		r := reader{file: file, source: string(src)}
		d, err := r.definition(doc.Body)
		if err != nil {
			return nil, err
		}
		d.File, d.Source = file, string(src)
		if len(parsed.Docs) > 1 {
			d.Source = documentAt(string(src), d.at.line)
		}
		list = append(list, d)
	}
	return list, nil
}

// documentAt returns the YAML document around a line, with empty lines before it,
// so that lines keep their numbers.
func documentAt(source string, line int) string {
	lines := strings.Split(source, "\n")
	from, to := 0, len(lines)
	for i, l := range lines {
		if !strings.HasPrefix(l, "---") {
			continue
		}
		if i < line-1 {
			from = i + 1
		} else {
			to = i
			break
		}
	}
	return strings.Repeat("\n", from) + strings.Join(lines[from:to], "\n")
}

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
		key := v.Key.String()
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
		case "key":
			d.key, err = r.key(v)
		case "fields":
			d.fields, err = r.fields(v)
		case "remove":
			d.remove, err = r.refs(v)
		case "indexes":
			d.indexes, err = r.indexes(v)
		default:
			err = r.fail(k, "unknown member %q%s", key, suggest(key, []string{"projection", "category", "categories", "key", "fields", "remove", "indexes"}))
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

func (r *reader) ref(n ast.Node) (ref, error) {
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

func (r *reader) key(n ast.Node) (k keyDef, err error) {
	k.at = placeOf(n)
	if _, mapping := n.(*ast.MappingNode); !mapping {
		if _, mapping = n.(*ast.MappingValueNode); !mapping {
			parts, err := r.texts(n)
			k.kind = keyFields
			for _, p := range parts {
				k.parts = append(k.parts, ref{path: strings.Split(p, "."), at: k.at})
			}
			if len(parts) == 1 && parts[0] == "$stream" {
				k = keyDef{at: k.at}
			}
			return k, err
		}
	}
	err = r.members(n, "a key", func(key string, kn, v ast.Node) (err error) {
		switch key {
		case "bucket":
			k.kind = keyBucket
			k.bucket, err = r.text(v)
		case "by":
			k.by, err = r.text(v)
		case "constant":
			k.kind = keyConstant
			k.value, err = r.text(v)
		case "from":
			k.kind = keyFields
			k.parts, err = r.refs(v)
		default:
			err = r.fail(kn, "unknown member %q of key%s", key, suggest(key, []string{"bucket", "by", "constant", "from"}))
		}
		return err
	})
	switch {
	case err != nil:
	case k.kind == keyBucket && k.bucket != "$time" && k.bucket != "$recorded":
		err = r.fail(n, "a bucket is one of $time or $recorded, not %q", k.bucket)
	case k.kind == keyBucket && bucketLayouts[k.by] == "":
		err = r.fail(n, "by is hour, day, month or year, not %q", k.by)
	case k.kind == keyStream:
		err = r.fail(n, "a key is a field, a list of fields, {bucket, by}, {constant} or {from}")
	}
	return k, err
}

var operators = []string{"from", "set", "clear", "initial", "count", "increment", "decrement", "add", "subtract", "min", "max", "first", "last", "key"}

func (r *reader) fields(n ast.Node) (fields []fieldDef, err error) {
	err = r.members(n, "fields", func(key string, k, v ast.Node) error {
		f := fieldDef{name: key, at: placeOf(k)}
		if !fieldName.MatchString(key) || reserved[key] {
			return r.fail(k, "%q cannot name a field%s", key, map[bool]string{true: ": it means something in queries"}[reserved[key]])
		}
		err := r.members(v, "a field", func(op string, ok, ov ast.Node) error { return r.operator(&f, op, ok, ov) })
		fields = append(fields, f)
		return err
	})
	return fields, err
}

func (r *reader) operator(f *fieldDef, op string, k, v ast.Node) error {
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
	case "from", "clear", "count", "increment", "decrement", "add", "subtract", "min", "max", "first", "last":
		refs, err := r.refs(v)
		for _, x := range refs {
			f.ops = append(f.ops, opDef{name: op, ref: x})
		}
		return err
	default:
		return r.fail(k, "unknown operator %q%s", op, suggest(op, operators))
	}
	return nil
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

// suggest returns ": did you mean x?" for the nearest of the candidates, if one
// is near.
func suggest(word string, candidates []string) string {
	best, distance := "", len(word)/2+1
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(word), strings.ToLower(c)); d < distance {
			best, distance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", best)
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
