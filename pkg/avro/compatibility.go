package avro

import (
	"fmt"
	"slices"
	"strings"
)

// Level says how the versions of a schema must fit together, in Confluent's
// words: BACKWARD, that a version reads what the one before wrote; FORWARD, that
// the one before reads what it writes; FULL, both; each with _TRANSITIVE for all
// before and not the last alone; NONE for nothing at all.
type Level string

// BackwardTransitive is the level where nobody has said another: every reader
// reads every event that was ever written.
const BackwardTransitive Level = "BACKWARD_TRANSITIVE"

// Levels are all there are.
var levels = []Level{"NONE", "BACKWARD", BackwardTransitive, "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"}

// ParseLevel returns the level of a name, in any case.
func ParseLevel(name string) (Level, error) {
	if l := Level(strings.ToUpper(name)); slices.Contains(levels, l) {
		return l, nil
	}
	return "", fmt.Errorf("%q is no level of compatibility: want one of %v", name, levels)
}

// Numbered is a version of a schema.
type Numbered struct {
	Version int
	Schema  *Schema
}

// Check compares a schema with the versions before it, oldest first, and returns
// one reason for each that the level does not allow; each names the field.
func (l Level) Check(schema *Schema, before []Numbered) (reasons []string) {
	direction, transitive := strings.CutSuffix(string(l), "_TRANSITIVE")
	if !transitive && len(before) > 1 {
		before = before[len(before)-1:]
	}
	for _, v := range before {
		if direction == "BACKWARD" || direction == "FULL" {
			if err := CheckBackward(v.Schema, schema); err != nil {
				reasons = append(reasons, fmt.Sprintf("data of version %d cannot be read with it: %v", v.Version, err))
			}
		}
		if direction == "FORWARD" || direction == "FULL" {
			if err := CheckBackward(schema, v.Schema); err != nil {
				reasons = append(reasons, fmt.Sprintf("its data cannot be read with version %d: %v", v.Version, err))
			}
		}
	}
	return reasons
}
