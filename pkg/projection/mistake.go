package projection

import (
	"fmt"
	"strings"
)

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
