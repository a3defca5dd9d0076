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
	"strconv"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

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

// ToRecord returns the record of an event. Key and value alias the event's. All
// header values lie in one allocation.
func ToRecord(e *event.Event, topic string, partition int32) *kgo.Record {
	w := headerWriter{buf: make([]byte, 0, 256+len(e.Stream)), headers: make([]kgo.RecordHeader, 0, 16)}
	w.text(headerSpec, "1.0")
	w.add(headerID, e.ID.Append(w.buf))
	w.text(headerSource, "refold/"+e.Category)
	w.text(headerType, e.Type)
	w.text(headerSubject, e.Stream)
	w.add(headerTime, e.Time.Append(w.buf))
	w.text(headerContent, "application/avro")
	w.add(headerRecorded, e.Recorded.Append(w.buf))
	w.add(headerVersion, strconv.AppendInt(w.buf, e.Version, 10))
	w.add(headerSlot, strconv.AppendInt(w.buf, int64(e.Slot), 10))
	w.add(headerSeq, strconv.AppendInt(w.buf, e.Seq, 10))
	if !e.PrevID.IsZero() {
		w.add(headerPrevID, e.PrevID.Append(w.buf))
	}
	for _, m := range [...]struct{ name, value string }{{headerActor, e.Metadata.Actor}, {headerCorrelation, e.Metadata.CorrelationID},
		{headerCausation, e.Metadata.CausationID}, {headerParent, e.Metadata.Traceparent}} {
		if m.value != "" {
			w.text(m.name, m.value)
		}
	}
	return &kgo.Record{Topic: topic, Partition: partition, Key: bytesOf(e.Stream), Value: e.Value, Headers: w.headers, Timestamp: e.Recorded.Std()}
}

// headerWriter collects header values in one buffer.
type headerWriter struct {
	buf     []byte
	headers []kgo.RecordHeader
}

// add takes a buffer that was appended to and makes what is new a header.
func (w *headerWriter) add(name string, grown []byte) {
	start := len(w.buf)
	w.buf = grown
	w.headers = append(w.headers, kgo.RecordHeader{Key: name, Value: grown[start:len(grown):len(grown)]})
}

func (w *headerWriter) text(name, value string) {
	w.headers = append(w.headers, kgo.RecordHeader{Key: name, Value: bytesOf(value)})
}

// bytesOf returns the bytes of a string, which nobody may change.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

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
