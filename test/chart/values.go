package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// value is one key of values.yaml with what is said about it.
type value struct {
	name        string // of the key alone
	description string // what follows --
	section     string // a comment without --
	hint        map[string]any
	node        *yaml.Node
	children    []*value // of a map with keys
}

// readValues returns the root. Descriptions that are missing are taken from the
// first key of the same name: such keys mean the same everywhere.
func readValues(text []byte) (*value, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("reading the values: %w", err)
	}
	root := &value{node: document.Content[0]}
	if err := root.readChildren(""); err != nil {
		return nil, err
	}
	root.describe(map[string]*value{})
	return root, nil
}

func (v *value) readChildren(path string) error {
	if v.node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(v.node.Content); i += 2 {
		child := &value{name: v.node.Content[i].Value, node: v.node.Content[i+1]}
		at := strings.TrimPrefix(path+"."+child.name, ".")
		if err := child.readComment(v.node.Content[i].HeadComment); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if err := child.readChildren(at); err != nil {
			return err
		}
		v.children = append(v.children, child)
	}
	return nil
}

// readComment reads the last paragraph above a key.
func (v *value) readComment(comment string) error {
	paragraphs := strings.Split(comment, "\n\n")
	described := false
	for line := range strings.Lines(paragraphs[len(paragraphs)-1]) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "#"))
		if hint, ok := strings.CutPrefix(line, "@schema "); ok {
			if err := json.Unmarshal([]byte(hint), &v.hint); err != nil {
				return fmt.Errorf("reading @schema: %w", err)
			}
			continue
		}
		if text, ok := strings.CutPrefix(line, "-- "); ok {
			described, line = true, text
		}
		to := &v.section
		if described {
			to = &v.description
		}
		*to = strings.TrimSpace(*to + " " + line)
	}
	return nil
}

func (v *value) describe(known map[string]*value) {
	for _, child := range v.children {
		first, seen := known[child.name]
		if child.description == "" && seen {
			child.description = first.description
			if child.hint == nil {
				child.hint = first.hint
			}
		}
		if child.description != "" && !seen {
			known[child.name] = child
		}
		child.describe(known)
	}
}

// free tells whether a map takes keys that the default does not have.
func (v *value) free() bool {
	more, said := v.hint["additionalProperties"]
	return len(v.children) == 0 || said && more != false
}

// schema returns the JSON schema of a value.
func (v *value) schema() map[string]any {
	schema := map[string]any{}
	switch {
	case v.node.Kind == yaml.MappingNode && v.free():
		schema["type"] = "object"
	case v.node.Kind == yaml.MappingNode:
		properties := map[string]any{}
		for _, child := range v.children {
			properties[child.name] = child.schema()
		}
		schema["type"], schema["additionalProperties"], schema["properties"] = "object", false, properties
	case v.node.Kind == yaml.SequenceNode:
		schema["type"] = "array"
	default:
		schema["type"] = map[string]string{"!!str": "string", "!!bool": "boolean", "!!int": "integer", "!!float": "number"}[v.node.Tag]
	}
	if v.description != "" {
		schema["description"] = v.description
	}
	for key, hint := range v.hint {
		schema[key] = hint
	}
	return schema
}

func (v *value) schemaFile() ([]byte, error) {
	schema := v.schema()
	// Helm itself adds this one, for charts that have charts of their own.
	schema["properties"].(map[string]any)["global"] = map[string]any{"type": "object", "description": "For charts that contain this one; not read."}
	schema["$schema"] = "http://json-schema.org/draft-07/schema#"
	schema["title"] = "Values of refold's chart"
	text, err := json.MarshalIndent(schema, "", "  ")
	return append(text, '\n'), err
}
