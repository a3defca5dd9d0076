package relay

// Fault is a bug that a test plants, to see that it is caught.
type Fault int

const (
	CursorEarly Fault = iota
	PassRefused
	NoFence
	NoCompare
)

// Plant makes the relay work as if it had the bug.
func (r *Relay) Plant(f Fault) {
	switch f {
	case CursorEarly:
		r.faults.cursorEarly = true
	case PassRefused:
		r.faults.passRefused = true
	case NoFence:
		r.faults.noFence = true
	case NoCompare:
		r.faults.noCompare = true
	}
}
