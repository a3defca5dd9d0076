package user_test

import (
	"testing"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/refoldtest"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

func accounts(t testing.TB) *refoldtest.Aggregate[user.Account] {
	return refoldtest.NewAggregate(t, schemas.FS, user.Define())
}

func created(active bool) user.UserCreated {
	return user.UserCreated{ID: "1", Email: "Ada@example.com", IsActive: active}
}

func email(value string) aggregate.Claim {
	return aggregate.Claim{Namespace: "user.email", Value: value}
}

func TestAnAddressIsTakenAtCreationMovedAtChangeAndFreedAtDeletion(t *testing.T) {
	accounts := accounts(t)
	accounts.Given(t).When(func(a *user.Account) error { return a.Create(user.Create{Email: "Ada@example.com"}) }).
		Then(created(false)).ThenHolds(email("ada@example.com"))
	accounts.Given(t, created(true)).When(func(a *user.Account) error { return a.ChangeEmail(user.ChangeEmail{Email: "b@example.com"}) }).
		Then(user.UserEmailChanged{NewEmail: "b@example.com"}).ThenHolds(email("b@example.com"))
	accounts.Given(t, created(true)).When((*user.Account).Delete).Then(user.UserDeleted{}).ThenHolds()
}

func TestTheFifthFailureInARowLocksTheAccount(t *testing.T) {
	fail := func(a *user.Account) error { return a.LogIn(user.LogIn{}) }
	accounts := accounts(t)
	four := []aggregate.Event[user.Account]{created(true), user.UserLoginFailed{}, user.UserLoginFailed{}, user.UserLoginFailed{}, user.UserLoginFailed{}}
	accounts.Given(t, four...).When(fail).Then(user.UserLoginFailed{}, user.UserLocked{})
	accounts.Given(t, append(four, user.UserLoggedIn{})...).When(fail).Then(user.UserLoginFailed{})
	accounts.Given(t, append(four, user.UserLoginFailed{}, user.UserLocked{})...).When(fail).ThenFails(user.ErrLocked)
	accounts.Given(t, created(false)).When(fail).ThenFails(user.ErrInactive)
}

func TestOnlyTheAddressThatTheMailWentToIsVerified(t *testing.T) {
	verify := func(a *user.Account) error { return a.VerifyEmail(user.VerifyEmail{Email: "Ada@example.com"}) }
	accounts := accounts(t)
	accounts.Given(t, created(true)).When(verify).Then(user.UserEmailVerified{})
	accounts.Given(t, created(true), user.UserEmailVerified{}).When(verify).ThenNothing()
	accounts.Given(t, created(true), user.UserEmailChanged{NewEmail: "b@example.com"}).When(verify).ThenFails(user.ErrStale)
}

func TestADeletedAccountTakesNoCommands(t *testing.T) {
	accounts := accounts(t)
	gone := accounts.Given(t, created(true), user.UserDeleted{})
	gone.When((*user.Account).Activate).ThenFails(user.ErrDeleted)
	gone.When(func(a *user.Account) error { return a.ChangeEmail(user.ChangeEmail{Email: "b@example.com"}) }).ThenFails(user.ErrDeleted)
	gone.When(func(a *user.Account) error { return a.VerifyEmail(user.VerifyEmail{}) }).ThenFails(user.ErrDeleted)
	gone.When(func(a *user.Account) error { return a.LogIn(user.LogIn{}) }).ThenFails(user.ErrDeleted)
	gone.When((*user.Account).Delete).ThenNothing()
}

func TestWhatIsNoAddressIsRefused(t *testing.T) {
	accounts := accounts(t)
	for _, bad := range []string{"", "ada", "@example.com", "ada@", "a b@example.com", "a@b@c"} {
		accounts.Given(t).When(func(a *user.Account) error { return a.Create(user.Create{Email: bad}) }).ThenFails(user.ErrEmail)
	}
}
