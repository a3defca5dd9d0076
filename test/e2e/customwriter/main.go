// Customwriter is what a team writes that has aggregates and reactions of its
// own: a writer with all of `writer serve`, their commands, and a process that
// activates every account whose address was verified.
package main

import (
	"context"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/reaction"
	"github.com/refoldhq/refold/pkg/service"
	"github.com/refoldhq/refold/schemas"
	"github.com/refoldhq/refold/schemas/user"
)

type cli struct {
	service.Settings
	Serve service.WriterCommand `cmd:"" help:"Serve the accounts."`
}

func main() {
	service.Program{Name: "accounts", Description: "Keeps accounts.", Contracts: schemas.FS}.Main(&cli{
		Serve: service.WriterCommand{Aggregates: []aggregate.Type{user.Define()}, Reactions: []service.Reaction{activate}},
	})
}

func activate(rt *aggregate.Runtime) (*reaction.Consumer, error) {
	accounts, err := aggregate.Open(rt, user.Define())
	c := reaction.New(rt, reaction.Config{Name: "activate", Category: "User"})
	reaction.On(c, func(ctx context.Context, e reaction.Event[user.UserEmailVerified]) error {
		_, err := accounts.Execute(ctx, e.Stream, (*user.Account).Activate)
		return err
	})
	return c, err
}
