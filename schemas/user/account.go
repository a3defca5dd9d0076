// Package user is the demo domain as Go code: the account of a user, an
// aggregate over the events of schemas/events/User.
//
// It is the worked example of package aggregate. An [Account] is a plain struct.
// Each event says by its Apply method what it changes; each command is a method
// that checks the rules and raises events, and changes nothing by itself.
// [Define] lists both. HTTP serves the commands as
// POST /v1/commands/User/{id}/{command}.
package user

import (
	"strings"

	"github.com/refoldhq/refold/pkg/aggregate"
)

// MaxFailures is after how many failed log-ins in a row an account is locked.
const MaxFailures = 5

// Account is what the commands need to know of a user. It holds no more: what
// readers want is the business of projections. The tags name its fields in
// snapshots and to those who ask for its state over HTTP.
type Account struct {
	aggregate.Root

	Email    string `json:"email"`
	Verified bool   `json:"verified"`
	Active   bool   `json:"active"`
	Locked   bool   `json:"locked"`
	Deleted  bool   `json:"deleted"`
	Failures int    `json:"failures"` // log-ins failed in a row
}

// Define returns the aggregate's definition: its category, its events and its
// commands.
func Define() *aggregate.Definition[Account] {
	d := aggregate.Define[Account]("User")
	aggregate.On[UserCreated](d)
	aggregate.On[UserActivated](d)
	aggregate.On[UserEmailChanged](d)
	aggregate.On[UserEmailVerified](d)
	aggregate.On[UserLoggedIn](d)
	aggregate.On[UserLoginFailed](d)
	aggregate.On[UserLocked](d)
	aggregate.On[UserDeleted](d)

	aggregate.Creates(d, "create", (*Account).Create)
	aggregate.Command(d, "activate", func(a *Account, _ struct{}) error { return a.Activate() })
	aggregate.Command(d, "changeEmail", (*Account).ChangeEmail)
	aggregate.Command(d, "verifyEmail", (*Account).VerifyEmail)
	aggregate.Command(d, "logIn", (*Account).LogIn)
	aggregate.Command(d, "delete", func(a *Account, _ struct{}) error { return a.Delete() })
	return d
}

// The rules that a command may break. The codes are part of the API.
var (
	ErrEmail    = aggregate.Invariant("email-malformed", "the address is no e-mail address")
	ErrStale    = aggregate.Invariant("email-superseded", "the account has another address by now")
	ErrInactive = aggregate.Invariant("account-inactive", "the account is not active")
	ErrLocked   = aggregate.Invariant("account-locked", "the account is locked")
	ErrDeleted  = aggregate.Invariant("account-deleted", "the account is deleted")
)

// Claims returns what no two accounts may have at once. It is a function of the
// state, so an address is taken when the account gets it, moves when it changes,
// and is free again when the account is deleted.
func (a *Account) Claims() []aggregate.Claim {
	if a.Email == "" || a.Deleted {
		return nil
	}
	return []aggregate.Claim{{Namespace: "user.email", Value: strings.ToLower(a.Email)}}
}

// Create is the command of somebody who signs up.
type Create struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
}

// Create opens the account.
func (a *Account) Create(c Create) error {
	if !plausible(c.Email) {
		return ErrEmail
	}
	aggregate.Raise(a, UserCreated{ID: a.ID(), Email: c.Email, Name: c.Name})
	return nil
}

// Activate lets the user log in. An active account stays as it is.
func (a *Account) Activate() error {
	switch {
	case a.Deleted:
		return ErrDeleted
	case a.Active:
		return nil
	}
	aggregate.Raise(a, UserActivated{})
	return nil
}

// ChangeEmail is the command of a user with a new address.
type ChangeEmail struct {
	Email string `json:"email"`
}

// ChangeEmail gives the account another address, which is not verified yet.
func (a *Account) ChangeEmail(c ChangeEmail) error {
	switch {
	case a.Deleted:
		return ErrDeleted
	case !plausible(c.Email):
		return ErrEmail
	case c.Email == a.Email:
		return nil
	}
	aggregate.Raise(a, UserEmailChanged{NewEmail: c.Email})
	return nil
}

// VerifyEmail is the command of a user who has followed the link in a mail. It
// names the address that the mail went to.
type VerifyEmail struct {
	Email string `json:"email"`
}

// VerifyEmail notes that the address belongs to the user.
func (a *Account) VerifyEmail(c VerifyEmail) error {
	switch {
	case a.Deleted:
		return ErrDeleted
	case c.Email != a.Email:
		return ErrStale
	case a.Verified:
		return nil
	}
	aggregate.Raise(a, UserEmailVerified{})
	return nil
}

// LogIn is the command of whoever checks passwords: it reports an attempt.
type LogIn struct {
	Succeeded bool `json:"succeeded"`
}

// LogIn notes an attempt to log in. The last of [MaxFailures] failures in a row
// locks the account.
func (a *Account) LogIn(c LogIn) error {
	switch {
	case a.Deleted:
		return ErrDeleted
	case a.Locked:
		return ErrLocked
	case !a.Active:
		return ErrInactive
	case c.Succeeded:
		aggregate.Raise(a, UserLoggedIn{})
		return nil
	}
	aggregate.Raise(a, UserLoginFailed{})
	if a.Failures >= MaxFailures {
		aggregate.Raise(a, UserLocked{})
	}
	return nil
}

// Delete ends the account and frees its address. A deleted account stays so.
func (a *Account) Delete() error {
	if !a.Deleted {
		aggregate.Raise(a, UserDeleted{})
	}
	return nil
}

// plausible tells whether an address has one @ with something on both sides.
// Only a mail that arrives can tell more.
func plausible(email string) bool {
	name, host, ok := strings.Cut(email, "@")
	return ok && name != "" && host != "" && len(email) <= 320 && !strings.ContainsAny(email, " \t\r\n") && !strings.Contains(host, "@")
}

// Apply opens the account.
func (e UserCreated) Apply(a *Account) {
	a.Email, a.Active = e.Email, e.IsActive
}

// Apply lets the user log in.
func (UserActivated) Apply(a *Account) { a.Active = true }

// Apply gives the account another address.
func (e UserEmailChanged) Apply(a *Account) {
	a.Email, a.Verified = e.NewEmail, false
}

// Apply notes that the address belongs to the user.
func (UserEmailVerified) Apply(a *Account) { a.Verified = true }

// Apply forgets the failures before.
func (UserLoggedIn) Apply(a *Account) { a.Failures = 0 }

// Apply counts a failure.
func (UserLoginFailed) Apply(a *Account) { a.Failures++ }

// Apply locks the account.
func (UserLocked) Apply(a *Account) { a.Locked = true }

// Apply ends the account.
func (UserDeleted) Apply(a *Account) { a.Deleted = true }
