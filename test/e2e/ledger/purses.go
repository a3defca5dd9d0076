package ledger

import "github.com/refoldhq/refold/pkg/projection"

// purse is what a function says of a wallet.
type purse struct {
	Coins   []int64 `json:"coins"` // deposits that are less than a unit, in cents
	Largest int64   `json:"largest"`
}

// Projections are the read models that are folded by functions.
func Projections() []*projection.Definition {
	return []*projection.Definition{projection.Fold("purses", 1, foldPurse, projection.Category("Wallet"), projection.OnEvents("MoneyDeposited"))}
}

func foldPurse(p *purse, e *projection.Event) error {
	var d MoneyDeposited
	if err := e.Decode(&d); err != nil {
		return err
	}
	if d.Cents < 100 {
		p.Coins = append(p.Coins, d.Cents)
	}
	p.Largest = max(p.Largest, d.Cents)
	return nil
}
