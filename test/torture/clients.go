package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/refoldhq/refold/test/platform"
)

// poisonLabel is longer than what an index takes, so its event parks the stream
// in the projection that indexes it.
var poisonLabel = strings.Repeat("x", 2500)

// workload is the clients' side of one run.
type workload struct {
	history  *history
	writers  []*platform.Client
	queries  []*platform.Client
	streams  int
	problems chan string // violations seen while it runs
}

// client appends, retries and reads until ctx ends. All it does follows from rnd.
func (w *workload) client(ctx context.Context, id int, rnd *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		r := w.next(rnd, fmt.Sprintf("c%d-%d", id, n))
		w.history.invoke(r)
		w.send(ctx, r, rnd)
		switch {
		case r.Outcome == ok && rnd.IntN(20) == 0:
			w.replay(ctx, r, rnd)
		case r.Outcome == ok && rnd.IntN(4) == 0:
			w.readBack(r, rnd)
		}
	}
}

func (w *workload) next(rnd *rand.Rand, id string) *request {
	r := &request{ID: id, Stream: fmt.Sprintf("s%d", rnd.IntN(w.streams)), Expected: -1}
	if rnd.IntN(2) == 0 {
		w.history.mu.Lock()
		r.Expected = w.history.acked[r.Stream]
		w.history.mu.Unlock()
	}
	for range 1 + rnd.IntN(3) {
		r.Events = append(r.Events, w.event(rnd))
	}
	return r
}

func (w *workload) event(rnd *rand.Rand) newEvent {
	e := newEvent{Type: "AccountBumped", Owner: fmt.Sprintf("o%d", rnd.IntN(7)), Label: fmt.Sprintf("l%d", rnd.IntN(100)), Amount: rnd.Int64N(2001) - 1000}
	switch n := rnd.IntN(1000); {
	case n < 30:
		e.Type, e.Amount = "AccountOpened", 0
	case n < 50:
		e.Type, e.Amount, e.Label = "AccountClosed", 0, ""
	case n < 52:
		e.Label = poisonLabel
	}
	return e
}

func (e newEvent) data() map[string]any {
	switch e.Type {
	case "AccountClosed":
		return map[string]any{"owner": e.Owner}
	case "AccountOpened":
		return map[string]any{"owner": e.Owner, "label": e.Label}
	default:
		return map[string]any{"owner": e.Owner, "label": e.Label, "amount": e.Amount}
	}
}

func (r *request) body() []byte {
	events := make([]any, len(r.Events))
	for i, e := range r.Events {
		events[i] = map[string]any{"type": e.Type, "data": e.data()}
	}
	body := map[string]any{"events": events, "metadata": map[string]any{"correlationId": r.ID}}
	if r.Expected >= 0 {
		body["expectedVersion"] = r.Expected
	}
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return raw
}

// post sends r once, to any writer.
func (w *workload) post(r *request, rnd *rand.Rand) (platform.Answer, error) {
	return r.postTo(pick(rnd, w.writers))
}

func (r *request) postTo(writer *platform.Client) (platform.Answer, error) {
	return writer.Do(http.MethodPost, "/v1/streams/Account/"+r.Stream+"/events", http.Header{"Idempotency-Key": {r.ID}}, r.body())
}

// send sends r until its outcome is known, a few times at most; some are sent
// once only, so that some stay unknown.
func (w *workload) send(ctx context.Context, r *request, rnd *rand.Rand) {
	tries := 1 + rnd.IntN(4)
	for try := range tries {
		answer, err := w.post(r, rnd)
		w.history.settle(r, func(r *request) { r.learn(answer, err) })
		if r.Outcome != unknown || ctx.Err() != nil {
			return
		}
		pause(ctx, time.Duration(20<<try)*time.Millisecond) // the back-off of a polite client
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// learn notes what an answer says. A 503 that is not "unavailable" leaves the
// outcome open, and so does the network.
func (r *request) learn(a platform.Answer, err error) {
	if err != nil {
		return
	}
	switch a.Status {
	case http.StatusOK, http.StatusCreated:
		var got platform.Appended
		if err := a.Decode(&got); err != nil {
			panic(fmt.Sprintf("an answer that is no JSON: %s", a.Body))
		}
		r.accept(got)
	case http.StatusConflict:
		var p struct{ Actual int64 }
		if err := a.Decode(&p); err != nil {
			panic(fmt.Sprintf("a problem that is no JSON: %s", a.Body))
		}
		r.Outcome, r.Actual = conflict, p.Actual
	case http.StatusServiceUnavailable: // open: an earlier try may have happened
	default:
		panic(fmt.Sprintf("status %d for %s: %s", a.Status, r.ID, a.Body))
	}
}

func (r *request) accept(got platform.Appended) {
	r.Outcome, r.FirstVersion, r.Token = ok, got.FirstVersion, got.Token
	r.Positions, r.IDs = nil, nil
	for _, e := range got.Events {
		r.Positions = append(r.Positions, e.Position)
		r.IDs = append(r.IDs, e.ID)
	}
}

// replay sends an acknowledged request again: the answer must be the first one.
func (w *workload) replay(ctx context.Context, r *request, rnd *rand.Rand) {
	answer, err := w.post(r, rnd)
	if err != nil || answer.Status == http.StatusServiceUnavailable {
		return
	}
	again := &request{Events: r.Events}
	again.learn(answer, err)
	if again.Outcome != ok || fmt.Sprint(again.FirstVersion, again.Positions, again.IDs) != fmt.Sprint(r.FirstVersion, r.Positions, r.IDs) {
		w.violation("replay of %s: first %d %v %v, then %s", r.ID, r.FirstVersion, r.Positions, r.IDs, answer.Body)
	}
}

// readBack asks for the row with the token of an append: it must hold that
// append, or the answer must say that it does not yet.
func (w *workload) readBack(r *request, rnd *rand.Rand) {
	queries := w.queries[rnd.IntN(len(w.queries))]
	answer, err := queries.Do(http.MethodGet, "/v1/read-models/accounts/"+r.Stream, http.Header{"Refold-Token": {r.Token}, "Refold-Wait": {"300ms"}}, nil)
	if err != nil || answer.Status == http.StatusServiceUnavailable {
		return
	}
	last := r.FirstVersion + int64(len(r.Events)) - 1
	var row struct{ Version *int64 }
	switch {
	case answer.Status == http.StatusNotFound: // closed by this append or by a later one
	case answer.Status != http.StatusOK:
		w.violation("reading %s: status %d: %s", r.Stream, answer.Status, answer.Body)
	case answer.Decode(&row) != nil || row.Version == nil:
		w.violation("reading %s: a row without version: %s", r.Stream, answer.Body)
	case *row.Version < last:
		w.violation("stale row of %s: version %d although the token stands for %d", r.Stream, *row.Version, last)
	}
}

func (w *workload) violation(format string, args ...any) {
	select {
	case w.problems <- fmt.Sprintf(format, args...):
	default: // full: the first hundred are enough
	}
}
