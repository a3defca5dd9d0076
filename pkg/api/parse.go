package api

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/eventstore"
	"github.com/refoldhq/refold/pkg/problem"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// Limits of one append.
const (
	maxEvents     = 1000
	maxClaims     = 1000
	maxNamespace  = 200
	maxClaimValue = 1000
	maxMetadata   = 1000 // bytes of one member
)

// parser reads bodies of appends.
type parser struct {
	api           *API
	r             *strictjson.Reader
	line          bool // of an import
	metadata      event.Metadata
	key           string
	expectedGiven bool
	events        int
}

func (p *parser) bad(detail string) error { return problem.BadRequest(detail).At(p.r.Pointer()) }

func (p *parser) unknown(key []byte) error {
	return p.bad("unknown member " + strconv.Quote(string(key)))
}

// text reads a string into memory of its own.
func (p *parser) text(what string, most int) (string, error) {
	s, err := p.r.ReadString()
	if err != nil {
		return "", err
	}
	if len(s) > most {
		return "", p.bad(what + " has more than " + strconv.Itoa(most) + " bytes")
	}
	return string(s), nil
}

// single reads the body of an append to one stream.
func (p *parser) single(one *eventstore.Append) error {
	err := p.r.ReadObject(func(key []byte) error {
		if string(key) == "metadata" {
			return p.readMetadata()
		}
		known, err := p.member(key, one)
		if err == nil && !known {
			err = p.unknown(key)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(one.Events) == 0 {
		return problem.BadRequest("an append has 1 to 1,000 events").At("/events")
	}
	return p.r.End()
}

// member reads a member that appends to one and to several streams share.
func (p *parser) member(key []byte, one *eventstore.Append) (known bool, err error) {
	switch string(key) {
	case "expectedVersion":
		one.Expected, err = p.expected()
		p.expectedGiven = true
	case "events":
		err = p.readEvents(one)
	case "claims":
		one.Claims, err = p.claims()
	case "releases":
		one.Releases, err = p.claims()
	default:
		return false, nil
	}
	return true, err
}

// many reads the body of an append to several streams.
func (p *parser) many() (appends []eventstore.Append, err error) {
	err = p.r.ReadObject(func(key []byte) error {
		switch {
		case string(key) == "appends":
			appends, err = p.readAppends()
			return err
		case string(key) == "metadata":
			return p.readMetadata()
		case string(key) == "idempotencyKey" && p.line:
			if p.key, err = p.text("the key", maxKey); err != nil {
				return err
			}
			return checkKey(p.key)
		default:
			return p.unknown(key)
		}
	})
	if err == nil && len(appends) == 0 {
		err = problem.BadRequest("appends is missing or empty").At("/appends")
	}
	if err == nil {
		err = p.r.End()
	}
	return appends, err
}

func (p *parser) readAppends() (appends []eventstore.Append, err error) {
	seen := make(map[[2]string]bool)
	err = p.r.ReadArray(func(int) error {
		one, err := p.readAppend()
		if err != nil {
			return err
		}
		if name := [2]string{one.Category, one.Stream}; seen[name] {
			return p.bad("the stream is named twice")
		} else {
			seen[name] = true
		}
		appends = append(appends, one)
		return nil
	})
	return appends, err
}

// readAppend reads one of several appends. Its category must come before its
// events are understood, so events that precede it are read a second time.
func (p *parser) readAppend() (one eventstore.Append, err error) {
	err = p.r.ReadObject(func(key []byte) error {
		switch string(key) {
		case "category":
			if one.Category, err = p.text("the category", 64); err != nil {
				return err
			}
			if _, ok := p.api.deps.Store.Category(one.Category); !ok {
				return unknownCategory(one.Category).At(p.r.Pointer())
			}
			return nil
		case "stream":
			if one.Stream, err = p.text("the stream id", event.MaxStreamID); err != nil {
				return err
			}
			if err := event.CheckStreamID(one.Stream); err != nil {
				return p.bad(err.Error())
			}
			return nil
		case "events":
			if one.Category == "" {
				return p.bad(`"category" must come before "events"`)
			}
		}
		known, err := p.member(key, &one)
		if err == nil && !known {
			err = p.unknown(key)
		}
		return err
	})
	switch {
	case err != nil:
		return one, err
	case one.Category == "":
		return one, p.bad(`"category" is missing`)
	case one.Stream == "":
		return one, p.bad(`"stream" is missing`)
	case len(one.Events) == 0:
		return one, p.bad("an append has 1 to 1,000 events")
	}
	return one, nil
}

// expected reads a version or a word.
func (p *parser) expected() (eventstore.Expected, error) {
	switch p.r.Peek() {
	case strictjson.Number:
		text, err := p.r.ReadNumber()
		if err != nil {
			return eventstore.Any, err
		}
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil || n < 0 {
			return eventstore.Any, p.bad("expectedVersion is no version")
		}
		return eventstore.Exactly(n), nil
	case strictjson.String:
		text, err := p.r.ReadString()
		if err != nil {
			return eventstore.Any, err
		}
		switch string(text) {
		case "any":
			return eventstore.Any, nil
		case "none":
			return eventstore.None, nil
		case "exists":
			return eventstore.Exists, nil
		}
	}
	return eventstore.Any, p.bad(`expectedVersion is a number, "none", "exists" or "any"`)
}

func (p *parser) readMetadata() error {
	return p.r.ReadObject(func(key []byte) (err error) {
		var into *string
		switch string(key) {
		case "actor":
			into = &p.metadata.Actor
		case "correlationId":
			into = &p.metadata.CorrelationID
		case "causationId":
			into = &p.metadata.CausationID
		default:
			return p.unknown(key)
		}
		*into, err = p.text(string(key), maxMetadata)
		return err
	})
}

func (p *parser) claims() (claims []eventstore.Claim, err error) {
	err = p.r.ReadArray(func(i int) error {
		if i >= maxClaims {
			return p.bad("more than 1,000 claims")
		}
		var c eventstore.Claim
		err := p.r.ReadObject(func(key []byte) (err error) {
			switch string(key) {
			case "namespace":
				c.Namespace, err = p.text("the namespace", maxNamespace)
			case "value":
				c.Value, err = p.text("the value", maxClaimValue)
			default:
				err = p.unknown(key)
			}
			return err
		})
		if err == nil && (c.Namespace == "" || c.Value == "") {
			err = p.bad("a claim has a namespace and a value")
		}
		claims = append(claims, c)
		return err
	})
	return claims, err
}

func (p *parser) readEvents(one *eventstore.Append) error {
	return p.r.ReadArray(func(int) error {
		if p.events++; p.events > maxEvents {
			return p.bad("more than 1,000 events")
		}
		e, err := p.readEvent(one.Category)
		one.Events = append(one.Events, e)
		return err
	})
}

// readEvent reads one event and encodes its data, in one pass when the type
// comes first.
func (p *parser) readEvent(category string) (e eventstore.NewEvent, err error) {
	var late []byte // data that came before the type
	at := ""
	err = p.r.ReadObject(func(key []byte) error {
		switch string(key) {
		case "type":
			e.Type, err = p.text("the type", 200)
			return err
		case "data":
			if e.Type != "" {
				e.Value, err = p.encode(category, e.Type, p.r)
				return err
			}
			at = p.r.Pointer()
			late, err = p.r.Raw()
			return err
		case "id":
			text, err := p.text("the id", 36)
			if err != nil {
				return err
			}
			if e.ID, err = event.ParseID(text); err != nil {
				return p.bad(err.Error())
			}
			return nil
		case "time":
			text, err := p.text("the time", 64)
			if err != nil {
				return err
			}
			t, err := readTime(text)
			if err != nil {
				return &avro.DataError{Pointer: p.r.Pointer(), Msg: err.Error()}
			}
			e.Time = &t
			return nil
		default:
			return p.unknown(key)
		}
	})
	switch {
	case err != nil:
		return e, err
	case e.Type == "":
		return e, p.bad(`"type" is missing`)
	case e.Value == nil && late == nil:
		return e, p.bad(`"data" is missing`)
	case e.Value == nil:
		e.Value, err = p.encode(category, e.Type, strictjson.NewReader(late))
		return e, below(err, at)
	}
	return e, nil
}

// below puts the place of a value before the pointer of an error inside it.
func below(err error, at string) error {
	var data *avro.DataError
	if errors.As(err, &data) {
		return &avro.DataError{Pointer: at + data.Pointer, Msg: data.Msg}
	}
	return err
}

func (p *parser) encode(category, typ string, r *strictjson.Reader) ([]byte, error) {
	contract, ok := p.api.deps.Contracts.Category(category)
	if !ok {
		return nil, unknownCategory(category)
	}
	t, ok := contract.Type(typ)
	if ok && t.Name != typ {
		return nil, problem.New(http.StatusUnprocessableEntity, "unknown-event-type", "The event type has another name by now", "it is "+strconv.Quote(t.Name)).At(p.r.Pointer())
	}
	if !ok {
		return nil, problem.New(http.StatusUnprocessableEntity, "unknown-event-type", "The category has no such event type", strconv.Quote(typ)).At(p.r.Pointer())
	}
	return t.Newest().EncodeJSON(avro.AppendFrame(make([]byte, 0, 128), p.api.deps.SchemaIDs[category][typ]), r)
}
