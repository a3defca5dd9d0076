package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/refoldhq/refold/pkg/avro"
)

// SchemaCommand is `writer schema`: what is made from schemas, and schemas from
// what is there.
type SchemaCommand struct {
	Golden goldenCommand `cmd:"" help:"Write golden events of every version that has none: from then on it can neither change nor go."`
}

var errNoFolder = errors.New("the contracts are those compiled in: name the folder to write to by --schemas")

type goldenCommand struct{}

// Run writes the golden files that are missing.
func (c *goldenCommand) Run(s *Settings) error {
	if s.Schemas == "" {
		return Usage(errNoFolder)
	}
	contracts, err := s.Contracts()
	if err != nil {
		return err
	}
	err = contracts.MissingGolden(os.DirFS(s.Schemas), func(file string, schema *avro.Schema) error {
		raw, err := avro.NewGolden(schema)
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

// writeFile writes a file and the folders above it.
func writeFile(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("making the folder of %s: %w", name, err)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
