package aggregate_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/schemas/user"
)

// exact is an account whose rule is another one: addresses are taken as they are
// written, and names are within another namespace, as in an earlier release.
type exact struct {
	aggregate.Root
	Email   string
	Deleted bool
}

type (
	exactCreated user.UserCreated
	exactChanged user.UserEmailChanged
	exactDeleted user.UserDeleted
)

func (e exactCreated) Apply(a *exact) { a.Email = e.Email }
func (e exactChanged) Apply(a *exact) { a.Email = e.NewEmail }
func (e exactDeleted) Apply(a *exact) { a.Deleted = true }

func (a *exact) Claims() []aggregate.Claim {
	if a.Email == "" || a.Deleted {
		return nil
	}
	return []aggregate.Claim{{Namespace: "user.email", Value: a.Email}, {Namespace: "user.spelling", Value: "as " + a.Email}}
}

// formerly opens the accounts under the other rule.
func formerly(t *testing.T, w *writer) *aggregate.Repository[exact] {
	d := aggregate.Define[exact]("User")
	aggregate.OnNamed[exactCreated](d, "UserCreated")
	aggregate.OnNamed[exactChanged](d, "UserEmailChanged")
	aggregate.OnNamed[exactDeleted](d, "UserDeleted")
	d.Ignore("UserActivated", "UserEmailVerified", "UserLoggedIn", "UserLoginFailed", "UserLocked")
	runtime, err := aggregate.NewRuntime(aggregate.Config{}, w.forAnother())
	require.NoError(t, err)
	accounts, err := aggregate.Open(runtime, d)
	require.NoError(t, err)
	return accounts
}

func (w *writer) holds(t *testing.T, id string) []eventstore.Claim {
	t.Helper()
	claims, err := eventstore.NewReader(w.pool).ClaimsOf(ctx, w.category(t), id)
	require.NoError(t, err)
	return claims
}

func createExact(email string) func(*exact) error {
	return func(a *exact) error {
		aggregate.Raise(a, exactCreated{ID: a.ID(), Email: email})
		return nil
	}
}

func email(address string) eventstore.Claim {
	return eventstore.Claim{Namespace: "user.email", Value: address}
}

// A rule that has changed takes effect with the next command of an aggregate, which
// leaves nothing of the rule before.
func TestARuleOfClaimsThatHasChangedLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	w := setup(t)
	former := formerly(t, w)
	for id, address := range map[string]string{"a": "Ada@Example.com", "b": "ADA@example.com"} {
		_, err := former.Create(ctx, id, createExact(address))
		require.NoError(t, err)
		require.Contains(t, w.holds(t, id), email(address))
	}
	_, err := w.accounts.Execute(ctx, "a", (*user.Account).Activate)
	require.NoError(t, err)
	require.Equal(t, []eventstore.Claim{email("ada@example.com")}, w.holds(t, "a"))

	// The other one has the same address by today's rule: no value gets two holders.
	var taken *aggregate.ClaimTaken
	_, err = w.accounts.Execute(ctx, "b", (*user.Account).Activate)
	require.ErrorAs(t, err, &taken)
	require.Equal(t, "a", taken.Stream)
	_, err = w.accounts.Execute(ctx, "b", changeEmail("byron@example.com"))
	require.NoError(t, err)
	require.Equal(t, []eventstore.Claim{email("byron@example.com")}, w.holds(t, "b"))

	// A warm aggregate too releases what somebody has brought to the rule.
	_, err = former.Create(ctx, "c", createExact("Cleo@Example.com"))
	require.NoError(t, err)
	runs := 0
	_, err = w.accounts.Execute(ctx, "c", activateUnlessActive(&runs), aggregate.WithVersion(7))
	require.Error(t, err) // refused, so it is warm, with the claims of before
	report, err := w.accounts.RepairClaims(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Repaired)
	_, err = w.accounts.Execute(ctx, "c", func(a *user.Account) error { return a.Delete() })
	require.NoError(t, err)
	require.Empty(t, w.holds(t, "c"))
}

func TestClaimsAreVerifiedAndBroughtToTheirRule(t *testing.T) {
	t.Parallel()
	w := setup(t)
	former := formerly(t, w)
	for id, address := range map[string]string{"a": "Ada@Example.com", "b": "ADA@example.com", "c": "Cleo@example.com", "d": "dora@example.com"} {
		_, err := former.Create(ctx, id, createExact(address))
		require.NoError(t, err)
	}
	_, err := w.accounts.Create(ctx, "e", create("eve@example.com"))
	require.NoError(t, err)
	report, err := w.accounts.VerifyClaims(ctx)
	require.NoError(t, err)
	require.Equal(t, []int64{5, 5, 4}, []int64{report.Aggregates, report.Claims, report.Differ})
	require.ErrorContains(t, report.First, "User a at version 1 does not hold what it should within user.email, holds what it should not within user.email, user.spelling")

	report, err = w.accounts.RepairClaims(ctx)
	require.NoError(t, err)
	require.Equal(t, []int64{3, 1}, []int64{report.Repaired, report.Differ})
	require.NotNil(t, report.First.Taken)
	require.Equal(t, "b", report.First.ID)
	require.Equal(t, []eventstore.Claim{email("cleo@example.com")}, w.holds(t, "c"))
	require.Len(t, w.holds(t, "b"), 2, "all of it or nothing")

	_, err = w.accounts.Execute(ctx, "a", changeEmail("augusta@example.com"))
	require.NoError(t, err)
	_, err = w.accounts.RepairClaims(ctx)
	require.NoError(t, err)
	report, err = w.accounts.VerifyClaims(ctx)
	require.NoError(t, err)
	require.Zero(t, report.Differ)
	require.Equal(t, []eventstore.Claim{email("ada@example.com")}, w.holds(t, "b"))

	_, err = eventstore.VerifyLog(ctx, w.pool)
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `insert into refold.claim select 'user.email', 'x', id, 'nobody' from refold.category`)
	require.NoError(t, err)
	_, err = eventstore.VerifyLog(ctx, w.pool)
	require.ErrorIs(t, err, eventstore.ErrBroken)
	require.ErrorContains(t, err, "user.email held by User/nobody")
}

// What has to wait for others is tried once in a round, and counted once, however many
// wait and give way in it. The order in which they are tried may be any: it is had often.
func TestARepairCountsEachAggregateOnce(t *testing.T) {
	t.Parallel()
	w := setup(t)
	former := formerly(t, w)
	const n = 4
	for trial := range 16 {
		name := func(what string, i int) string { return fmt.Sprintf("%s%d-%d", what, trial, i) }
		for i := range n {
			for id, address := range map[string]string{
				name("gets", i):  fmt.Sprintf("Gets%d-%d@example.com", trial, i),
				name("holds", i): name("holds", i) + "@example.com",
				name("same", i):  fmt.Sprintf("%s%s%d@example.com", strings.Repeat("S", i), strings.Repeat("s", n-i), trial), // one address by today's rule
			} {
				_, err := former.Create(ctx, id, createExact(address))
				require.NoError(t, err)
			}
			// It comes after the one that is to get this from it, which so has to wait.
			_, err := w.pool.Exec(ctx, `insert into refold.claim (namespace, value, category, stream) select 'user.email', $1, id, $2 from refold.category where name = 'User'`,
				name("gets", i)+"@example.com", name("holds", i))
			require.NoError(t, err)
		}
		report, err := w.accounts.RepairClaims(ctx)
		require.NoError(t, err)
		require.Equal(t, []int64{2*n + 1, n - 1}, []int64{report.Repaired, report.Differ})
		for i := range n {
			_, err := w.accounts.Execute(ctx, name("same", i), changeEmail(name("other", i)+"@example.com"))
			require.NoError(t, err)
		}
	}
}
