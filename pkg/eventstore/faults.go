package eventstore

// faults are bugs that are planted in tests, to see that the checks catch them.
type faults struct {
	answerEarly bool // a batch of two trips is answered before its COMMIT is sent
}
