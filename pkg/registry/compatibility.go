package registry

import (
	"fmt"
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
)

// Incompatible says that a schema may not become a version of a subject, by the
// subject's level of compatibility.
type Incompatible struct {
	Subject, Level string
	// Reasons are one for each version that stands in the way, each with the field.
	Reasons []string
}

func (e *Incompatible) Error() string {
	return fmt.Sprintf("the schema is incompatible with earlier versions of %s (%s): %s", e.Subject, e.Level, strings.Join(e.Reasons, "; "))
}

// DefaultLevel is that of subjects for which nobody has set one: every consumer
// reads every event that was ever written.
const DefaultLevel = "BACKWARD_TRANSITIVE"

var levels = []string{"NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"}

// earlier is a version that a new one is compared with.
type earlier struct {
	version int
	schema  *avro.Schema
}

// incompatibilities compares a schema with versions, oldest first, by a level:
// BACKWARD means that the new schema reads what the old one wrote, FORWARD that
// the old one reads what the new one writes, FULL both; with the newest version
// only, or with all if TRANSITIVE.
func incompatibilities(level string, schema *avro.Schema, versions []earlier) (reasons []string) {
	direction, _ := strings.CutSuffix(level, "_TRANSITIVE")
	if direction == level && len(versions) > 1 {
		versions = versions[len(versions)-1:]
	}
	for _, v := range versions {
		if direction == "BACKWARD" || direction == "FULL" {
			if err := avro.CheckBackward(v.schema, schema); err != nil {
				reasons = append(reasons, fmt.Sprintf("data of version %d cannot be read with it: %v", v.version, err))
			}
		}
		if direction == "FORWARD" || direction == "FULL" {
			if err := avro.CheckBackward(schema, v.schema); err != nil {
				reasons = append(reasons, fmt.Sprintf("its data cannot be read with version %d: %v", v.version, err))
			}
		}
	}
	return reasons
}

func knownLevel(level string) bool { return slices.Contains(levels, level) }
