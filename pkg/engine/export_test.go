package engine

// Faults are bugs that tests plant, to see that the checks catch them.
type Faults struct {
	NoFence, NoSequenceCheck, SplitTransaction bool
	// Between is called between the two transactions of a split one.
	Between func()
}

// Plant plants bugs in an engine that does not run yet.
func (e *Engine) Plant(f Faults) {
	e.faults = faults{noFence: f.NoFence, noSequenceCheck: f.NoSequenceCheck, splitTransaction: f.SplitTransaction, between: f.Between}
}
