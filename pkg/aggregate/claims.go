package aggregate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/refoldhq/refold/pkg/eventstore"
)

// ClaimsReport is what was found when the claim table was compared with what
// aggregates say that they hold.
type ClaimsReport struct {
	// Aggregates were compared, and Claims are what they hold by their rules.
	Aggregates int64 `json:"aggregates"`
	Claims     int64 `json:"claims"`
	// Differ is how many aggregates are not at their rule, and First one of them.
	Differ int64         `json:"differ"`
	First  *ClaimsDiffer `json:"-"`
	// Repaired is how many aggregates were brought to their rule.
	Repaired int64 `json:"repaired,omitempty"`
}

func (r *ClaimsReport) add(other ClaimsReport) {
	r.Aggregates, r.Claims, r.Repaired = r.Aggregates+other.Aggregates, r.Claims+other.Claims, r.Repaired+other.Repaired
	if r.First == nil {
		r.First = other.First
	}
	r.Differ += other.Differ
}

// differs counts an aggregate that is not at its rule.
func (r *ClaimsReport) differs(d *ClaimsDiffer) {
	if r.Differ++; r.First == nil {
		r.First = d
	}
}

// ClaimsDiffer says that the claim table is not what the fold of an aggregate's
// events makes.
type ClaimsDiffer struct {
	Category, ID string
	Version      int64
	// Missing are claims that it should hold, and Extra those that it should not.
	Missing, Extra []Claim
	// Taken is who holds one of Missing, where a repair has met it.
	Taken *ClaimTaken

	seen eventstore.Seen
}

// Error names namespaces only: values are e-mail addresses and the like.
func (e *ClaimsDiffer) Error() string {
	var parts []string
	if len(e.Missing) > 0 {
		parts = append(parts, "does not hold what it should within "+namespaces(e.Missing))
	}
	if len(e.Extra) > 0 {
		parts = append(parts, "holds what it should not within "+namespaces(e.Extra))
	}
	if e.Taken != nil {
		parts = append(parts, e.Taken.Error())
	}
	return fmt.Sprintf("%s %s at version %d %s", e.Category, e.ID, e.Version, strings.Join(parts, ", "))
}

func namespaces(claims []Claim) string {
	var names []string
	for _, c := range claims {
		names = append(names, c.Namespace)
	}
	return strings.Join(names, ", ")
}

// VerifyClaims compares what the claim table says of every aggregate with what its
// rule says of the fold of its events. Where all is written by commands of one rule
// none differs; who appends events past the commands takes claims by himself.
func (r *Repository[A]) VerifyClaims(ctx context.Context) (report ClaimsReport, err error) {
	counted, err := r.eachClaimer(ctx, func(d *ClaimsDiffer) error {
		report.differs(d)
		return nil
	})
	report.add(counted)
	return report, err
}

// RepairClaims brings the claim table to the rule, as after a change of it. An
// aggregate takes and releases all at once or nothing. What another one holds, it
// does not get: such cases are tried again as long as others give way, and are what
// differs in the end. Commands may run meanwhile, of writers that have the same rule.
func (r *Repository[A]) RepairClaims(ctx context.Context) (report ClaimsReport, err error) {
	var repaired int64
	var left ClaimsReport
	waiting := make(map[string]bool)
	again := func(d *ClaimsDiffer) error {
		err := eventstore.Reclaim(ctx, r.rt.deps.Pool, d.seen, d.Missing, d.Extra)
		var taken *ClaimTaken
		var moved *eventstore.VersionConflict
		switch {
		case err == nil:
			repaired++
		case errors.As(err, &taken):
			d.Taken = taken
			left.differs(d)
			waiting[d.ID] = true
		case errors.As(err, &moved): // its own command has brought it to the rule, or the next round does
			waiting[d.ID] = true
		default:
			return err
		}
		return nil
	}
	if report, err = r.eachClaimer(ctx, again); err != nil {
		return report, err
	}
	for before := int64(-1); len(waiting) > 0 && repaired != before; {
		before, left = repaired, ClaimsReport{}
		round := slices.Sorted(maps.Keys(waiting))
		clear(waiting) // for the next round: each is tried once in this one
		for _, id := range round {
			if err := r.compareOne(ctx, id, &ClaimsReport{}, again); err != nil {
				return report, err
			}
		}
	}
	report.Repaired = repaired
	report.add(left)
	return report, nil
}

// eachClaimer compares every aggregate and calls f for those that differ.
func (r *Repository[A]) eachClaimer(ctx context.Context, f func(*ClaimsDiffer) error) (report ClaimsReport, err error) {
	if r.codec.d.claims == nil {
		return report, nil
	}
	category, ok := r.rt.deps.Store.Category(r.codec.d.category)
	if !ok {
		return report, fmt.Errorf("%w: %s", eventstore.ErrUnknownCategory, r.codec.d.category)
	}
	for after := ""; ; {
		page, err := r.rt.reader.Streams(ctx, category, after, pageSize)
		if err != nil {
			return report, err
		}
		for _, s := range page {
			if err := r.compareOne(ctx, s.ID, &report, f); err != nil {
				return report, err
			}
			after = s.ID
		}
		if len(page) < pageSize {
			return report, nil
		}
	}
}

// compareOne compares one aggregate, and calls f if it differs. Its claims are read
// behind its events; that nothing has come between is known if it is unchanged after.
func (r *Repository[A]) compareOne(ctx context.Context, id string, report *ClaimsReport, f func(*ClaimsDiffer) error) error {
	category, err := r.category(id)
	if err != nil {
		return err
	}
	for {
		a, holds, err := r.load(ctx, category, id)
		if err != nil {
			return err
		}
		d := &ClaimsDiffer{Category: category.Name, ID: id, Version: r.codec.Root(a).version, seen: r.codec.Root(a).seen(category),
			Missing: without(holds.rule, holds.table), Extra: without(holds.table, holds.rule)}
		var moved *eventstore.VersionConflict
		if len(d.Missing)+len(d.Extra) > 0 {
			err := eventstore.Conclude(ctx, r.rt.deps.Pool, eventstore.Conclusion{Seen: []eventstore.Seen{d.seen}})
			if errors.As(err, &moved) {
				continue
			}
			if err != nil {
				return err
			}
		}
		report.Aggregates++
		report.Claims += int64(len(holds.rule))
		if len(d.Missing)+len(d.Extra) == 0 {
			return nil
		}
		return f(d)
	}
}
