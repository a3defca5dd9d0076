// Command chart makes the chart's README.md and values.schema.json from its
// values.yaml and their comments:
//
//	cd test/chart && go run .          (make chart)
//
// A comment that begins with -- describes a value, a line that begins with
// @schema adds to its JSON schema. The tests of this module compare what is
// committed.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// chartDir is the chart, from the folder of this module.
const chartDir = "../../helm/refold"

func main() {
	made, err := generate(chartDir)
	if err == nil {
		for name, text := range made {
			if err = os.WriteFile(filepath.Join(chartDir, name), text, 0o644); err != nil {
				break
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

// generate returns the files that follow from values.yaml, by name.
func generate(dir string) (map[string][]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		return nil, fmt.Errorf("reading the values: %w", err)
	}
	values, err := readValues(text)
	if err != nil {
		return nil, err
	}
	schema, err := values.schemaFile()
	if err != nil {
		return nil, err
	}
	head, err := os.ReadFile("README.head.md")
	if err != nil {
		return nil, fmt.Errorf("reading the head of the README: %w", err)
	}
	table, err := values.readme()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"values.schema.json": schema, "README.md": append(head, table...)}, nil
}
