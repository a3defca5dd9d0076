package readmodel_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// User is a row of rm_users.
type User struct {
	ID        string    `json:"id"`
	Email     string    `json:"email"`
	Active    bool      `json:"active"`
	Logins    int64     `json:"logins"`
	CreatedAt time.Time `json:"createdAt"`
	Name      *string   `json:"name"` // null until set
}

// Fields are named by pointing at them, so that one that does not exist, or a value
// of another type, does not compile.
var (
	active    = readmodel.FieldOf(func(u *User) *bool { return &u.Active })
	logins    = readmodel.FieldOf(func(u *User) *int64 { return &u.Logins })
	createdAt = readmodel.FieldOf(func(u *User) *time.Time { return &u.CreatedAt })
	name      = readmodel.NullableOf(func(u *User) **string { return &u.Name })
)

// A row is read that contains what was appended before.
func ExampleFindByID() {
	find := func(ctx context.Context, r *readmodel.Reader, appended event.Token) error {
		user, err := readmodel.FindByID[User](ctx, r, "rm_users", "42", readmodel.Containing(appended), readmodel.Waiting(2*time.Second))
		if errors.Is(err, readmodel.ErrNotCaughtUp) {
			return errors.New("the projection is far behind")
		}
		fmt.Println(user.Email)
		return err
	}
	_ = find
}

func ExampleFindBy() {
	find := func(ctx context.Context, r *readmodel.Reader) ([]User, error) {
		where := readmodel.AllOf(active.Eq(true), readmodel.AnyOf(logins.Gte(10), name.IsNull()))
		return readmodel.FindBy(ctx, r, "rm_users", where, []readmodel.Order{createdAt.Desc()})
	}
	_ = find
}

func ExampleWatch() {
	watch := func(ctx context.Context, feeds *readmodel.Feeds, lastID string) (string, error) {
		for change, err := range readmodel.Watch(ctx, feeds, "rm_users", lastID, active.Eq(true)) {
			if err != nil {
				return lastID, err // behind ErrSlow and ErrClosed go on from there
			}
			if change.Kind == readmodel.Upserted {
				fmt.Println(change.Value.Email)
			}
			lastID = change.ID
		}
		return lastID, nil
	}
	_ = watch
}
