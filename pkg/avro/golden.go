package avro

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"regexp"
	"strings"

	"github.com/refoldhq/refold/pkg/strictjson"
)

// Golden are payloads of one version of an event type, kept for ever in a file
//
//	golden/<Category>/<EventType>.v<N>.json
//
// beside the contracts, from the day on which the version is shipped: the log
// holds such bytes, so no later program may read them otherwise.
type Golden struct {
	// Fingerprint is that of the version's schema.
	Fingerprint string        `json:"fingerprint"`
	Events      []GoldenEvent `json:"events"`
}

// GoldenEvent is one payload, in hexadecimal, and what it means.
type GoldenEvent struct {
	Bytes string          `json:"bytes"`
	Data  json.RawMessage `json:"data"`
}

var goldenName = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*)\.v([1-9][0-9]{0,3})\.json$`)

// goldenEvents is how many payloads a version gets.
const goldenEvents = 4

func goldenFile(category, typ string, version int) string {
	return path.Join("golden", category, fmt.Sprintf("%s.v%d.json", typ, version))
}

// goldenAttempts is how many samples are made to find payloads that can be upcast.
const goldenAttempts = 4096

// NewGolden makes the file of a version of a type that has none: payloads of all
// kinds, those that can be read as the newest version. Where an upcaster takes
// nothing that chance makes, such as an owner of two names, examples are needed: data
// in JSON as the API takes it, which are the payloads then.
func (t *EventType) NewGolden(schema *Schema, examples [][]byte) ([]byte, error) {
	g := Golden{Fingerprint: fingerprintText(schema)}
	var refused error
	add := func(payload []byte) error {
		doc, err := schema.AppendJSON(nil, payload)
		if err != nil {
			return fmt.Errorf("reading a payload of %s: %w", schema.Name(), err)
		}
		e := GoldenEvent{Bytes: hex.EncodeToString(payload), Data: doc}
		refused = t.checkGoldenEvent(schema, &e)
		if known := len(g.Events); refused == nil && (known == 0 || g.Events[known-1].Bytes != e.Bytes) { // an event without fields has one payload
			g.Events = append(g.Events, e)
		}
		return nil
	}
	for _, example := range examples {
		doc := strictjson.NewReader(example)
		payload, err := schema.EncodeJSON(nil, doc)
		if err = cmp.Or(err, doc.End()); err == nil {
			err = add(payload)
		}
		if err = cmp.Or(err, refused); err != nil {
			return nil, fmt.Errorf("the example %s of %s: %w", example, schema.Name(), err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for made, taken := 0, 0; len(examples) == 0 && made < goldenAttempts && taken < goldenEvents; made++ {
		if err := add(schema.Sample(nil, r)); err != nil {
			return nil, err
		}
		if refused == nil {
			taken++
		}
	}
	if len(g.Events) == 0 {
		return nil, fmt.Errorf("no sample of version %d of %s can be read as the newest version: name an example of its data: %w", t.VersionOf(schema), schema.Name(), refused)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(g)
	return out.Bytes(), err
}

func fingerprintText(schema *Schema) string {
	fingerprint := schema.Fingerprint()
	return hex.EncodeToString(fingerprint[:])
}

// MissingGolden calls yield for every version of the contracts that has no golden
// file in the folder.
func (c *Contracts) MissingGolden(fsys fs.FS, yield func(file string, t *EventType, schema *Schema) error) error {
	for _, category := range c.categories {
		for _, t := range category.Types {
			for i, schema := range t.Versions {
				file := goldenFile(category.Name, schema.Name(), i+1)
				if _, err := fs.Stat(fsys, file); !errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err := yield(file, t, schema); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// CheckGolden compares contracts with the golden files of a folder: every version
// has one, so that none changes or vanishes unnoticed; every payload is read by its
// own schema as it was, and can be read as the newest version of its type. A folder
// without golden files is fine: nothing was shipped. All that is wrong is reported
// together.
func (c *Contracts) CheckGolden(fsys fs.FS) (payloads int, _ error) {
	files, err := fs.Glob(fsys, "golden/*/*.json")
	if err != nil || len(files) == 0 {
		return 0, err
	}
	var failures []error
	for _, file := range files {
		n, err := c.checkGoldenFile(fsys, file)
		payloads += n
		failures = append(failures, err)
	}
	err = c.MissingGolden(fsys, func(file string, _ *EventType, _ *Schema) error {
		failures = append(failures, fmt.Errorf("%s: the version has no golden file yet: `writer schema golden` writes it", file))
		return nil
	})
	return payloads, errors.Join(append(failures, err)...)
}

func (c *Contracts) checkGoldenFile(fsys fs.FS, file string) (payloads int, _ error) {
	parts := strings.Split(file, "/")
	m := goldenName.FindStringSubmatch(parts[2])
	if m == nil {
		return 0, fmt.Errorf("%s: want golden/<Category>/<EventType>.v<N>.json", file)
	}
	category, ok := c.Category(parts[1])
	var t *EventType
	if ok {
		t, ok = category.Type(m[1])
	}
	var n int
	if ok {
		fmt.Sscan(m[2], &n) // digits, says the expression
		ok = n <= len(t.Versions) && t.Versions[n-1].Name() == m[1]
	}
	if !ok {
		return 0, fmt.Errorf("%s: the version was shipped, and events/%s/%s.v%s.avsc is gone: events of it are in logs, so it must stay", file, parts[1], m[1], m[2])
	}
	raw, err := fs.ReadFile(fsys, file)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", file, err)
	}
	if err := checkSyntax(raw); err != nil {
		return 0, fmt.Errorf("%s: %w: put it back as it was shipped", file, err)
	}
	var g Golden
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&g); err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	schema := t.Versions[n-1]
	if now := fingerprintText(schema); now != g.Fingerprint {
		return 0, fmt.Errorf("%s: the version was shipped with the schema %.8s, and events/%s/%s.v%d.avsc is %.8s by now: put it back and make a version %d", file, g.Fingerprint, parts[1], m[1], n, now, len(t.Versions)+1)
	}
	var failures []error
	for i, e := range g.Events {
		if err := t.checkGoldenEvent(schema, &e); err != nil {
			failures = append(failures, fmt.Errorf("%s: event %d: %w", file, i+1, err))
		}
	}
	return len(g.Events), errors.Join(failures...)
}

func (t *EventType) checkGoldenEvent(schema *Schema, e *GoldenEvent) error {
	payload, err := hex.DecodeString(e.Bytes)
	if err != nil {
		return err
	}
	doc, err := schema.AppendJSON(nil, payload)
	if err != nil {
		return err
	}
	var want bytes.Buffer
	if err := json.Compact(&want, e.Data); err != nil {
		return err
	}
	if !bytes.Equal(want.Bytes(), doc) {
		return fmt.Errorf("its bytes mean %s, they meant %s", doc, want.Bytes())
	}
	upgrade, err := t.Upgrade(schema)
	if err != nil {
		return err
	}
	newest, err := upgrade.Append(nil, payload)
	if err != nil {
		return fmt.Errorf("it cannot be read as version %d: %w", len(t.Versions), err)
	}
	return t.Newest().Scan(newest)
}
