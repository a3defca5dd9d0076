package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readme returns the tables of all values, a section for each key of the top
// level that holds others.
func (v *value) readme() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("\n## Values\n\nMade from values.yaml by `make chart`.\n")
	var alone []*value
	for _, child := range v.children {
		if len(child.children) == 0 || child.free() {
			alone = append(alone, child)
		}
	}
	if err := table(&b, "General", "", "", alone); err != nil {
		return nil, err
	}
	for _, child := range v.children {
		if len(child.children) > 0 && !child.free() {
			if err := table(&b, "`"+child.name+"`", child.section, child.name+".", child.children); err != nil {
				return nil, err
			}
		}
	}
	return b.Bytes(), nil
}

func table(b *bytes.Buffer, title, text, prefix string, values []*value) error {
	fmt.Fprintf(b, "\n### %s\n\n", title)
	if text != "" {
		fmt.Fprintf(b, "%s\n\n", text)
	}
	b.WriteString("| value | default | what |\n|---|---|---|\n")
	return rows(b, prefix, values)
}

func rows(b *bytes.Buffer, prefix string, values []*value) error {
	for _, v := range values {
		if len(v.children) > 0 && !v.free() {
			if err := rows(b, prefix+v.name+".", v.children); err != nil {
				return err
			}
			continue
		}
		if v.description == "" {
			return fmt.Errorf("%s%s has no description: write a comment that begins with --", prefix, v.name)
		}
		shown, err := shownDefault(v.node)
		if err != nil {
			return err
		}
		description := v.description
		if one, ok := v.hint["enum"].([]any); ok {
			description += " One of " + words(one) + "."
		}
		fmt.Fprintf(b, "| `%s%s` | `%s` | %s |\n", prefix, v.name, shown, strings.ReplaceAll(description, "|", `\|`))
	}
	return nil
}

// shownDefault is a default on one line.
func shownDefault(node *yaml.Node) (string, error) {
	var decoded any
	if err := node.Decode(&decoded); err != nil {
		return "", fmt.Errorf("reading a default: %w", err)
	}
	text, err := json.Marshal(decoded)
	return strings.ReplaceAll(string(text), "|", `\|`), err
}

func words(values []any) string {
	var shown []string
	for _, v := range values {
		if v == "" {
			shown = append(shown, "empty")
		} else {
			shown = append(shown, fmt.Sprintf("`%v`", v))
		}
	}
	return strings.Join(shown, ", ")
}
