package aggregate_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/schemas/user"
)

// modelAccount is an account as this test understands the rules, written down
// without looking at package user.
type modelAccount struct {
	email                             string
	active, verified, locked, deleted bool
	failures, version                 int
}

// machine drives two writers, one of them with a snapshot at every third event
// and a cache of a few aggregates, beside a model of all accounts.
type machine struct {
	writers  []*writer
	prefix   string
	accounts map[string]*modelAccount
	calls    int
}

// call runs a command on one of the writers, some of them twice under one
// command id, and compares error, version and number of events.
func (m *machine) call(t *rapid.T, id, label string, creates bool, f func(*user.Account) error, wantErr string, wantEvents int) {
	m.calls++
	w := m.writers[rapid.IntRange(0, len(m.writers)-1).Draw(t, "writer")]
	run := w.accounts.Execute
	if creates {
		run = w.accounts.Create
	}
	var options []aggregate.Option
	repeat := rapid.IntRange(0, 3).Draw(t, "command id") == 0
	if repeat {
		options = append(options, aggregate.WithCommandID(fmt.Sprintf("%s%d", m.prefix, m.calls), label))
	}
	result, err := run(ctx, m.prefix+id, f, options...)
	require.Equal(t, wantErr, m.outcome(err), "%s of %s: %v", label, id, err)
	if err != nil {
		return
	}
	require.Len(t, result.Events, wantEvents)
	a := m.accounts[id]
	a.version += wantEvents
	require.EqualValues(t, a.version, result.Version)
	if repeat && wantEvents > 0 {
		again, err := run(ctx, m.prefix+id, f, options...)
		require.NoError(t, err)
		require.True(t, again.Replayed)
		require.Equal(t, result.Events, again.Events)
	}
}

func (m *machine) outcome(err error) string {
	var broken *aggregate.Broken
	var missing *aggregate.Missing
	var exists *aggregate.Exists
	var taken *aggregate.ClaimTaken
	switch {
	case errors.As(err, &broken):
		return broken.Code
	case errors.As(err, &missing):
		return "missing"
	case errors.As(err, &exists):
		return "exists"
	case errors.As(err, &taken):
		return "held by " + taken.Stream[len(m.prefix):]
	case err != nil:
		return err.Error()
	}
	return ""
}

// holder returns the account other than id that holds an address.
func (m *machine) holder(email, id string) string {
	for other, a := range m.accounts {
		if other != id && a.email == email && !a.deleted {
			return other
		}
	}
	return ""
}

func (m *machine) draw(t *rapid.T) (id, email string) {
	return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "account"), m.prefix + rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "address") + "@example.com"
}

func (m *machine) create(t *rapid.T) {
	id, email := m.draw(t)
	want, events := "", 1
	switch other := m.holder(email, id); {
	case m.accounts[id] != nil:
		want = "exists"
	case other != "":
		want = "held by " + other
	default:
		m.accounts[id] = &modelAccount{email: email}
	}
	m.call(t, id, "create", true, create(email), want, events)
}

// on runs a command on an account; judge gives the error that the rules have for
// it, and else changes the model and says how many events that makes.
func (m *machine) on(t *rapid.T, id, label string, f func(*user.Account) error, judge func(a *modelAccount) (string, int)) {
	a := m.accounts[id]
	if a == nil {
		m.call(t, id, label, false, f, "missing", 0)
		return
	}
	want, events := judge(a)
	m.call(t, id, label, false, f, want, events)
}

func (m *machine) activate(t *rapid.T) {
	id, _ := m.draw(t)
	m.on(t, id, "activate", (*user.Account).Activate, func(a *modelAccount) (string, int) {
		if a.deleted {
			return "account-deleted", 0
		}
		events := 1
		if a.active {
			events = 0
		}
		a.active = true
		return "", events
	})
}

func (m *machine) changeEmail(t *rapid.T) {
	id, email := m.draw(t)
	m.on(t, id, "change", changeEmail(email), func(a *modelAccount) (string, int) {
		other := m.holder(email, id)
		switch {
		case a.deleted:
			return "account-deleted", 0
		case a.email == email:
			return "", 0
		case other != "":
			return "held by " + other, 0
		}
		a.email, a.verified = email, false
		return "", 1
	})
}

func (m *machine) verifyEmail(t *rapid.T) {
	id, email := m.draw(t)
	m.on(t, id, "verify", func(a *user.Account) error { return a.VerifyEmail(user.VerifyEmail{Email: email}) }, func(a *modelAccount) (string, int) {
		switch {
		case a.deleted:
			return "account-deleted", 0
		case a.email != email:
			return "email-superseded", 0
		case a.verified:
			return "", 0
		}
		a.verified = true
		return "", 1
	})
}

func (m *machine) logIn(t *rapid.T) {
	id, _ := m.draw(t)
	ok := rapid.IntRange(0, 5).Draw(t, "log-in") == 0
	m.on(t, id, "log in", logIn(ok), func(a *modelAccount) (string, int) {
		switch {
		case a.deleted:
			return "account-deleted", 0
		case a.locked:
			return "account-locked", 0
		case !a.active:
			return "account-inactive", 0
		case ok:
			a.failures = 0
			return "", 1
		}
		if a.failures++; a.failures == 5 {
			a.locked = true
			return "", 2
		}
		return "", 1
	})
}

func (m *machine) delete(t *rapid.T) {
	id, _ := m.draw(t)
	if rapid.IntRange(0, 2).Draw(t, "really") > 0 { // or there would soon be nobody left
		return
	}
	m.on(t, id, "delete", (*user.Account).Delete, func(a *modelAccount) (string, int) {
		events := 1
		if a.deleted {
			events = 0
		}
		a.deleted = true
		return "", events
	})
}

func (m *machine) snapshot(t *rapid.T) {
	id, _ := m.draw(t)
	w := rapid.SampledFrom(m.writers).Draw(t, "writer that snapshots")
	if m.accounts[id] != nil {
		require.NoError(t, w.accounts.Snapshot(ctx, m.prefix+id))
	}
}

// check compares what the log makes of every account with the model.
func (m *machine) check(t *rapid.T) {
	for _, id := range slices.Sorted(maps.Keys(m.accounts)) {
		want := m.accounts[id]
		a, err := m.writers[0].accounts.Load(ctx, m.prefix+id)
		require.NoError(t, err)
		got := modelAccount{email: a.Email, active: a.Active, verified: a.Verified, locked: a.Locked, deleted: a.Deleted, failures: a.Failures, version: int(a.Version())}
		require.Equal(t, *want, got)
		category, _ := m.writers[0].store.Category("User")
		claims, err := eventstore.NewReader(m.writers[0].pool).ClaimsOf(ctx, category, m.prefix+id)
		require.NoError(t, err)
		require.ElementsMatch(t, a.Claims(), claims)
	}
}

func TestAccountsBehaveAsTheirModel(t *testing.T) {
	t.Parallel()
	first := setup(t)
	second := open(t, first.pool, aggregate.Config{Snapshots: aggregate.Policy{Events: 3}, CacheSize: 16})
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		m := &machine{writers: []*writer{first, second}, prefix: fmt.Sprintf("r%d-", runs), accounts: make(map[string]*modelAccount)}
		t.Repeat(map[string]func(*rapid.T){"create": m.create, "activate": m.activate, "changeEmail": m.changeEmail, "verifyEmail": m.verifyEmail,
			"logIn": m.logIn, "delete": m.delete, "snapshot": m.snapshot, "": m.check})
	})
	_, err := first.accounts.VerifySnapshots(ctx)
	require.NoError(t, err)
}
