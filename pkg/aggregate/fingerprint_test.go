package aggregate

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/schemas"
)

// Types of one meaning, each with one thing in it that JSON depends on. Nothing of
// them but the state differs: they bind no event.
type (
	plainState struct {
		Root
		Count int
		At    inner
	}
	inner     struct{ When time.Time }
	otherKind struct {
		Root
		Count int64
		At    inner
	}
	otherTag struct {
		Root
		Count int `json:"n"`
		At    inner
	}
	otherName struct {
		Root
		Total int
		At    inner
	}
	otherInner struct {
		Root
		Count int
		At    struct{ When string }
	}
	more struct {
		Root
		Count int
		At    inner
		More  []string
	}
	pointer struct {
		Root
		Count *int
		At    inner
	}
)

// States whose types have the same names: what differs lies within.
func embeds(t *testing.T) string {
	type More struct{ N int }
	type state struct {
		Root
		More
	}
	return fingerprintOf[state](t)
}

func namesWhatItEmbeds(t *testing.T) string {
	type More struct{ N int }
	type state struct {
		Root
		More More
	}
	return fingerprintOf[state](t)
}

// bare marshals itself, and so does what embeds it.
type bare struct{}

func (bare) MarshalText() ([]byte, error) { return nil, nil }
func (*bare) UnmarshalText([]byte) error  { return nil }

func marshalsWhole(t *testing.T) string {
	type amount struct {
		bare
		cents int //nolint:unused // that it is there is what counts
	}
	type state struct {
		Root
		Has map[string][]amount
	}
	return fingerprintOf[state](t)
}

func marshalsFraction(t *testing.T) string {
	type amount struct {
		bare
		cents float64 //nolint:unused // that it is there is what counts
	}
	type state struct {
		Root
		Has map[string][]amount
	}
	return fingerprintOf[state](t)
}

func keysOfText(t *testing.T) string {
	type key string
	type state struct {
		Root
		Has map[key]bool
	}
	return fingerprintOf[state](t)
}

func keysOfNumbers(t *testing.T) string {
	type key int
	type state struct {
		Root
		Has map[key]bool
	}
	return fingerprintOf[state](t)
}

func fingerprintOf[A any, P Pointer[A]](t *testing.T) string {
	t.Helper()
	contracts, err := avro.LoadContracts(schemas.FS)
	require.NoError(t, err)
	category, _ := contracts.Category("User")
	d := Define[A, P]("User")
	for _, typ := range category.Types {
		d.Ignore(typ.Name)
	}
	codec, err := NewCodec(d, contracts, LocalIDs(contracts))
	require.NoError(t, err)
	return string(codec.Fingerprint())
}

// A snapshot's fingerprint tells types of states apart, by whatever changes their
// JSON, and does not change by itself.
func TestTheStateTypeAloneMakesAnotherFingerprint(t *testing.T) {
	t.Parallel()
	require.Equal(t, fingerprintOf[plainState](t), fingerprintOf[plainState](t))
	seen := map[string]string{fingerprintOf[plainState](t): "plain"}
	for name, fingerprint := range map[string]string{"kind": fingerprintOf[otherKind](t), "tag": fingerprintOf[otherTag](t), "name": fingerprintOf[otherName](t),
		"inner": fingerprintOf[otherInner](t), "more": fingerprintOf[more](t), "pointer": fingerprintOf[pointer](t),
		"embeds": embeds(t), "names what it embeds": namesWhatItEmbeds(t), "marshals whole": marshalsWhole(t), "marshals fractions": marshalsFraction(t),
		"keys of text": keysOfText(t), "keys of numbers": keysOfNumbers(t)} {
		require.Empty(t, seen[fingerprint], name)
		seen[fingerprint] = name
	}
}
