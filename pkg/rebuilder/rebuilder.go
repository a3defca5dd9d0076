// Package rebuilder fills new fields of a projection, or builds a fresh version of it
// from the beginning of the log, checks it, and lets it serve: preflight, load, index,
// storage check, catch up, verify, promote; roll back and retire follow.
//
// One job at a time works on a projection, under a lease that is compared in
// each of its transactions. Every step is written into the catalogue in the
// transaction that does its work, so a job that was killed anywhere is resumed
// by the next one, which repeats at most the partition that was in hand.
//
//   - [Rebuilder.Run] begins or resumes a rebuild and takes it to its end.
//   - [Rebuilder.Plan] says what Run would do, and changes nothing.
//   - [Rebuilder.Verify] compares a version with the log at any time.
//   - [Rebuilder.Promote], [Rebuilder.RollBack] and [Rebuilder.Retire] change
//     which version serves, and drop one that does not.
//   - [Rebuilder.Serve] runs what was asked for over HTTP.
//
// It refuses to build from an incomplete history: a topic that was truncated,
// compacted or made anew is found by the dense sequence of each slot, and the
// refusal names the first event that is missing. Into a
// version that is fed it writes new fields only, while it holds the lock of the
// partition's progress, which the engine needs to commit: see fields.go.
package rebuilder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/engine"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/readmodel"
	"github.com/refoldhq/refold/pkg/registry"
)

// Config says where a rebuilder works.
type Config struct {
	DatabaseURL string
	Kafka       kafka.Config
	// Prefix begins the names of groups.
	Prefix string
	// Owner names this process for people; the host's name and the pid by default.
	Owner string
	// LeaseTime is how long a job that died is waited for; 10 s.
	LeaseTime time.Duration
	// MemoryBytes bounds what a rebuild takes in this process, whatever its options
	// say: they were written by somebody who did not know the process. 0 is no bound.
	MemoryBytes int64
}

// Deps are what a rebuilder stands on.
type Deps struct {
	// Pool needs a few connections; a job opens others of its own, see [Options].
	Pool      *pgxpool.Pool
	Schemas   registry.Schemas
	Contracts *avro.Contracts
	// Definitions are those that are deployed.
	Definitions []*projection.Definition
	Logger      *slog.Logger
	Metrics     *Metrics
}

// Source says where a load reads.
type Source string

// Sources of a load.
const (
	FromTopic      Source = "topic"      // Kafka, from offset zero
	FromEventStore Source = "eventstore" // the event table
	// FromEither reads topics, and the event table for partitions that do not hold
	// their whole history.
	FromEither Source = "auto"
)

// Verification says how much is verified before a version may serve.
type Verification string

// Verifications, each with all that stands before it.
const (
	VerifySample        Verification = "sample"        // coverage, storage, a sample of streams, the difference
	VerifyFull          Verification = "full"          // every row against a fold of the event table
	VerifyDeterministic Verification = "deterministic" // and a second fold at another parallelism
)

// folds is how often the whole log is folded, the load included.
func (v Verification) folds() float64 {
	switch v {
	case VerifyFull:
		return 2
	case VerifyDeterministic:
		return 3
	}
	return 1
}

// Options say how a rebuild is done. They are kept with it.
type Options struct {
	// Promote is "auto" or "manual".
	Promote string `json:"promote"`
	Source  Source `json:"source"`
	// Verify is how thoroughly the version is checked.
	Verify Verification `json:"verify"`
	// MemoryBytes bounds what the process takes; 512 MiB.
	MemoryBytes int64 `json:"memoryBytes"`
	// Rate bounds the events read in a second, by loads and by verifications; 0 for no
	// bound. What came meanwhile is applied as fast as it goes.
	Rate int `json:"rate,omitempty"`
	// Parallel is how many partitions are loaded at a time; the number of CPUs. Each
	// has one connection to the database and one client of Kafka.
	Parallel int `json:"parallel"`
	// Keep is how long the version that served is fed on, for a roll back.
	Keep Duration `json:"keep"`
	// Fresh builds a version even where new fields or indexes could be made in place.
	Fresh bool `json:"fresh,omitempty"`
	// Back builds a definition that the projection has left.
	Back bool `json:"back,omitempty"`
	// Force promotes in spite of a failed verification, for the reason given.
	Force string `json:"force,omitempty"`
}

// Duration is a duration that is text in JSON, such as "24h0m0s".
type Duration time.Duration

// MarshalText returns the duration as package time writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads a duration as package time does.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// ErrOptions is wrapped when options are not possible.
var ErrOptions = errors.New("the options are not possible")

// withDefaults fills in what is not set and checks the rest.
func (o Options) withDefaults() (Options, error) {
	if o.Promote == "" {
		o.Promote = "auto"
	}
	if o.Source == "" {
		o.Source = FromTopic
	}
	if o.Verify == "" {
		o.Verify = VerifySample
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 512 << 20
	}
	if o.Parallel == 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	if o.Keep == 0 {
		o.Keep = Duration(24 * time.Hour)
	}
	switch {
	case o.Promote != "auto" && o.Promote != "manual":
		return o, fmt.Errorf("%w: promote is %q: want auto or manual", ErrOptions, o.Promote)
	case o.Source != FromTopic && o.Source != FromEventStore && o.Source != FromEither:
		return o, fmt.Errorf("%w: source is %q: want topic, eventstore or auto", ErrOptions, o.Source)
	case o.Verify != VerifySample && o.Verify != VerifyFull && o.Verify != VerifyDeterministic:
		return o, fmt.Errorf("%w: verify is %q: want sample, full or deterministic", ErrOptions, o.Verify)
	case o.MemoryBytes < 32<<20:
		return o, fmt.Errorf("%w: memory is %d bytes: want at least 32 MiB", ErrOptions, o.MemoryBytes)
	case o.Rate < 0, o.Parallel < 1, o.Parallel > 256, o.Keep < 0:
		return o, fmt.Errorf("%w: rate, parallel and keep must not be negative, parallel from 1 to 256", ErrOptions)
	}
	return o, nil
}

// Rebuilder runs rebuilds. It is safe for concurrent use.
type Rebuilder struct {
	cfg       Config
	deps      Deps
	pool      *pgxpool.Pool
	catalogue *readmodel.Catalogue
	plans     *readmodel.Plans
	events    *eventstore.Reader

	// stopAt, when set, is called around every write to the database, and an error
	// ends the job there as a kill would: nothing is tidied up. For tests.
	stopAt func(point string) error
	// rowLimit, when set, takes the place of what the memory allows for rows.
	rowLimit int64
	faults   faults
}

// New returns a rebuilder. It does not dial.
func New(cfg Config, deps Deps) *Rebuilder {
	if cfg.LeaseTime == 0 {
		cfg.LeaseTime = 10 * time.Second
	}
	if cfg.Owner == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		cfg.Owner = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	if deps.Metrics == nil {
		deps.Metrics = NewMetrics(nil)
	}
	return &Rebuilder{cfg: cfg, deps: deps, pool: deps.Pool, catalogue: readmodel.NewCatalogue(deps.Pool), plans: readmodel.NewPlans(deps.Contracts, deps.Definitions...),
		events: eventstore.NewReader(deps.Pool), stopAt: func(string) error { return nil }}
}

// ErrNoDefinition says that no deployed definition has the name.
var ErrNoDefinition = errors.New("no such projection is defined")

// compile returns the plan of the deployed definition.
func (r *Rebuilder) compile(name string) (*projection.Plan, error) {
	for _, d := range r.deps.Definitions {
		if d.Name == name {
			return projection.Compile(d, r.deps.Contracts)
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoDefinition, name)
}

// categories returns those that feed a plan.
func (r *Rebuilder) categories(ctx context.Context, plan *projection.Plan) ([]eventstore.Category, error) {
	all, err := eventstore.ReadCategories(ctx, r.pool)
	if err != nil {
		return nil, err
	}
	var list []eventstore.Category
	for _, name := range plan.Categories() {
		found := false
		for _, c := range all {
			if c.Name == name {
				list, found = append(list, c), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: %s", engine.ErrNoCategory, name)
		}
	}
	return list, nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of ours
	}
	return b
}
