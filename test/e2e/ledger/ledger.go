// Package ledger is a domain whose contract has changed: a deposit has got a
// currency, then another name, a name of the owner in two parts and an amount in
// cents. Its programs, beside it, are what a team writes whose events need
// upcasters.
package ledger

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"math"
	"strings"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/reaction"
)

//go:embed contracts
var files embed.FS

// Contracts are the schemas and definitions.
func Contracts() fs.FS {
	contracts, err := fs.Sub(files, "contracts")
	if err != nil {
		panic(err) // the name is wrong
	}
	return contracts
}

// Upcasters lead from the second version of a deposit to the third.
func Upcasters() []avro.Upcaster {
	return []avro.Upcaster{avro.Upcast("Wallet", "Deposited", 2, toCents)}
}

func toCents(old DepositedV2) (MoneyDeposited, error) {
	first, last, ok := strings.Cut(old.Owner, " ")
	if !ok {
		return MoneyDeposited{}, fmt.Errorf("the owner %q has one name", old.Owner)
	}
	return MoneyDeposited{First: first, Last: last, Cents: int64(math.Round(old.Amount * 100)), Unit: old.Currency}, nil
}

// Wallet is the aggregate.
type Wallet struct {
	aggregate.Root

	Owner   string `json:"owner"`
	Cents   int64  `json:"cents"`
	Unit    string `json:"unit"`
	Thanked int    `json:"thanked"`
}

// Apply adds a deposit.
func (e MoneyDeposited) Apply(w *Wallet) {
	w.Owner, w.Unit = e.First+" "+e.Last, e.Unit
	w.Cents += e.Cents
}

// Apply counts.
func (e Thanked) Apply(w *Wallet) { w.Thanked++ }

// Deposit is the command of somebody who pays in.
type Deposit struct {
	First string `json:"first"`
	Last  string `json:"last"`
	Cents int64  `json:"cents"`
}

// Deposit pays into the wallet.
func (w *Wallet) Deposit(d Deposit) error {
	aggregate.Raise(w, MoneyDeposited{First: d.First, Last: d.Last, Cents: d.Cents, Unit: "EUR"})
	return nil
}

// Define returns the aggregate's definition.
func Define() *aggregate.Definition[Wallet] {
	d := aggregate.Define[Wallet]("Wallet")
	aggregate.On[MoneyDeposited](d)
	aggregate.On[Thanked](d)
	aggregate.Command(d, "deposit", (*Wallet).Deposit)
	return d
}

// Thank is the reaction that thanks for every deposit, also for those of old.
func Thank(rt *aggregate.Runtime) (*reaction.Consumer, error) {
	wallets, err := aggregate.Open(rt, Define())
	c := reaction.New(rt, reaction.Config{Name: "thank", Category: "Wallet", FromStart: true})
	reaction.On(c, func(ctx context.Context, e reaction.Event[MoneyDeposited]) error {
		_, err := wallets.Execute(ctx, e.Stream, func(w *Wallet) error {
			aggregate.Raise(w, Thanked{Name: e.Data.Last})
			return nil
		})
		return err
	})
	return c, err
}
