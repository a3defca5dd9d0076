package user

// UserCreated is the event of a user who has signed up.
type UserCreated struct {
	ID       string `avro:"id"`
	Email    string `avro:"email"`
	IsActive bool   `avro:"isActive"`
	Name     string `avro:"name"`
}

// UserActivated is the event of a user who may log in.
type UserActivated struct{}

// UserEmailChanged is the event of another address, which is not verified yet.
type UserEmailChanged struct {
	NewEmail string `avro:"newEmail"`
}

// UserEmailVerified is the event of an address that belongs to the user.
type UserEmailVerified struct{}

// UserLoggedIn is the event of a log-in that succeeded.
type UserLoggedIn struct{}

// UserLoginFailed is the event of a log-in that failed.
type UserLoginFailed struct{}

// UserLocked is the event of a user who may not log in any more.
type UserLocked struct{}

// UserDeleted is the event of a user who is gone.
type UserDeleted struct{}
