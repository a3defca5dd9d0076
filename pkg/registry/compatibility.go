package registry

import (
	"fmt"
	"strings"

	"github.com/refoldhq/refold/pkg/avro"
)

// Incompatible says that a schema may not become a version of a subject, by the
// subject's level of compatibility.
type Incompatible struct {
	Subject string
	Level   avro.Level
	// Reasons are one for each version that stands in the way, each with the field.
	Reasons []string
}

func (e *Incompatible) Error() string {
	return fmt.Sprintf("the schema is incompatible with earlier versions of %s (%s): %s", e.Subject, e.Level, strings.Join(e.Reasons, "; "))
}
