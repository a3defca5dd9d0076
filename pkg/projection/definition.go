// Package projection turns definitions into plans and folds events into rows by
// them. It does no IO.
//
// A [Definition] is what an author wrote, in YAML or in Go ([Of], [Fold]); [Compile] types it against the
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
	"strings"

	"github.com/goccy/go-yaml/parser"
)

// Definition is a projection as its author wrote it.
type Definition struct {
	Name       string
	Categories []string
	// File and Source say where it came from; the catalogue keeps Source.
	File, Source string

	categoryAt place
	// Of a definition in Go: what its rows are read into, and what folds them.
	check func(*Plan) error
	fold  *foldDef
	err   error // of a definition in Go: why there is none

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
	// Of a reference in the long form.
	when, value, key *exprDef
	transforms       []string
}

func (r ref) String() string { return strings.Join(append([]string{r.event}, r.path...), ".") }

// exprDef is an expression as it was written.
type exprDef struct {
	text string
	at   place
}

type keyDef struct {
	kind   keyKind
	parts  []ref // of a composite or a single key; the event is empty for "in every event"
	each   bool  // the part is a list: a key for each of its items
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
	// fields are those of an object, children rows inside the row.
	fields   []fieldDef
	children *childrenDef
	typ      *typeDef // in the definition of a fold in Go
}

type childrenDef struct {
	key    keyDef
	fields []fieldDef
	remove []ref
	at     place
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
