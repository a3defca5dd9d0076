package avro

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/bits"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/refoldhq/refold/pkg/event"
)

// Contracts are the event types of all categories, as a folder holds them:
//
//	events/<Category>/<EventType>.v<N>.avsc    versions 1 to n of an event type
//	events/<Category>/category.yaml            optional: slots, partitions, compatibility
type Contracts struct {
	categories []*CategoryContract
}

// CategoryContract is what is agreed about one category.
type CategoryContract struct {
	Name              string
	Slots, Partitions int
	// Compatibility is how versions of event types must fit together, or "" where
	// the category says nothing and BACKWARD_TRANSITIVE holds.
	Compatibility Level
	Types         []*EventType // by name
}

// Type returns an event type by its name, or by one that it had in a former
// version: that of events which were stored before it was renamed.
func (c *CategoryContract) Type(name string) (*EventType, bool) {
	i, ok := slices.BinarySearchFunc(c.Types, name, func(t *EventType, name string) int { return strings.Compare(t.Name, name) })
	if !ok {
		i = slices.IndexFunc(c.Types, func(t *EventType) bool { return slices.Contains(t.Former, name) })
	}
	if i < 0 {
		return nil, false
	}
	return c.Types[i], true
}

// Categories returns all categories by name.
func (c *Contracts) Categories() []*CategoryContract { return c.categories }

// Category returns a category by its name.
func (c *Contracts) Category(name string) (*CategoryContract, bool) {
	i, ok := slices.BinarySearchFunc(c.categories, name, func(c *CategoryContract, name string) int { return strings.Compare(c.Name, name) })
	if !ok {
		return nil, false
	}
	return c.categories[i], true
}

// LoadContracts reads the contracts below a folder and checks them: names,
// versions without a gap that fit together as [NewEventType] says, and no two
// categories whose topics would have one name. All errors are reported together,
// each with its file. A folder without events is no error.
func LoadContracts(fsys fs.FS, upcasters ...Upcaster) (*Contracts, error) {
	entries, err := fs.ReadDir(fsys, "events")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the contracts: %w", err)
	}
	c := &Contracts{}
	var failures []error
	for _, entry := range entries {
		if !entry.IsDir() {
			failures = append(failures, fmt.Errorf("events/%s: a file where folders of categories belong", entry.Name()))
			continue
		}
		category, err := loadCategory(fsys, entry.Name(), upcasters)
		failures = append(failures, err)
		c.categories = append(c.categories, category)
	}
	failures = append(failures, c.checkTopics())
	if errors.Join(failures...) == nil { // else a type that is refused would seem not to exist
		for _, u := range upcasters {
			failures = append(failures, c.checkTarget(u))
		}
	}
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	return c, nil
}

// checkTarget refuses an upcaster of an event type that does not exist.
func (c *Contracts) checkTarget(u Upcaster) error {
	if category, ok := c.Category(u.Category); ok {
		if _, ok := category.Type(u.Type); ok {
			return nil
		}
	}
	return fmt.Errorf("the upcaster of %s/%s from version %d: there is no such event type", u.Category, u.Type, u.From)
}

// checkTopics refuses categories that differ in case only.
func (c *Contracts) checkTopics() error {
	seen := make(map[string]string)
	for _, category := range c.categories {
		lower := strings.ToLower(category.Name)
		if other := seen[lower]; other != "" {
			return fmt.Errorf("events/%s: its topic would be that of the category %s: rename one of them", category.Name, other)
		}
		seen[lower] = category.Name
	}
	return nil
}

var schemaFile = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*)\.v([1-9][0-9]{0,3})\.avsc$`)

func loadCategory(fsys fs.FS, name string, upcasters []Upcaster) (*CategoryContract, error) {
	c := &CategoryContract{Name: name, Slots: event.DefaultSlots, Partitions: event.DefaultPartitions}
	dir := path.Join("events", name)
	if err := event.CheckCategory(name); err != nil {
		return c, fmt.Errorf("%s: %w", dir, err)
	}
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return c, fmt.Errorf("reading %s: %w", dir, err)
	}
	versions := make(map[string]map[int]*Schema)
	var failures []error
	for _, entry := range entries {
		file := path.Join(dir, entry.Name())
		if strings.HasPrefix(entry.Name(), ".") { // such as the links of a mounted ConfigMap
			continue
		}
		if entry.Name() == "category.yaml" {
			failures = append(failures, c.configure(fsys, file))
			continue
		}
		m := schemaFile.FindStringSubmatch(entry.Name())
		if m == nil {
			failures = append(failures, fmt.Errorf("%s: want <EventType>.v<N>.avsc or category.yaml", file))
			continue
		}
		n, _ := strconv.Atoi(m[2]) // up to four digits, says the expression
		schema, err := loadSchema(fsys, file, m[1])
		if err != nil {
			failures = append(failures, err)
			continue
		}
		if versions[m[1]] == nil {
			versions[m[1]] = make(map[int]*Schema)
		}
		versions[m[1]][n] = schema
	}
	for _, typ := range slices.Sorted(maps.Keys(versions)) {
		if renamed(typ, versions) {
			continue
		}
		t, err := c.collect(typ, versions, upcasters)
		failures = append(failures, err)
		if err == nil {
			c.Types = append(c.Types, t)
		}
	}
	return c, errors.Join(failures...)
}

// renamed tells whether another event type goes on where one ends.
func renamed(name string, versions map[string]map[int]*Schema) bool {
	for other := range versions {
		if former(other, versions) == name {
			return true
		}
	}
	return false
}

// former returns the name that an event type had before: an alias of its first
// schema, whose last version is the one before that; "" for none.
func former(name string, versions map[string]map[int]*Schema) string {
	first := slices.Min(slices.Collect(maps.Keys(versions[name])))
	for _, alias := range versions[name][first].root.aliases {
		old := unqualified(alias)
		if before := versions[old]; old != name && len(before) > 0 && slices.Max(slices.Collect(maps.Keys(before))) == first-1 {
			return old
		}
	}
	return ""
}

// collect puts the versions of an event type into order, those under former names
// first.
func (c *CategoryContract) collect(name string, versions map[string]map[int]*Schema, upcasters []Upcaster) (*EventType, error) {
	names, all := []string{name}, maps.Clone(versions[name])
	for old := former(name, versions); old != ""; old = former(old, versions) {
		names = append(names, old)
		maps.Copy(all, versions[old])
	}
	var list []*Schema
	for n := 1; n <= len(all); n++ {
		schema, ok := all[n]
		if !ok {
			return nil, fmt.Errorf("events/%s/%s.v%d.avsc: the version is missing; where the type had another name then, name that in the aliases of version %d", c.Name, names[len(names)-1], n, n+1)
		}
		list = append(list, schema)
	}
	level := c.Compatibility
	if level == "" {
		level = BackwardTransitive
	}
	upcasters = slices.DeleteFunc(slices.Clone(upcasters), func(u Upcaster) bool { return u.Category != c.Name || !slices.Contains(names, u.Type) })
	return NewEventType(c.Name, name, level, list, upcasters...)
}

func (c *CategoryContract) configure(fsys fs.FS, file string) error {
	raw, err := fs.ReadFile(fsys, file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	config := struct {
		Slots, Partitions int
		Compatibility     string
	}{c.Slots, c.Partitions, ""}
	if err := yaml.UnmarshalWithOptions(raw, &config, yaml.Strict()); err != nil {
		return fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, true))
	}
	if config.Slots < 1 || config.Slots > event.MaxSlots || bits.OnesCount(uint(config.Slots)) != 1 {
		return fmt.Errorf("%s: slots is %d: want a power of two up to %d", file, config.Slots, event.MaxSlots)
	}
	if config.Partitions < 1 || config.Slots%config.Partitions != 0 {
		return fmt.Errorf("%s: partitions is %d, which does not divide %d slots", file, config.Partitions, config.Slots)
	}
	c.Slots, c.Partitions = config.Slots, config.Partitions
	if config.Compatibility == "" {
		return nil
	}
	if c.Compatibility, err = ParseLevel(config.Compatibility); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func loadSchema(fsys fs.FS, file, typ string) (*Schema, error) {
	raw, err := fs.ReadFile(fsys, file)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	schema, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if schema.Name() != typ {
		return nil, fmt.Errorf("%s: the record is named %s: name it %s", file, schema.Name(), typ)
	}
	return schema, nil
}
