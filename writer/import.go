package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/refoldhq/refold/pkg/service"
)

// importCommand sends a history to a writer's API.
type importCommand struct {
	remote `embed:""`

	File      string        `arg:"" optional:"" default:"-" help:"File of lines, each a body of POST /v1/append; - is standard input."`
	WriterURL string        `name:"writer-url" help:"API of the writer." default:"http://127.0.0.1:8080" placeholder:"URL" env:"REFOLD_WRITER_URL"`
	Name      string        `help:"Name of the import; a digest of the file's contents where it is empty. Events without an id get one that is made of the name, the line's number and its contents, so that importing a line again appends nothing. A file that has changed is another import: one that only grows, or is piped, needs a name that stays." placeholder:"NAME"`
	From      int64         `help:"Line to begin with, where an earlier run has come so far." default:"1"`
	Patience  time.Duration `help:"How long to try again while the writer cannot be reached and no line gets through." default:"2m"`
	Output    string        `short:"o" help:"Form of the output: table or json." enum:"table,json" default:"table"`
}

// shownRefusals is how many refused lines are named; all are counted.
const shownRefusals = 20

// Run imports, and says how many lines had which outcome.
func (c *importCommand) Run(ctx context.Context) error {
	in, size, err := c.open()
	if err != nil {
		return err
	}
	defer in.Close()
	client, err := c.client(0)
	if err != nil {
		return err
	}
	run := newImportRun(c, client, in, newImportShow(os.Stderr, c.Output == "json", size))
	err = run.all(ctx)
	run.outcome.Name = c.Name
	run.show.end()
	if printed := run.outcome.print(c.Output); err == nil {
		err = printed
	}
	switch {
	case err != nil && run.done >= c.From:
		return service.TryAgain(fmt.Errorf("importing %s: line %d and those before it are done: %w", c.File, run.done, err)).
			Try(fmt.Sprintf("the same command again, with --from=%d to skip what is done", run.done+1))
	case err != nil:
		return err
	case run.outcome.Refused > 0:
		return fmt.Errorf("importing %s: %d of %d lines were refused", c.File, run.outcome.Refused, run.outcome.Lines)
	}
	return nil
}

// open opens the lines and names the import; size is 0 where it is not known.
func (c *importCommand) open() (in *os.File, size int64, err error) {
	in = os.Stdin
	if c.File != "-" {
		if in, err = os.Open(c.File); err != nil {
			return nil, 0, service.NotFound(fmt.Errorf("opening the lines to import: %w", err))
		}
	}
	info, err := in.Stat()
	if err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	switch {
	case c.Name != "":
		return in, size, nil
	case err != nil || c.File == "-" || !info.Mode().IsRegular():
		return nil, 0, service.Usage(errors.Join(errors.New("a pipe has no name of its own, by which a line that comes again is known: give the import one with --name"), in.Close()))
	}
	if c.Name, err = digest(in); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("reading the lines to import: %w", err), in.Close())
	}
	return in, size, nil
}

// digest names a file by its contents, and leaves it at its beginning.
func digest(in io.ReadSeeker) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, in); err != nil {
		return "", err
	}
	_, err := in.Seek(0, io.SeekStart)
	return "sha256-" + hex.EncodeToString(h.Sum(nil)[:16]), err
}

// importOutcome is what an import has done.
type importOutcome struct {
	Name     string  `json:"name"`
	Lines    int64   `json:"lines"`
	Appended int64   `json:"appended"`
	Replayed int64   `json:"replayed"`
	Refused  int64   `json:"refused"`
	Seconds  float64 `json:"seconds"`
	Token    string  `json:"token"`
}

func (o importOutcome) print(form string) error {
	if form == "json" {
		return json.NewEncoder(os.Stdout).Encode(o)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMPORT\tLINES\tAPPENDED\tREPLAYED\tREFUSED\tTIME\tLINES/S")
	fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%v\t%.0f\n", o.Name, o.Lines, o.Appended, o.Replayed, o.Refused, (time.Duration(o.Seconds * float64(time.Second))).Round(time.Millisecond), float64(o.Lines)/max(o.Seconds, 0.001))
	return w.Flush()
}

// passes is an error that time may mend: the import goes on from the first line
// without an answer.
type passes struct{ error }

func (p passes) Unwrap() error { return p.error }

func mayPass(err error) bool { return errors.As(err, new(passes)) }
