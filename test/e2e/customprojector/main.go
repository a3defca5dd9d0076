// Customprojector is what a team writes that has projections in Go: a projector
// and a query server that know two more read models than the contracts do, one
// made of a struct's tags, one folded by a function.
package main

import (
	"strings"
	"time"

	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

type cli struct {
	service.Settings
	Run   service.ProjectorCommand `cmd:"" help:"Feed the projections."`
	Serve service.QueryCommand     `cmd:"" help:"Serve the read models."`
}

func main() {
	service.Program{Name: "projector", Description: "Projections of accounts.", Contracts: schemas.FS,
		Projections: []*projection.Definition{contacts, domains}}.Main(&cli{})
}

// contact is a row of contacts.
type contact struct {
	ID      string    `refold:"from=UserCreated"`
	Email   string    `refold:"from=UserCreated|UserEmailChanged.newEmail" index:""`
	Changes int64     `refold:"count=UserEmailChanged"`
	Since   time.Time `refold:"from=UserCreated.$time"`
}

var contacts = projection.Of[contact]("contacts", projection.Category("User"), projection.RemoveOn("UserDeleted"))

// domain is what a user's mail says about his company, which operators do not see.
type domain struct {
	Name   string   `json:"name"`
	Former []string `json:"former"`
}

var domains = projection.Fold("domains", 1, foldDomain, projection.Category("User"), projection.OnEvents("UserCreated", "UserEmailChanged", "UserDeleted"))

func foldDomain(d *domain, e *projection.Event) error {
	email := ""
	switch e.Type {
	case "UserCreated":
		var data user.UserCreated
		if err := e.Decode(&data); err != nil {
			return err
		}
		email = data.Email
	case "UserEmailChanged":
		var data user.UserEmailChanged
		if err := e.Decode(&data); err != nil {
			return err
		}
		email = data.NewEmail
	case "UserDeleted":
		return projection.Remove
	}
	_, name, _ := strings.Cut(email, "@")
	if d.Name != "" && d.Name != name {
		d.Former = append(d.Former, d.Name)
	}
	d.Name = name
	return nil
}
