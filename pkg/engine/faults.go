package engine

// faults are bugs that are planted in tests, to see that the checks catch them.
// The zero value has none.
type faults struct {
	noFence          bool // progress is set whoever owns it
	noSequenceCheck  bool // records are applied by offset only
	splitTransaction bool // rows go first, in a transaction of their own
	between          func()
}
