package query_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

func TestARowIsReadWithWhatItContains(t *testing.T) {
	w := setup(t)
	r := w.replica()
	token := w.set("a", row(`{"n": 9007199254740993}`))
	a := r.get("/v1/read-models/items/a", "Refold-Token", token.String())
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Contains(t, a.body, `"n": 9007199254740993`)
	require.Equal(t, "1", a.header.Get("Refold-Projection-Version"))
	contained, err := event.ParseToken(a.header.Get("Refold-Token"))
	require.NoError(t, err)
	require.Equal(t, token[0].Position, contained[0].Position)
	require.Len(t, contained, 1, "the row's slot says it all")

	require.Equal(t, http.StatusNotModified, r.get("/v1/read-models/items/a", "If-None-Match", `"x", W/`+a.header.Get("ETag")).status)
	missing := r.get("/v1/read-models/items/missing")
	require.Equal(t, http.StatusNotFound, missing.status)
	require.Equal(t, http.StatusNotFound, r.get("/v1/read-models/nothing/a").status)
	require.Equal(t, http.StatusBadRequest, r.get("/v1/read-models/items/%00").status)
	require.Equal(t, http.StatusBadRequest, r.get("/v1/read-models/items/%ff").status)
	for _, path := range []string{"", "/a", "/changes", "/export", "/a/explain"} {
		require.Equal(t, http.StatusBadRequest, r.get("/v1/read-models/%00"+path).status, path)
		require.Equal(t, http.StatusBadRequest, r.get("/v1/read-models/%ff"+path).status, path)
	}
}

func TestAnotherMethodIsRefusedWithThoseThatAreAllowed(t *testing.T) {
	r := setup(t).replica()
	for path, allowed := range map[string]string{"": "GET, HEAD", "/a": "GET, HEAD", "/changes": "GET, HEAD", "/export": "GET, HEAD", "/a/explain": "GET, HEAD", "/query": "GET, HEAD, POST"} {
		req, err := http.NewRequest(http.MethodDelete, r.url+items+path, nil)
		require.NoError(t, err)
		a := r.do(req)
		require.Equal(t, http.StatusMethodNotAllowed, a.status, path)
		require.Equal(t, allowed, a.header.Get("Allow"), path)
		require.Equal(t, "application/problem+json", a.header.Get("Content-Type"), path)
	}
}

func TestATokenIsWaitedForOrRefused(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	ahead := event.NewToken(event.Mark{Position: event.Position{Category: "Item", Slot: event.SlotOf("a", slots), Seq: 2}, Written: true})
	a := r.get("/v1/read-models/items/a", "Refold-Token", ahead.String(), "Refold-Wait", "10ms")
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Contains(t, a.body, "not-caught-up")
	require.NotEmpty(t, a.header.Get("Retry-After"))
	waited := make(chan answer)
	go func() {
		waited <- r.get("/v1/read-models/items/a", "Refold-Token", ahead.String(), "Refold-Wait", "25s")
	}()
	w.set("a", row(`{"n": 2}`))
	require.Contains(t, (<-waited).body, `"n": 2`)

	_, err := w.pool.Exec(ctx, `insert into refold.parked_event (projection, version, category, stream, slot, seq, stream_version, id, type, time, recorded, value)
		values ('items', 1, 'Item', 'a', $1, 2, 2, gen_random_uuid(), 'ItemSet', now(), now(), '')`, event.SlotOf("a", slots))
	require.NoError(t, err)
	w.set("a", row(`{"n": 3}`)) // what was kept is gone
	eventually(t, "the parked event shows", func() bool {
		a := r.get("/v1/read-models/items/a", "Refold-Token", ahead.String())
		return a.status == http.StatusServiceUnavailable
	})
	w.warm(r, items+"/a", "a", 3)
	require.Equal(t, http.StatusServiceUnavailable, r.get(items+"/a", "Refold-Token", ahead.String()).status, "what was kept says nothing about parked events")
	for header, bad := range map[string]string{"Refold-Token": "nonsense", "Refold-Wait": "31s", "Refold-Max-Staleness": "-1s"} {
		require.Equal(t, http.StatusBadRequest, r.get("/v1/read-models/items/a", header, bad).status, header)
	}
}

func TestWhatAReadDoesNotTakeIsRefusedWithItsPlace(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a/b", row(`{"n": 1, "name": "x"}`))
	a := r.get(items + "/a%2Fb?select=name,key,ok")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, `{"name":"x","key":"a/b","ok":null}`, a.body)
	require.NotEqual(t, a.header.Get("Etag"), r.get(items+"/a%2Fb").header.Get("Etag"))
	for path, pointer := range map[string]string{
		"/a%2Fb?nothing=eq.1":      "/nothing",
		"/a%2Fb?n=eq.1":            "/n",
		"/a%2Fb?limit=1":           "/limit",
		"/a%2Fb?select=nothing":    "/select",
		"/a%2Fb?select=n&select=n": "/select",
		"/a%2Fb?select=":           "/select",
		"/a%2Fb/explain?select=n":  "/select",
		"/changes?select=n":        "/select",
		"/changes?nothing=eq.1":    "/nothing",
		"/export?limit=1":          "/limit",
		"/missing?a~b=1":           "/a~0b",
	} {
		a := r.get(items + path)
		require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", path, a.body)
		require.Contains(t, a.body, fmt.Sprintf(`"pointer":%q`, pointer), path)
	}
	require.Equal(t, http.StatusBadRequest, r.get("/v1/read-models?name=items").status)
	require.Equal(t, http.StatusBadRequest, r.get(items+"/a%2Fb?%zz").status)
}

// A server that stops cuts a wait off. The client learns that its token is not
// contained yet, and asks another server.
func TestAWaitThatIsCutOffSaysWhatIsMissing(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	ahead := event.NewToken(event.Mark{Position: event.Position{Category: "Item", Slot: event.SlotOf("a", slots), Seq: 2}, Written: true})
	for name, ask := range map[string]func(context.Context) error{
		"by key": func(ctx context.Context) error {
			_, _, err := r.reader.Get(ctx, "items", "a", readmodel.Fresh{Token: ahead, Wait: time.Minute})
			return err
		},
		"a list": func(ctx context.Context) error {
			_, _, err := r.reader.List(ctx, "items", readmodel.ListQuery{}, readmodel.Fresh{Token: ahead, Wait: time.Minute})
			return err
		},
	} {
		stopping, stop := context.WithTimeout(ctx, 500*time.Millisecond)
		require.ErrorIs(t, ask(stopping), readmodel.ErrNotCaughtUp, name)
		stop()
	}
	// The same through a server whose base context ends, as it does when it drains.
	serving, end := context.WithCancel(ctx)
	server := httptest.NewUnstartedServer(r.handler)
	server.Config.BaseContext = func(net.Listener) context.Context { return serving }
	server.Start()
	defer server.Close()
	time.AfterFunc(300*time.Millisecond, end)
	cut := *r
	cut.url = server.URL
	a := cut.get(items+"/a", "Refold-Token", ahead.String(), "Refold-Wait", "30s")
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.Contains(t, a.body, "/problems/not-caught-up")
	require.NotEmpty(t, a.header.Get("Retry-After"))
}

// A token is not signed: whatever somebody makes of one is a 400, waited for, or
// nothing that the read model knows of.
func TestInventedTokensAreHarmless(t *testing.T) {
	w := setup(t)
	r := w.replica()
	slot := event.SlotOf("a", slots)
	w.set("a", row(`{"n": 1}`))
	at := func(category string, slot int, seq int64, written bool, event uint32, branch uint32) string {
		return eventToken(category, slot, seq, written, event, branch).String()
	}
	for token, status := range map[string]int{
		at("Nothing", 3, 1<<62, true, 7, 7):   http.StatusOK, // feeds no such read model
		at("Item", 4095, 0, true, 7, 0):       http.StatusOK, // promises no event
		at("Item", 4095, 0, false, 7, 9):      http.StatusOK,
		at("Item", 4095, 1, true, 7, 0):       http.StatusServiceUnavailable,
		at("Item", slot, 1<<62, true, 0, 0):   http.StatusServiceUnavailable,
		at("Item", slot, 1, true, 7, 0):       http.StatusServiceUnavailable, // another event stands there
		at("Item", slot, 1, false, 7, 9):      http.StatusServiceUnavailable,
		at("Item", slot, 1, true, 0, 0) + ",": http.StatusBadRequest,
		"AgA":                                 http.StatusBadRequest,
		"' or 1=1 --":                         http.StatusBadRequest,
		"AgRJdGVtAAAAAAEJAxXSwskX79Ce":        http.StatusBadRequest,
	} {
		for _, path := range []string{items + "/a", items + "?key=eq.a"} {
			a := r.get(path, "Refold-Token", token, "Refold-Wait", "50ms")
			require.Equal(t, status, a.status, "%s %q: %s", path, token, a.body)
		}
	}
}

func eventToken(category string, slot int, seq int64, written bool, id, branch uint32) event.Token {
	return event.NewToken(event.Mark{Position: event.Position{Category: category, Slot: slot, Seq: seq}, Written: written, Event: id, Branch: branch})
}
