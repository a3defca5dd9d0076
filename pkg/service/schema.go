package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/registry"
)

// SchemaCommand is `writer schema`: what is made from schemas, and schemas from
// what is there.
type SchemaCommand struct {
	Golden goldenCommand `cmd:"" help:"Write golden events of every version that has none: from then on it can neither change nor go."`
	Go     goCommand     `cmd:"" help:"Write a Go file with a struct for every event type."`
	Pull   pullCommand   `cmd:"" help:"Write the event schemas of categories as the external schema registry has them to the folder of contracts."`
	FromGo fromGoCommand `cmd:"" help:"Write the schemas of the events of this program's aggregates: those that are missing, and a next version of those whose structs have changed."`

	// Aggregates are those of the program, for from-go.
	Aggregates []aggregate.Type `kong:"-"`
}

// AfterApply hands the aggregates to from-go.
func (c *SchemaCommand) AfterApply(k *kong.Context) error {
	k.Bind(c.Aggregates)
	return nil
}

var errNoFolder = errors.New("the contracts are those compiled in: name the folder to write to by --schemas")

type goldenCommand struct {
	Example []string `help:"Data of an event as the API takes it, for a version whose upcaster takes no samples; may be repeated." placeholder:"TYPE.vN={...}" sep:"none"`
}

// examples returns the data by the base name of the golden file.
func (c *goldenCommand) examples() (map[string][][]byte, error) {
	byName := make(map[string][][]byte)
	for _, text := range c.Example {
		name, data, found := strings.Cut(text, "=")
		if !found {
			return nil, Usage(fmt.Errorf("--example: %q is not TYPE.vN={...}", text))
		}
		byName[name+".json"] = append(byName[name+".json"], []byte(data))
	}
	return byName, nil
}

// Run writes the golden files that are missing.
func (c *goldenCommand) Run(s *Settings) error {
	if s.Schemas == "" {
		return Usage(errNoFolder)
	}
	examples, err := c.examples()
	if err != nil {
		return err
	}
	contracts, err := s.Contracts()
	if err != nil {
		return err
	}
	err = contracts.MissingGolden(os.DirFS(s.Schemas), func(file string, t *avro.EventType, schema *avro.Schema) error {
		raw, err := t.NewGolden(schema, examples[path.Base(file)])
		if err != nil {
			return err
		}
		fmt.Println(file)
		return writeFile(filepath.Join(s.Schemas, filepath.FromSlash(file)), raw)
	})
	if err != nil {
		return err
	}
	_, err = contracts.CheckGolden(os.DirFS(s.Schemas))
	return err
}

type pullCommand struct {
	Categories []string `arg:"" help:"Categories whose events are taken, from the subjects <prefix>.<category in lower case>-<event>."`
}

// Run writes the schemas that are missing in the folder, and none where one that is
// there differs.
func (c *pullCommand) Run(ctx context.Context, s *Settings) error {
	switch {
	case s.Schemas == "":
		return Usage(errNoFolder)
	case s.registry == nil:
		return Usage(errors.New("there is no external schema registry to pull from: set SCHEMA_REGISTRY_URL"))
	}
	files := make(map[string][]byte)
	for _, category := range c.Categories {
		if err := pulled(ctx, s, category, files); err != nil {
			return err
		}
	}
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		present, err := os.ReadFile(filepath.Join(s.Schemas, filepath.FromSlash(name)))
		switch {
		case errors.Is(err, os.ErrNotExist):
			missing = append(missing, name)
		case err != nil:
			return fmt.Errorf("reading what is there: %w", err)
		case !sameSchema(present, files[name]):
			return fmt.Errorf("%s is another schema than the one that %s has: one of them has changed, which a version never does", name, s.registry)
		}
	}
	var written []string
	for _, name := range missing {
		file := filepath.Join(s.Schemas, filepath.FromSlash(name))
		if err := writeFile(file, files[name]); err != nil {
			return errors.Join(err, remove(written))
		}
		written = append(written, file)
	}
	if _, err := s.Contracts(); err != nil {
		return errors.Join(fmt.Errorf("what the registry has are no contracts, and nothing of it was kept: %w", err), remove(written))
	}
	for _, name := range missing {
		fmt.Println(name)
	}
	return nil
}

// pulled adds the files of a category's events. A type that was renamed goes on
// counting where its former name ended, as in the contracts that were registered.
func pulled(ctx context.Context, s *Settings, category string, files map[string][]byte) error {
	topic := kafka.TopicName(s.Prefix, category)
	events, err := s.registry.Events(ctx, topic)
	if err != nil {
		return fmt.Errorf("asking for the schemas of %s: %w", category, err)
	}
	if len(events) == 0 {
		return fmt.Errorf("%s has no subject %s-<event>: are the events of %s registered there, and is --prefix=%s right?", s.registry, topic, category, s.Prefix)
	}
	lists, formers := make(map[string][]registry.Version), make(map[string][]string)
	for _, full := range slices.Sorted(maps.Keys(events)) {
		for i, version := range events[full] {
			schema, err := avro.Parse([]byte(version.Schema))
			switch {
			case err != nil:
				return fmt.Errorf("version %d of %s: %w", version.Version, version.Subject, err)
			case schema.FullName() != full:
				return fmt.Errorf("version %d of %s is a record named %s, and the subject says %s", version.Version, version.Subject, schema.FullName(), full)
			case version.Version != i+1:
				return fmt.Errorf("%s has a version %d of %s and none %d: events may be written with the one that was deleted there; restore it, or keep the schemas as files", s.registry, version.Version, version.Subject, i+1)
			case i > 0:
			case lists[schema.Name()] != nil:
				return fmt.Errorf("%s and %s are events of one name: a category has each name once", lists[schema.Name()][0].Subject, version.Subject)
			default:
				lists[schema.Name()], formers[schema.Name()] = events[full], schema.Formerly()
			}
		}
	}
	for name, list := range lists {
		before := versionsBefore(name, lists, formers)
		for i, version := range list {
			files[path.Join("events", category, fmt.Sprintf("%s.v%d.avsc", name, before+i+1))] = append([]byte(version.Schema), '\n')
		}
	}
	return nil
}

// versionsBefore returns how many versions a type had under its former names.
func versionsBefore(name string, lists map[string][]registry.Version, formers map[string][]string) (n int) {
	for seen := []string{name}; ; seen = append(seen, name) {
		i := slices.IndexFunc(formers[name], func(former string) bool { return lists[former] != nil && !slices.Contains(seen, former) })
		if i < 0 {
			return n
		}
		name = formers[name][i]
		n += len(lists[name])
	}
}

func sameSchema(a, b []byte) bool {
	one, err := avro.Parse(a)
	if err != nil {
		return false
	}
	other, err := avro.Parse(b)
	return err == nil && one.Fingerprint() == other.Fingerprint()
}

type goCommand struct {
	Categories []string `arg:"" optional:"" help:"Categories to write; all without one."`
	Package    string   `help:"Package of the file." default:"events"`
	Out        string   `help:"File to write; standard output where it is empty." placeholder:"FILE" type:"path"`
	Check      bool     `help:"Write nothing, and fail unless the file is what would be written."`
}

// Run writes the file, or compares it.
func (c *goCommand) Run(s *Settings) error {
	contracts, err := s.Contracts()
	if err != nil {
		return err
	}
	var types []*avro.EventType
	for _, name := range c.Categories {
		if _, ok := contracts.Category(name); !ok {
			return Usage(fmt.Errorf("the contracts have no category %s", name))
		}
	}
	for _, category := range contracts.Categories() {
		if len(c.Categories) == 0 || slices.Contains(c.Categories, category.Name) {
			types = append(types, category.Types...)
		}
	}
	source, err := avro.GoSource(c.Package, types)
	if err != nil {
		return err
	}
	switch {
	case c.Check:
		present, err := os.ReadFile(c.Out)
		if err == nil && !bytes.Equal(present, source) {
			err = fmt.Errorf("%s is not what the schemas make: run the command without --check", c.Out)
		}
		return err
	case c.Out == "":
		_, err := os.Stdout.Write(source)
		return err
	default:
		return writeFile(c.Out, source)
	}
}

type fromGoCommand struct{}

// Run writes the schemas that are missing or out of date, and takes them back if
// the contracts do not fit together with them.
func (c *fromGoCommand) Run(s *Settings, aggregates []aggregate.Type) error {
	if s.Schemas == "" {
		return Usage(errNoFolder)
	}
	contracts, err := s.Contracts()
	if err != nil {
		return err
	}
	var written []string
	for _, a := range aggregates {
		files, err := writeSchemas(s.Schemas, contracts, a)
		written = append(written, files...)
		if err != nil {
			return errors.Join(err, remove(written))
		}
	}
	if _, err := s.Contracts(); err != nil {
		return errors.Join(err, remove(written))
	}
	for _, file := range written {
		fmt.Println(file)
	}
	return nil
}

func remove(files []string) (err error) {
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// writeSchemas writes the schemas of one aggregate's events.
func writeSchemas(dir string, contracts *avro.Contracts, a aggregate.Type) (written []string, _ error) {
	category, _ := contracts.Category(a.Category())
	events := a.Events()
	for _, name := range slices.Sorted(maps.Keys(events)) {
		version, namespace := 1, ""
		if category != nil {
			if t, ok := category.Type(name); ok {
				if t.Newest().Fits(events[name]) == nil {
					continue
				}
				version, namespace = len(t.Versions)+1, strings.TrimSuffix(strings.TrimSuffix(t.Newest().FullName(), name), ".")
			}
		}
		schema, err := avro.SchemaFromGo(events[name], name, namespace)
		if err != nil {
			return written, err
		}
		file := filepath.Join(dir, "events", a.Category(), fmt.Sprintf("%s.v%d.avsc", name, version))
		if err := writeFile(file, []byte(schema)); err != nil {
			return written, err
		}
		written = append(written, file)
	}
	return written, nil
}

// writeFile writes a file and the folders above it.
func writeFile(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("making the folder of %s: %w", name, err)
	}
	// Under another name first: a file that is there is whole.
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Chmod(0o644), file.Close()); err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", name, err), os.Remove(file.Name()))
	}
	return nil
}
