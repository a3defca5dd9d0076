package aggregate_test

import (
	"errors"
	"fmt"
	"testing/fstest"

	"github.com/refoldhq/refold/pkg/aggregate"
	"github.com/refoldhq/refold/pkg/avro"
)

// The contracts of a wallet, as they would stand in a folder.
var walletContracts = fstest.MapFS{
	"events/Wallet/Deposited.v1.avsc": {Data: []byte(`{"type": "record", "name": "Deposited", "fields": [{"name": "amount", "type": "long"}]}`)},
	"events/Wallet/Withdrawn.v1.avsc": {Data: []byte(`{"type": "record", "name": "Withdrawn", "fields": [{"name": "amount", "type": "long"}]}`)},
}

// Wallet is the aggregate: what its commands need to know.
type Wallet struct {
	aggregate.Root
	Balance int64 `json:"balance"`
}

type Deposited struct {
	Amount int64 `avro:"amount"`
}

type Withdrawn struct {
	Amount int64 `avro:"amount"`
}

// Events say what they change.
func (e Deposited) Apply(w *Wallet) { w.Balance += e.Amount }
func (e Withdrawn) Apply(w *Wallet) { w.Balance -= e.Amount }

// Withdraw is a command and what it needs.
type Withdraw struct {
	Amount int64 `json:"amount"`
}

var ErrOverdrawn = aggregate.Invariant("overdrawn", "the wallet does not hold that much")

// Withdraw checks the rule and raises the event; it changes nothing by itself.
func (w *Wallet) Withdraw(c Withdraw) error {
	if c.Amount > w.Balance {
		return ErrOverdrawn.Detail("the wallet holds %d", w.Balance)
	}
	aggregate.Raise(w, Withdrawn(c))
	return nil
}

func defineWallet() *aggregate.Definition[Wallet] {
	d := aggregate.Define[Wallet]("Wallet")
	aggregate.On[Deposited](d)
	aggregate.On[Withdrawn](d)
	aggregate.Command(d, "withdraw", (*Wallet).Withdraw)
	return d
}

// An aggregate, its events and a command with a rule. A [aggregate.Repository]
// runs the same commands on what the log has.
func Example() {
	contracts, err := avro.LoadContracts(walletContracts)
	if err != nil {
		fmt.Println(err)
		return
	}
	codec, err := aggregate.NewCodec(defineWallet(), contracts, aggregate.LocalIDs(contracts))
	if err != nil {
		fmt.Println(err)
		return
	}
	wallet := codec.New("ada")
	aggregate.Raise(wallet, Deposited{Amount: 10})
	fmt.Println(wallet.Withdraw(Withdraw{Amount: 4}), wallet.Balance, wallet.Uncommitted())

	err = wallet.Withdraw(Withdraw{Amount: 7})
	fmt.Println(err, errors.Is(err, ErrOverdrawn))
	// Output:
	// <nil> 6 [{10} {4}]
	// the wallet holds 6 true
}
