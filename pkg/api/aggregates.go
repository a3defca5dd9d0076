package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/problem"
)

// getAggregate answers with an aggregate as it is, or as it was at a version or
// a time.
func (a *aggregates) getAggregate(w http.ResponseWriter, r *http.Request) error {
	h, id, err := a.handler(r)
	if err != nil {
		return err
	}
	params, err := query(r, "version", "at")
	if err != nil {
		return err
	}
	when, err := momentOf(params)
	if err != nil {
		return err
	}
	view, err := h.At(r.Context(), id, when)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", `"`+strconv.FormatInt(view.Version, 10)+`"`)
	return respond(w, map[string]any{"category": view.Category, "stream": view.ID, "version": view.Version, "recorded": view.Recorded, "state": view.State})
}

func momentOf(params map[string]string) (when aggregate.Moment, err error) {
	text, byTime := params["at"]
	if _, byVersion := params["version"]; byVersion && byTime {
		return when, problem.BadParameter("at", "it excludes the parameter version")
	}
	if byTime {
		if when.Recorded, err = event.ParseTime(text); err != nil {
			return when, problem.BadParameter("at", err.Error())
		}
		return when, nil
	}
	when.Version, err = number(params, "version", 0, 1<<62)
	if err == nil && params["version"] != "" && when.Version == 0 {
		err = problem.BadParameter("version", "it is 0: versions begin at 1")
	}
	return when, err
}

// getDiff answers with what changed between two versions; 0 is before the first
// event, and without "to" it is the present version.
func (a *aggregates) getDiff(w http.ResponseWriter, r *http.Request) error {
	h, id, err := a.handler(r)
	if err != nil {
		return err
	}
	params, err := query(r, "from", "to")
	if err != nil {
		return err
	}
	if _, given := params["from"]; !given {
		return problem.BadParameter("from", "it is missing")
	}
	from, err := number(params, "from", 0, 1<<62)
	if err != nil {
		return err
	}
	to, err := number(params, "to", 0, 1<<62)
	if err != nil {
		return err
	}
	if _, given := params["to"]; given && to == 0 {
		return problem.BadParameter("to", "it is 0: versions begin at 1")
	}
	after, err := h.At(r.Context(), id, aggregate.Moment{Version: to})
	if err != nil {
		return err
	}
	before, err := stateBefore(r.Context(), h, id, from)
	if err != nil {
		return err
	}
	changes, err := aggregate.Diff(before.State, after.State)
	if err != nil {
		return err
	}
	return respond(w, map[string]any{"category": after.Category, "stream": id, "from": before.Version, "to": after.Version, "changes": changes})
}

// stateBefore returns the state at a version; 0 is the state without events.
func stateBefore(ctx context.Context, h aggregate.Handler, id string, version int64) (view aggregate.View, err error) {
	if version > 0 {
		return h.At(ctx, id, aggregate.Moment{Version: version})
	}
	err = h.Replay(ctx, id, 0, func(_ *event.Event, state json.RawMessage) error {
		view.State = state
		return errPageFull
	})
	if errors.Is(err, errPageFull) {
		err = nil
	}
	return view, err
}

// errPageFull ends a replay.
var errPageFull = errors.New("the page is full")

// getAudit answers with a page of a stream's events: who, when, what, why, and
// what each changed where the category has an aggregate.
func (a *aggregates) getAudit(w http.ResponseWriter, r *http.Request) error {
	c, id, err := a.stream(r)
	if err != nil {
		return err
	}
	params, err := query(r, "after", "limit")
	if err != nil {
		return err
	}
	after, limit, err := page(params)
	if err != nil {
		return err
	}
	list, err := a.reader.StreamEvents(r.Context(), c, id, after, limit+1, false)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		version, err := a.reader.VersionOf(r.Context(), c, id)
		if err != nil {
			return err
		}
		if version == 0 {
			return &aggregate.Missing{Category: c.Name, ID: id}
		}
	}
	var next *int64
	if len(list) > limit {
		list = list[:limit]
		next = &list[limit-1].Version
	}
	changes, err := a.changes(r.Context(), c, id, after, len(list))
	if err != nil {
		return err
	}
	entries := make([]map[string]json.RawMessage, len(list))
	for i := range list {
		doc, err := a.EventJSON(r.Context(), &list[i])
		if err != nil {
			return err
		}
		if err := json.Unmarshal(doc, &entries[i]); err != nil {
			return err
		}
		if i < len(changes) {
			if entries[i]["changes"], err = json.Marshal(changes[i]); err != nil {
				return err
			}
		}
	}
	return respond(w, map[string]any{"category": c.Name, "stream": id, "entries": entries, "next": next})
}

// changes returns what each of n events after a version changed; none where the
// category has no aggregate.
func (a *aggregates) changes(ctx context.Context, c eventstore.Category, id string, after int64, n int) (all [][]aggregate.Change, err error) {
	h, ok := a.runtime.Handler(c.Name)
	if !ok || n == 0 {
		return nil, nil
	}
	var before json.RawMessage
	err = h.Replay(ctx, id, after, func(e *event.Event, state json.RawMessage) error {
		if e != nil {
			changes, err := aggregate.Diff(before, state)
			if err != nil {
				return err
			}
			all = append(all, changes)
		}
		if before = state; len(all) == n {
			return errPageFull
		}
		return nil
	})
	if errors.Is(err, errPageFull) {
		err = nil
	}
	return all, err
}

// Bounds of a causation chain.
const (
	maxCauses  = 100
	maxEffects = 1000
)

// getCausation answers with the chain of causes that leads to an event, the
// first one first, and all that it caused, each with how far it is away.
func (a *aggregates) getCausation(w http.ResponseWriter, r *http.Request) error {
	if _, err := query(r); err != nil {
		return err
	}
	id, err := event.ParseID(r.PathValue("id"))
	if err != nil {
		return problem.BadRequest(err.Error())
	}
	e, err := a.eventByID(r.Context(), id)
	if err != nil {
		return err
	}
	chain := causation{api: a.API, seen: map[event.ID]bool{id: true}}
	doc, err := a.EventJSON(r.Context(), &e)
	if err == nil {
		err = chain.up(r.Context(), e)
	}
	if err == nil {
		err = chain.down(r.Context(), e)
	}
	if err != nil {
		return err
	}
	return respond(w, map[string]any{"event": doc, "origin": chain.origin, "causes": emptyNotNull(chain.causes), "effects": emptyNotNull(chain.effects), "truncated": chain.truncated})
}

func emptyNotNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// eventByID returns an event, or a problem.
func (a *API) eventByID(ctx context.Context, id event.ID) (event.Event, error) {
	e, err := a.reader.EventByID(ctx, id)
	switch {
	case errors.Is(err, eventstore.ErrNoEvent):
		err = problem.New(http.StatusNotFound, "unknown-event", "There is no such event", "")
	case errors.Is(err, eventstore.ErrAmbiguousID):
		err = problem.New(http.StatusConflict, "ambiguous-id", "Two categories hold the event id", "")
	}
	return e, err
}

// causation follows causes and effects. Clients write causation ids as they
// like, so it stops at circles and at what is no event.
type causation struct {
	api       *API
	seen      map[event.ID]bool
	causes    []json.RawMessage
	effects   []effect
	origin    *string // a causation id that names no event: a command, or a message of another system
	truncated bool
}

type effect struct {
	Depth int             `json:"depth"`
	Event json.RawMessage `json:"event"`
}

func (c *causation) up(ctx context.Context, e event.Event) error {
	for e.Metadata.CausationID != "" {
		origin := e.Metadata.CausationID
		id, err := event.ParseID(origin)
		if err == nil && c.seen[id] {
			return nil
		}
		if err == nil {
			e, err = c.api.reader.EventByID(ctx, id)
		}
		if err != nil {
			if id.IsZero() || errors.Is(err, eventstore.ErrNoEvent) || errors.Is(err, eventstore.ErrAmbiguousID) {
				c.origin = &origin
				return nil
			}
			return err
		}
		c.seen[id] = true
		if len(c.causes) >= maxCauses {
			c.truncated = true
			return nil
		}
		doc, err := c.api.EventJSON(ctx, &e)
		if err != nil {
			return err
		}
		c.causes = append([]json.RawMessage{doc}, c.causes...)
	}
	return nil
}

// down goes breadth first, so that what is left out is what is farthest away.
func (c *causation) down(ctx context.Context, from event.Event) error {
	level := []event.Event{from}
	for depth := 1; len(level) > 0; depth++ {
		var next []event.Event
		for _, e := range level {
			list, err := c.api.reader.Effects(ctx, e.ID, maxEffects-len(c.effects)+1)
			if err != nil {
				return err
			}
			for _, e := range list {
				if c.seen[e.ID] {
					continue
				}
				if len(c.effects) >= maxEffects {
					c.truncated = true
					return nil
				}
				c.seen[e.ID] = true
				doc, err := c.api.EventJSON(ctx, &e)
				if err != nil {
					return err
				}
				c.effects, next = append(c.effects, effect{depth, doc}), append(next, e)
			}
		}
		level = next
	}
	return nil
}
