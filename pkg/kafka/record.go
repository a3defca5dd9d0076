// Package kafka is how refold speaks to Kafka: clients by the usual environment,
// topics with the settings that rebuilds from offset zero need, and the mapping
// between an event and its record.
//
// The record is CloudEvents in binary mode with a value in Confluent's framing.
// It carries all that a projection may ask for, so that rows built from a topic
// and rows built from the event table are the same.
package kafka

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/refoldhq/refold/pkg/event"
)

// Headers of a record, in the order in which they are written.
const (
	headerSpec        = "ce_specversion"
	headerID          = "ce_id"
	headerSource      = "ce_source"
	headerType        = "ce_type"
	headerSubject     = "ce_subject"
	headerTime        = "ce_time"
	headerContent     = "content-type"
	headerRecorded    = "ce_recorded"
	headerVersion     = "ce_streamversion"
	headerSlot        = "ce_slot"
	headerSeq         = "ce_seq"
	headerPrevID      = "ce_previd"
	headerActor       = "ce_actor"
	headerCorrelation = "ce_correlationid"
	headerCausation   = "ce_causationid"
	headerParent      = "traceparent"
)

// ToRecord returns the record of an event as [Batch] encodes it, for those who
// hand records to a client one by one.
func ToRecord(e *event.Event, topic string, partition int32) *kgo.Record {
	var b Batch
	b.Add(e)
	var raw kmsg.Record
	if err := raw.ReadFrom(b.records); err != nil {
		panic(fmt.Sprintf("reading a record that was just encoded: %v", err))
	}
	r := &kgo.Record{Topic: topic, Partition: partition, Key: raw.Key, Value: raw.Value, Timestamp: e.Recorded.Std()}
	for _, h := range raw.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return r
}

// stringOf returns bytes, which nobody changes any more, as a string.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// ErrForeign is wrapped by what [Parse] says of a record that refold did not make.
var ErrForeign = errors.New("foreign record")

var (
	errHeaders   = foreign("its headers are not those of an event")
	errPlace     = foreign("its slot is not that of its key, or does not belong into its partition")
	errNoValue   = foreign("it has no value")
	errStreamKey = foreign("its key cannot name a stream")
)

func foreign(why string) error { return &foreignError{why} }

type foreignError struct{ why string }

func (e *foreignError) Error() string { return "foreign record: " + e.why }
func (e *foreignError) Unwrap() error { return ErrForeign }

// Parse reads a record of a category with so many slots and partitions into e,
// whose strings and value alias the record. What lacks our headers, or stands
// where the event that it claims to be cannot stand, is an [ErrForeign]. The
// value is not looked into, but it must be there.
func Parse(r *kgo.Record, category string, slots, partitions int, e *event.Event) error {
	*e = event.Event{Category: category, Stream: stringOf(r.Key), Value: r.Value}
	var seen seenHeaders
	for i := range r.Headers {
		if !parseHeader(r.Headers[i].Key, r.Headers[i].Value, e, &seen) {
			return errHeaders
		}
	}
	switch {
	case seen != allHeaders:
		return errHeaders
	case event.CheckStreamID(e.Stream) != nil:
		return errStreamKey
	case event.SlotOf(e.Stream, slots) != e.Slot || event.PartitionOf(e.Slot, partitions) != int(r.Partition):
		return errPlace
	case len(r.Value) == 0:
		return errNoValue
	case e.PrevID.IsZero() != (e.Seq == 1):
		return errHeaders
	}
	return nil
}

// seenHeaders marks the headers that an event must have.
type seenHeaders uint8

const (
	seenID seenHeaders = 1 << iota
	seenType
	seenTime
	seenRecorded
	seenVersion
	seenSlot
	seenSeq
	allHeaders = 1<<iota - 1
)

// parseHeader reads one header and tells whether it is acceptable. Others than
// ours are.
func parseHeader(name string, value []byte, e *event.Event, seen *seenHeaders) (ok bool) {
	ok = true
	switch name {
	case headerID:
		e.ID, ok = parseID(value)
		*seen |= seenID
	case headerPrevID:
		e.PrevID, ok = parseID(value)
	case headerType:
		e.Type, ok = stringOf(value), len(value) > 0
		*seen |= seenType
	case headerSubject:
		ok = stringOf(value) == e.Stream
	case headerTime:
		e.Time, ok = parseTime(value)
		*seen |= seenTime
	case headerRecorded:
		e.Recorded, ok = parseTime(value)
		*seen |= seenRecorded
	case headerVersion:
		e.Version, ok = parseNumber(value)
		ok = ok && e.Version > 0
		*seen |= seenVersion
	case headerSlot:
		var slot int64
		slot, ok = parseNumber(value)
		ok = ok && slot < event.MaxSlots
		e.Slot = int(slot)
		*seen |= seenSlot
	case headerSeq:
		e.Seq, ok = parseNumber(value)
		ok = ok && e.Seq > 0
		*seen |= seenSeq
	case headerActor:
		e.Metadata.Actor = stringOf(value)
	case headerCorrelation:
		e.Metadata.CorrelationID = stringOf(value)
	case headerCausation:
		e.Metadata.CausationID = stringOf(value)
	case headerParent:
		e.Metadata.Traceparent = stringOf(value)
	}
	return ok
}

func parseID(b []byte) (event.ID, bool) {
	id, err := event.ParseID(stringOf(b))
	return id, err == nil
}

// parseTime reads a time as we write it: 2006-01-02T15:04:05.999999Z.
func parseTime(b []byte) (event.Time, bool) {
	t, err := event.ParseTime(stringOf(b))
	return t, err == nil
}

// parseNumber reads digits, at most 18.
func parseNumber(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
