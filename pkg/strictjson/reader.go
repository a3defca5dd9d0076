// Package strictjson reads JSON that somebody else has written, and refuses
// whatever two readers could understand differently: duplicate keys, invalid
// UTF-8, lone surrogates, NUL, trailing data, deep nesting and numbers that no
// type of refold could hold. encoding/json accepts or replaces most of these.
//
// A [Reader] pulls values from a byte slice that is wholly in memory. It builds
// no tree: callers say what they expect next and get it, so a request body
// becomes Avro in one pass. A refusal is an [*Error] with a JSON pointer
// (RFC 6901) to the place.
package strictjson

import (
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of what is read.
const (
	MaxDepth    = 32  // arrays and objects inside one another
	MaxDigits   = 34  // of a number, as many as a decimal128 holds
	MaxExponent = 400 // of a number, either sign
)

// Error says that the input is not the JSON that we take.
type Error struct {
	// Pointer is the place in the document, "" for the whole of it.
	Pointer string
	Msg     string
	// Offset is the index of the offending byte.
	Offset int
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s at %s (byte %d)", e.Msg, pointerOrRoot(e.Pointer), e.Offset)
}

func pointerOrRoot(p string) string {
	if p == "" {
		return "the top"
	}
	return p
}

// Kind is what a value is.
type Kind uint8

// Kinds of values; Invalid is what is none of them, or the end of the input.
const (
	Invalid Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

func (k Kind) String() string {
	return [...]string{"nothing", "null", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// step is one element of the path to the present place.
type step struct {
	key   []byte
	index int // -1: the step is a key
}

// Reader reads one document. The zero value reads an empty one; use
// [NewReader] or [Reader.Reset]. It is not safe for concurrent use.
type Reader struct {
	in      []byte
	at      int
	path    []step
	scratch []byte         // of strings with escapes
	keys    [][]byte       // of the open objects, outermost first
	large   map[int]keySet // of open objects with many keys, by where their keys begin
}

// keySet is the keys of one large object.
type keySet map[string]struct{}

// NewReader returns a reader of in, which must not change while it is read.
func NewReader(in []byte) *Reader { return &Reader{in: in} }

// Reset makes r read in, keeping its memory.
func (r *Reader) Reset(in []byte) {
	r.in, r.at, r.path, r.scratch, r.keys, r.large = in, 0, r.path[:0], r.scratch[:0], r.keys[:0], nil
}

// Offset returns the index of the next byte.
func (r *Reader) Offset() int { return r.at }

// Peek returns the kind of the next value without reading it.
func (r *Reader) Peek() Kind {
	r.space()
	if r.at >= len(r.in) {
		return Invalid
	}
	switch c := r.in[r.at]; {
	case c == '{':
		return Object
	case c == '[':
		return Array
	case c == '"':
		return String
	case c == 'n':
		return Null
	case c == 't', c == 'f':
		return Bool
	case c == '-', c >= '0' && c <= '9':
		return Number
	default:
		return Invalid
	}
}

// Pointer returns the place of the value that is being read.
func (r *Reader) Pointer() string {
	var b []byte
	for _, s := range r.path {
		b = append(b, '/')
		if s.index >= 0 {
			b = strconv.AppendInt(b, int64(s.index), 10)
			continue
		}
		for _, c := range s.key {
			switch c {
			case '~':
				b = append(b, "~0"...)
			case '/':
				b = append(b, "~1"...)
			default:
				b = append(b, c)
			}
		}
	}
	return string(b)
}

// Errorf returns an error at the present place.
func (r *Reader) Errorf(format string, args ...any) error {
	return &Error{Pointer: r.Pointer(), Msg: fmt.Sprintf(format, args...), Offset: r.at}
}

// want returns the error of a value that is not of the kind that was expected.
func (r *Reader) want(what string) error {
	if r.at >= len(r.in) {
		return r.Errorf("the input ends where %s belongs", what)
	}
	return r.Errorf("%s where %s belongs", r.describe(), what)
}

func (r *Reader) describe() string {
	if k := r.Peek(); k != Invalid {
		return k.String()
	}
	return fmt.Sprintf("the character %q", rune(r.in[r.at]))
}

func (r *Reader) space() {
	for r.at < len(r.in) {
		switch r.in[r.at] {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}

// End returns an error unless only white space is left.
func (r *Reader) End() error {
	r.space()
	if r.at < len(r.in) {
		return r.Errorf("data after the end of the document")
	}
	return nil
}

// ReadNull reads null.
func (r *Reader) ReadNull() error { return r.literal("null", "null") }

// ReadBool reads true or false.
func (r *Reader) ReadBool() (bool, error) {
	r.space()
	if r.at < len(r.in) && r.in[r.at] == 't' {
		return true, r.literal("true", "a boolean")
	}
	return false, r.literal("false", "a boolean")
}

func (r *Reader) literal(word, what string) error {
	r.space()
	if len(r.in)-r.at < len(word) || string(r.in[r.at:r.at+len(word)]) != word {
		return r.want(what)
	}
	r.at += len(word)
	return nil
}

// ReadNumber reads a number and returns it as it is written.
func (r *Reader) ReadNumber() ([]byte, error) {
	r.space()
	start := r.at
	if r.peekByte() == '-' {
		r.at++
	}
	whole := r.digits()
	if whole == 0 {
		r.at = start
		return nil, r.want("a number")
	}
	first := start
	if r.in[first] == '-' {
		first++
	}
	if whole > 1 && r.in[first] == '0' {
		return nil, r.Errorf("a number begins with 0")
	}
	fraction := 0
	if r.peekByte() == '.' {
		r.at++
		if fraction = r.digits(); fraction == 0 {
			return nil, r.Errorf("a number ends in a dot")
		}
	}
	if whole+fraction > MaxDigits {
		return nil, r.Errorf("a number of %d digits: at most %d", whole+fraction, MaxDigits)
	}
	if err := r.exponent(); err != nil {
		return nil, err
	}
	return r.in[start:r.at], nil
}

func (r *Reader) exponent() error {
	if c := r.peekByte(); c != 'e' && c != 'E' {
		return nil
	}
	r.at++
	if c := r.peekByte(); c == '+' || c == '-' {
		r.at++
	}
	start := r.at
	if r.digits() == 0 {
		return r.Errorf("an exponent without digits")
	}
	n := 0
	for _, c := range r.in[start:r.at] {
		if n = n*10 + int(c-'0'); n > MaxExponent {
			return r.Errorf("an exponent beyond %d", MaxExponent)
		}
	}
	return nil
}

func (r *Reader) peekByte() byte {
	if r.at < len(r.in) {
		return r.in[r.at]
	}
	return 0
}

func (r *Reader) digits() int {
	start := r.at
	for r.at < len(r.in) && r.in[r.at] >= '0' && r.in[r.at] <= '9' {
		r.at++
	}
	return r.at - start
}

// ReadString reads a string. The result aliases the input, or memory of the
// reader that is valid until the next string is read.
func (r *Reader) ReadString() ([]byte, error) {
	r.space()
	if r.peekByte() != '"' {
		return nil, r.want("a string")
	}
	r.at++
	start := r.at
	ascii := true
	for ; r.at < len(r.in); r.at++ {
		switch c := r.in[r.at]; {
		case c == '"':
			s := r.in[start:r.at]
			if !ascii && !utf8.Valid(s) {
				return nil, r.Errorf("a string that is not valid UTF-8")
			}
			r.at++
			return s, nil
		case c == '\\':
			return r.escaped(start)
		case c < 0x20:
			return nil, r.Errorf("a control character in a string")
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, r.Errorf("the input ends inside a string")
}

// escaped reads a string that has escapes, from its first one on.
func (r *Reader) escaped(start int) ([]byte, error) {
	out := append(r.scratch[:0], r.in[start:r.at]...)
	for r.at < len(r.in) {
		c := r.in[r.at]
		switch {
		case c == '"':
			r.at++
			r.scratch = out
			if !utf8.Valid(out) {
				return nil, r.Errorf("a string that is not valid UTF-8")
			}
			return out, nil
		case c < 0x20:
			return nil, r.Errorf("a control character in a string")
		case c != '\\':
			out = append(out, c)
			r.at++
		default:
			var err error
			if out, err = r.escape(out); err != nil {
				return nil, err
			}
		}
	}
	return nil, r.Errorf("the input ends inside a string")
}

var escapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (r *Reader) escape(out []byte) ([]byte, error) {
	r.at++
	c := r.peekByte()
	if plain := escapes[c]; plain != 0 {
		r.at++
		return append(out, plain), nil
	}
	if c != 'u' {
		return nil, r.Errorf("an unknown escape in a string")
	}
	first, err := r.hex4()
	if err != nil {
		return nil, err
	}
	if first == 0 {
		return nil, r.Errorf("NUL in a string")
	}
	if !utf16.IsSurrogate(first) {
		return utf8.AppendRune(out, first), nil
	}
	if r.peekByte() != '\\' || r.at+1 >= len(r.in) || r.in[r.at+1] != 'u' {
		return nil, r.Errorf("a lone surrogate in a string")
	}
	r.at++
	second, err := r.hex4()
	if err != nil {
		return nil, err
	}
	both := utf16.DecodeRune(first, second)
	if both == utf8.RuneError {
		return nil, r.Errorf("a lone surrogate in a string")
	}
	return utf8.AppendRune(out, both), nil
}

// hex4 reads uXXXX.
func (r *Reader) hex4() (rune, error) {
	r.at++
	if len(r.in)-r.at < 4 {
		return 0, r.Errorf("the input ends inside an escape")
	}
	v, err := strconv.ParseUint(string(r.in[r.at:r.at+4]), 16, 32)
	if err != nil {
		return 0, r.Errorf("an escape of four hex digits has others")
	}
	r.at += 4
	return rune(v), nil
}

// ReadArray reads an array, calling element for each of its elements, which
// must read exactly that one.
func (r *Reader) ReadArray(element func(i int) error) error {
	if r.Peek() != Array {
		return r.want("an array")
	}
	if err := r.enter(step{}); err != nil {
		return err
	}
	r.space()
	if r.peekByte() == ']' {
		return r.leave()
	}
	for i := 0; ; i++ {
		r.path[len(r.path)-1].index = i
		if err := element(i); err != nil {
			return err
		}
		r.space()
		switch r.peekByte() {
		case ',':
			r.at++
		case ']':
			return r.leave()
		default:
			return r.want("a comma or the end of the array")
		}
	}
}

func (r *Reader) enter(s step) error {
	if len(r.path) >= MaxDepth {
		return r.Errorf("nesting over %d levels", MaxDepth)
	}
	r.at++
	r.path = append(r.path, s)
	return nil
}

func (r *Reader) leave() error {
	r.at++
	r.path = r.path[:len(r.path)-1]
	return nil
}

// ReadObject reads an object, calling member for each of its members, which
// must read exactly the member's value. The key is valid during the call.
func (r *Reader) ReadObject(member func(key []byte) error) error {
	if r.Peek() != Object {
		return r.want("an object")
	}
	if err := r.enter(step{index: -1}); err != nil {
		return err
	}
	first := len(r.keys)
	defer r.forget(first)
	r.space()
	if r.peekByte() == '}' {
		return r.leave()
	}
	for {
		key, err := r.key(first)
		if err != nil {
			return err
		}
		if err := member(key); err != nil {
			return err
		}
		r.space()
		switch r.peekByte() {
		case ',':
			r.at++
		case '}':
			return r.leave()
		default:
			return r.want("a comma or the end of the object")
		}
	}
}

// key reads a key and its colon and refuses one that the object has already.
func (r *Reader) key(first int) ([]byte, error) {
	r.space()
	start := r.at
	r.path[len(r.path)-1].key = nil
	key, err := r.ReadString()
	if err != nil {
		return nil, err
	}
	if r.at-start != len(key)+2 { // it had escapes: the reader's memory is not ours to keep
		key = append([]byte(nil), key...)
	}
	r.path[len(r.path)-1].key = key
	if r.repeated(key, first) {
		return nil, r.Errorf("the key %q twice in one object", key)
	}
	r.keys = append(r.keys, key)
	r.space()
	if r.peekByte() != ':' {
		return nil, r.want("a colon")
	}
	r.at++
	return key, nil
}

// manyKeys is from where on comparing with each key before costs more than a
// map: an object of a megabyte of keys must not take quadratic time.
const manyKeys = 64

func (r *Reader) repeated(key []byte, first int) bool {
	keys := r.keys[first:]
	if len(keys) >= manyKeys {
		return r.repeatedAmongMany(key, first)
	}
	for _, k := range keys {
		if string(k) == string(key) {
			return true
		}
	}
	return false
}

func (r *Reader) repeatedAmongMany(key []byte, first int) bool {
	set := r.large[first]
	if set == nil {
		set = make(keySet, 2*manyKeys)
		for _, k := range r.keys[first:] {
			set[string(k)] = struct{}{}
		}
		if r.large == nil {
			r.large = make(map[int]keySet)
		}
		r.large[first] = set
	}
	if _, there := set[string(key)]; there {
		return true
	}
	set[string(key)] = struct{}{}
	return false
}

// forget drops the keys of an object that has ended.
func (r *Reader) forget(first int) {
	r.keys = r.keys[:first]
	delete(r.large, first)
}

// Skip reads and checks one value of any kind.
func (r *Reader) Skip() error {
	switch r.Peek() {
	case Null:
		return r.ReadNull()
	case Bool:
		_, err := r.ReadBool()
		return err
	case Number:
		_, err := r.ReadNumber()
		return err
	case String:
		_, err := r.ReadString()
		return err
	case Array:
		return r.ReadArray(func(int) error { return r.Skip() })
	case Object:
		return r.ReadObject(func([]byte) error { return r.Skip() })
	default:
		return r.want("a value")
	}
}

// Raw reads and checks one value of any kind and returns it as it is written.
func (r *Reader) Raw() ([]byte, error) {
	r.space()
	start := r.at
	if err := r.Skip(); err != nil {
		return nil, err
	}
	return r.in[start:r.at], nil
}
