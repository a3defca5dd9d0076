package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/registry"
)

func respond(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
	return nil
}

func (a *API) getStream(w http.ResponseWriter, r *http.Request) error {
	c, id, err := a.stream(r)
	if err != nil {
		return err
	}
	info, err := a.reader.Stream(r.Context(), c, id)
	if errors.Is(err, eventstore.ErrNoStream) {
		return problem.New(http.StatusNotFound, "unknown-stream", "There is no such stream", "")
	}
	if err != nil {
		return err
	}
	w.Header().Set("ETag", `"`+strconv.FormatInt(info.Version, 10)+`"`)
	return respond(w, map[string]any{"category": c.Name, "stream": id, "version": info.Version, "created": info.Created, "updated": info.Updated})
}

const maxLimit = 1000

func (a *API) getStreamEvents(w http.ResponseWriter, r *http.Request) error {
	c, id, err := a.stream(r)
	if err != nil {
		return err
	}
	params, err := query(r, "after", "limit", "direction")
	if err != nil {
		return err
	}
	backward := params["direction"] == "backward"
	if d := params["direction"]; d != "" && d != "forward" && !backward {
		return problem.BadParameter("direction", "want forward or backward")
	}
	after, limit, err := page(params)
	if err != nil {
		return err
	}
	if _, given := params["after"]; given && backward && after == 0 {
		return a.respondEvents(w, r, nil, 0, byVersion)
	}
	list, err := a.reader.StreamEvents(r.Context(), c, id, after, limit+1, backward)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		if _, err := a.reader.Stream(r.Context(), c, id); errors.Is(err, eventstore.ErrNoStream) {
			return problem.New(http.StatusNotFound, "unknown-stream", "There is no such stream", "")
		}
	}
	return a.respondEvents(w, r, list, limit, byVersion)
}

func page(params map[string]string) (after int64, limit int, err error) {
	if after, err = number(params, "after", 0, 1<<62); err != nil {
		return 0, 0, err
	}
	n, err := number(params, "limit", 100, maxLimit)
	if err == nil && n == 0 {
		err = problem.BadParameter("limit", "it is 0: want 1 to 1000")
	}
	return after, int(n), err
}

func (a *API) getSlotEvents(w http.ResponseWriter, r *http.Request) error {
	c, err := a.category(r)
	if err != nil {
		return err
	}
	slot, err := strconv.Atoi(r.PathValue("slot"))
	if err != nil || slot < 0 || slot >= c.Slots {
		return problem.New(http.StatusNotFound, "unknown-slot", "There is no such slot", "the category has slots 0 to "+strconv.Itoa(c.Slots-1))
	}
	params, err := query(r, "after", "limit")
	if err != nil {
		return err
	}
	after, limit, err := page(params)
	if err != nil {
		return err
	}
	list, err := a.reader.SlotEvents(r.Context(), c, slot, after, limit+1)
	if err != nil {
		return err
	}
	return a.respondEvents(w, r, list, limit, bySeq)
}

func byVersion(e *event.Event) int64 { return e.Version }
func bySeq(e *event.Event) int64     { return e.Seq }

// respondEvents answers with a page; one event more than the limit was read to
// know whether another page follows.
func (a *API) respondEvents(w http.ResponseWriter, r *http.Request, list []event.Event, limit int, by func(*event.Event) int64) error {
	var next *int64
	if len(list) > limit {
		list = list[:limit]
		at := by(&list[limit-1])
		next = &at
	}
	events := make([]json.RawMessage, len(list))
	for i := range list {
		doc, err := a.EventJSON(r.Context(), &list[i])
		if err != nil {
			return err
		}
		events[i] = doc
	}
	return respond(w, map[string]any{"events": events, "next": next})
}

func (a *API) getEvent(w http.ResponseWriter, r *http.Request) error {
	id, err := event.ParseID(r.PathValue("id"))
	if err != nil {
		return problem.BadRequest(err.Error())
	}
	e, err := a.eventByID(r.Context(), id)
	if err != nil {
		return err
	}
	doc, err := a.EventJSON(r.Context(), &e)
	if err != nil {
		return err
	}
	return respond(w, doc)
}

// EventJSON renders an event as the newest version of its type has it, under the
// name that the type has by now.
func (a *API) EventJSON(ctx context.Context, e *event.Event) (json.RawMessage, error) {
	data, err := a.data(ctx, e)
	if err != nil {
		return nil, err
	}
	metadata := make(map[string]string)
	for name, value := range map[string]string{"actor": e.Metadata.Actor, "correlationId": e.Metadata.CorrelationID, "causationId": e.Metadata.CausationID, "traceparent": e.Metadata.Traceparent} {
		if value != "" {
			metadata[name] = value
		}
	}
	doc := map[string]any{"id": e.ID, "category": e.Category, "stream": e.Stream, "type": data.typ, "schemaVersion": data.version, "version": e.Version,
		"position": e.Position().String(), "time": e.Time, "recorded": e.Recorded, "data": json.RawMessage(data.doc), "metadata": metadata}
	if data.problem != "" {
		doc["problem"] = data.problem
	}
	return json.Marshal(doc)
}

// eventData is what is said of an event's data.
type eventData struct {
	typ     string
	version int // of the schema that it was written with; 0 for one that the contracts do not hold
	doc     []byte
	problem string // why it is shown as it was written
}

// data returns an event's data as JSON. What cannot be read as the newest version
// is shown as it was written, with the reason: one such event must not hide those
// around it.
func (a *API) data(ctx context.Context, e *event.Event) (eventData, error) {
	d := eventData{typ: e.Type}
	writer, body, err := registry.WriterOf(ctx, a.deps.Registry, e.Value)
	if err != nil {
		return d, err
	}
	if contract, ok := a.deps.Contracts.Category(e.Category); ok {
		if typ, ok := contract.Type(e.Type); ok {
			d.typ, d.version = typ.Name, typ.VersionOf(writer)
			if d.doc, err = upgraded(typ, writer, body); err == nil {
				return d, nil
			}
			d.problem = err.Error()
		}
	}
	d.doc, err = writer.AppendJSON(nil, body)
	return d, err
}

func upgraded(typ *avro.EventType, writer *avro.Schema, body []byte) ([]byte, error) {
	upgrade, err := typ.Upgrade(writer)
	if err != nil {
		return nil, err
	}
	return upgrade.AppendJSON(nil, body)
}

func (a *API) getCategories(w http.ResponseWriter, r *http.Request) error {
	list, err := eventstore.ReadCategories(r.Context(), a.deps.Pool)
	if err != nil {
		return err
	}
	out := make([]map[string]any, len(list))
	for i, c := range list {
		heads, err := a.reader.Heads(r.Context(), c)
		if err != nil {
			return err
		}
		var events int64
		for _, head := range heads {
			events += head
		}
		out[i] = map[string]any{"name": c.Name, "slots": c.Slots, "partitions": c.Partitions, "topic": c.Topic, "events": events}
	}
	return respond(w, out)
}
