package readmodel

import (
	"errors"
	"fmt"
	"sync"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
)

// Plans compiles the definitions that the catalogue keeps, each once. It is safe
// for concurrent use.
type Plans struct {
	contracts *avro.Contracts
	deployed  []*projection.Definition

	mu    sync.Mutex
	plans map[string]*projection.Plan // by name and definition: that of a version may change in place
}

// NewPlans returns an empty cache. Plans of folds in Go have the functions of those
// of the deployed definitions that are of their revision, if there are any.
func NewPlans(contracts *avro.Contracts, deployed ...*projection.Definition) *Plans {
	return &Plans{contracts: contracts, deployed: deployed, plans: make(map[string]*projection.Plan)}
}

// ErrUnreadable says that this program cannot read a definition that the catalogue
// keeps: a program with newer contracts has made it.
var ErrUnreadable = errors.New("the definition was made by a program with other contracts")

// Plan returns the plan of a version, or [ErrUnreadable].
func (p *Plans) Plan(v Version) (*projection.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := v.Projection + "\n" + v.Definition
	if plan := p.plans[key]; plan != nil {
		return plan, nil
	}
	definitions, err := projection.ParseDefinitions(fmt.Sprintf("%s v%d", v.Projection, v.Number), []byte(v.Definition))
	if err != nil {
		return nil, fmt.Errorf("%w: reading the definition of %s version %d: %w", ErrUnreadable, v.Projection, v.Number, err)
	}
	for _, d := range definitions {
		if d.Name != v.Projection {
			continue
		}
		d.Bind(p.deployed)
		plan, err := projection.Compile(d, p.contracts)
		if err != nil {
			return nil, fmt.Errorf("%w: compiling %s version %d: %w", ErrUnreadable, v.Projection, v.Number, err)
		}
		p.plans[key] = plan
		return plan, nil
	}
	return nil, fmt.Errorf("the definition of %s version %d is not in the catalogue", v.Projection, v.Number)
}
