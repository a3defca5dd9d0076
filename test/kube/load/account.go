package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"time"
)

// account is a stream of one writer, so that the version after each append is
// known, and the row that it makes.
type account struct {
	*client
	stream  string
	version int64  // acknowledged
	logins  int64  // of these
	token   string // of the last append
}

// work logs in again and again, and looks at the row.
func (a *account) work(ctx context.Context) {
	a.append(ctx, fmt.Sprintf(`{"type":"UserCreated","data":{"id":%q,"email":"%s@refold.test","isActive":true}}`, a.stream, a.stream))
	for turn := 0; ctx.Err() == nil; turn++ {
		if a.append(ctx, `{"type":"UserLoggedIn","data":{}}`) {
			a.logins++
		}
		if turn%4 == 0 {
			a.look(ctx, a.token)
		} else {
			a.look(ctx, "")
		}
		select {
		case <-ctx.Done():
		case <-time.After(a.pause):
		}
	}
}

// append appends one event behind those that were acknowledged. An event that
// was appended twice makes the next version a conflict.
func (a *account) append(ctx context.Context, event string) bool {
	path := "/v1/streams/User/" + a.stream + "/events"
	body := fmt.Sprintf(`{"expectedVersion":%d,"events":[%s]}`, a.version, event)
	header := http.Header{}
	if a.patient { // without a key even the library below sends nothing twice
		header.Set("Idempotency-Key", rand.Text())
	}
	var answer struct {
		LastVersion int64  `json:"lastVersion"`
		Token       string `json:"token"`
	}
	// A request that has begun is seen through, so that its outcome is known.
	if !a.ask(context.WithoutCancel(ctx), &a.tally.appends, http.MethodPost, a.writer+path, header, body, &answer) {
		return false
	}
	if answer.LastVersion != a.version+1 {
		a.tally.wrong("%s: version %d after an append behind %d", a.stream, answer.LastVersion, a.version)
	}
	a.version, a.token = answer.LastVersion, answer.Token
	return true
}

// look reads the row: with the token of the last append it shows exactly what was
// acknowledged, without one it shows that at most.
func (a *account) look(ctx context.Context, token string) {
	header := http.Header{}
	if token != "" {
		header.Set("Refold-Token", token)
		header.Set("Refold-Wait", "2s")
	} else if a.logins < 5 {
		return // the row need not be there yet
	}
	var row struct {
		Logins int64 `json:"logins"`
	}
	if !a.ask(context.WithoutCancel(ctx), &a.tally.queries, http.MethodGet, a.queries+"/v1/read-models/rm_users/"+a.stream, header, "", &row) {
		return
	}
	if row.Logins > a.logins || token != "" && row.Logins < a.logins {
		a.tally.wrong("%s: the row counts %d log-ins, %d were acknowledged (token: %t)", a.stream, row.Logins, a.logins, token != "")
	}
}

// judge compares stream and row with what was acknowledged.
func (a *account) judge(ctx context.Context) {
	var stream struct {
		Version int64 `json:"version"`
	}
	if a.ask(ctx, &a.tally.queries, http.MethodGet, a.writer+"/v1/streams/User/"+a.stream, nil, "", &stream) && stream.Version != a.version {
		a.tally.wrong("%s: the stream has %d events, %d were acknowledged", a.stream, stream.Version, a.version)
	}
	a.look(ctx, a.token)
}
