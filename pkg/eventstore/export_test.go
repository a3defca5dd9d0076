package eventstore

// AnswerEarly makes the store answer before it commits. It must be called before Run.
func (s *Store) AnswerEarly() { s.faults.answerEarly = true }
