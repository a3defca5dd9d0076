package projection

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	celref "cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
)

// maxCost bounds what an expression may take, in CEL's units of work.
const maxCost = 10_000

// expression is a CEL expression over one event type: a condition or a value.
type expression struct {
	text    string
	program cel.Program
	typ     valueType
	names   map[string]variable
	// guard is the condition without which a value is not computed, or none.
	guard int
	key   bool // it looks at the row's key
}

type variable struct {
	source source
	typ    avro.Type
}

// celType returns how values of a type are seen by expressions; nil for not at
// all.
func celType(t avro.Type) *cel.Type {
	var out *cel.Type
	switch t.Kind {
	case avro.Bool:
		out = cel.BoolType
	case avro.Int, avro.Long:
		out = cel.IntType
	case avro.Float, avro.Double:
		out = cel.DoubleType
	case avro.String, avro.Enum, avro.UUID, avro.Date, avro.TimeOfDay:
		out = cel.StringType
	case avro.Timestamp:
		out = cel.TimestampType
	case avro.Bytes:
		out = cel.BytesType
	case avro.Array:
		return cel.ListType(cel.DynType)
	case avro.Map:
		return cel.MapType(cel.StringType, cel.DynType)
	case avro.JSON:
		return cel.DynType
	default:
		return nil // decimals are no floats, and CEL has no other
	}
	if t.Nullable {
		return cel.NullableType(out)
	}
	return out
}

// eventNames are what expressions call the event's own values.
var eventNames = map[string]string{"event.time": "$time", "event.recorded": "$recorded", "event.id": "$id", "event.type": "$type",
	"event.stream": "$stream", "event.version": "$version", "event.actor": "$actor"}

// environment declares all that expressions on an event type may name.
func environment(schema *avro.Schema) (*cel.Env, error) {
	options := []cel.EnvOption{ext.Strings(), ext.Math(), cel.Variable("key", cel.StringType)}
	for name, special := range eventNames {
		t := avro.Type{Kind: specials[special].typ, Nullable: special == "$actor"}
		options = append(options, cel.Variable(name, celType(t)))
	}
	declared := map[string]bool{"key": true}
	for name := range eventNames {
		declared[name] = true
	}
	var declare func(prefix string, fields []avro.Field)
	one := func(name string, t avro.Type) {
		if declared[name] {
			return
		}
		declared[name] = true
		if t.Kind == avro.Record {
			declare(name+".", t.Fields)
		} else if t := celType(t); t != nil {
			options = append(options, cel.Variable(name, t))
		}
	}
	declare = func(prefix string, fields []avro.Field) {
		for _, f := range fields {
			one(prefix+f.Name, f.Type)
		}
		for _, f := range fields { // expressions outlive new names, too
			for _, former := range f.Former() {
				one(prefix+former, f.Type)
			}
		}
	}
	declare("", schema.Fields())
	return cel.NewEnv(options...)
}

// compileExpression types an expression against an event type.
func (c *compiler) compileExpression(t *avro.EventType, x *exprDef, guard int) (int, valueType, error) {
	p := c.program(t)
	env := c.environments[t]
	if env == nil {
		var err error
		if env, err = environment(t.Newest()); err != nil {
			return none, valueType{}, c.d.errorf(x.at, "the event %s cannot be used in expressions: %v", t.Name, err)
		}
		c.environments[t] = env
	}
	ast, issues := env.Compile(x.text)
	if issues != nil && issues.Err() != nil {
		return none, valueType{}, c.d.errorf(x.at, "the expression %q does not fit the event %s: %s", x.text, t.Name, c.explainIssue(t, issues))
	}
	program, err := env.Program(ast, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return none, valueType{}, c.d.errorf(x.at, "the expression %q: %v", x.text, err)
	}
	out := &expression{text: x.text, program: program, guard: guard, names: make(map[string]variable)}
	for _, reference := range ast.NativeRep().ReferenceMap() {
		if reference.Name == "" || len(reference.OverloadIDs) > 0 {
			continue
		}
		if err := c.bind(t, out, reference.Name, x.at); err != nil {
			return none, valueType{}, err
		}
	}
	kinds := map[types.Kind]avro.Kind{types.BoolKind: avro.Bool, types.IntKind: avro.Long, types.DoubleKind: avro.Double, types.StringKind: avro.String, types.TimestampKind: avro.Timestamp}
	kind, ok := kinds[ast.OutputType().Kind()]
	if !ok {
		return none, valueType{}, c.d.errorf(x.at, "the expression %q makes %s: want a boolean, an int, a double, a string or a timestamp", x.text, ast.OutputType())
	}
	out.typ = valueType{kind: kind}
	p.exprs = append(p.exprs, out)
	p.needsKey = p.needsKey || out.key
	return len(p.exprs) - 1, out.typ, nil
}

// bind finds out where a name of an expression comes from.
func (c *compiler) bind(t *avro.EventType, x *expression, name string, at place) error {
	if name == "key" {
		x.key = true
		return nil
	}
	path := strings.Split(name, ".")
	if special, ok := eventNames[name]; ok {
		path = []string{special}
	} else if _, err := t.Newest().TypeOf(path...); err != nil {
		return nil //nolint:nilerr // a type or constant of the language
	}
	s, typ, err := c.value(t, path, at)
	x.names[name] = variable{s, typ}
	return err
}

// explainIssue is the first of what CEL finds, and what may be meant.
func (c *compiler) explainIssue(t *avro.EventType, issues *cel.Issues) string {
	text := issues.Errors()[0].Message
	const unknown = "undeclared reference to '"
	_, name, found := strings.Cut(text, unknown)
	if !found {
		return text
	}
	name, _, _ = strings.Cut(name, "'")
	if typ, err := t.Newest().TypeOf(name); err == nil && typ.Kind == avro.Decimal {
		return name + " is a decimal, which expressions cannot see: they have no exact fractions"
	}
	return "there is no " + name + suggest(name, fieldNames(t))
}

func fieldNames(t *avro.EventType) (names []string) {
	for _, f := range t.Newest().Fields() {
		names = append(names, f.Name)
	}
	return names
}

// activation gives an expression its variables.
type activation struct {
	folder *Folder
	names  map[string]variable
	null   bool // one of them was null
}

// ResolveName implements cel's Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	if name == "key" {
		return string(a.folder.keys.of(a.folder.keys.at)), true
	}
	v, ok := a.names[name]
	if !ok {
		return nil, false
	}
	value := a.folder.value(&v.source)
	a.null = a.null || value.Kind == avro.Null
	return native(value), true
}

// Parent implements cel's Activation.
func (a *activation) Parent() cel.Activation { return nil }

// native returns a value as CEL knows it.
func native(v avro.Value) any {
	switch v.Kind {
	case avro.Null:
		return types.NullValue
	case avro.Bool:
		return v.Int != 0
	case avro.Int, avro.Long:
		return v.Int
	case avro.Float, avro.Double:
		return v.Float
	case avro.Timestamp:
		return event.Time(v.Int).Std()
	case avro.Bytes:
		return v.Bytes
	case avro.JSON:
		return nativeJSON(v.Bytes)
	default:
		return string(v.AppendText(nil))
	}
}

func nativeJSON(text []byte) any {
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return types.NewErr("%v", err)
	}
	return exact(v)
}

// exact makes whole numbers of JSON ints, and others doubles.
func exact(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = exact(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = exact(v[k])
		}
	}
	return v
}

// evaluate computes the program's expressions for each of the event's keys, and
// leaves out the keys for whose rows no condition holds. All of them are computed
// before any row is touched, so that an event is applied to all or to none.
func (f *Folder) evaluate() (Outcome, error) {
	p := f.program
	if len(f.keys.list) == 0 {
		return Filtered, nil
	}
	if len(p.exprs) == 0 {
		return Applies, nil
	}
	n := len(p.exprs)
	f.all = f.all[:0]
	kept := 0
	for i := range f.keys.list {
		f.keys.at = i
		start := len(f.all)
		if i > 0 && !p.needsKey {
			f.all = append(f.all, f.all[:n]...)
		} else if err := f.evaluateKey(); err != nil {
			return Applies, err
		}
		f.results = f.all[start : start+n]
		if !f.concerned() {
			f.all = f.all[:start]
			continue
		}
		for _, t := range p.texts {
			if o := &p.ops[t]; o.source.kind == fromExpression && f.holds(o.when) {
				if err := f.checkText(o); err != nil {
					return Applies, err
				}
			}
		}
		f.keys.list[kept] = f.keys.list[i]
		kept++
	}
	if f.keys.list, f.keys.at = f.keys.list[:kept], 0; kept == 0 {
		return Filtered, nil
	}
	f.show()
	return Applies, nil
}

// show makes the results for the present key those that are seen.
func (f *Folder) show() {
	if n := len(f.program.exprs); n > 0 {
		f.results = f.all[f.keys.at*n : (f.keys.at+1)*n]
	}
}

// concerned tells whether anything is done to the row of the present key.
func (f *Folder) concerned() bool {
	p := f.program
	if p.always {
		return true
	}
	for _, when := range p.removes {
		if f.holds(when) {
			return true
		}
	}
	for i := range p.ops {
		if f.holds(p.ops[i].when) {
			return true
		}
	}
	return false
}

func (f *Folder) evaluateKey() error {
	start := len(f.all)
	for _, x := range f.program.exprs {
		v := avro.Value{}
		if x.guard == none || f.all[start+x.guard].Int != 0 {
			var err error
			if v, err = f.evaluateOne(x); err != nil {
				return err
			}
		}
		f.all = append(f.all, v)
	}
	return nil
}

// evaluateOne computes an expression. One that fails because a variable is null is
// null itself, which is not true either.
func (f *Folder) evaluateOne(x *expression) (avro.Value, error) {
	f.activation.names, f.activation.null = x.names, false
	out, _, err := x.program.Eval(&f.activation)
	if err != nil && f.activation.null {
		return avro.Value{}, nil
	}
	if err == nil {
		var v avro.Value
		if v, err = f.valueOf(out); err == nil {
			return v, nil
		}
	}
	return avro.Value{}, poison("the expression %q: %v", x.text, err)
}

var errBeyond = errors.New("its value is beyond what rows hold")

func (f *Folder) valueOf(out celref.Val) (avro.Value, error) {
	switch v := out.(type) {
	case types.Bool:
		if v {
			return avro.Value{Kind: avro.Bool, Int: 1}, nil
		}
		return avro.Value{Kind: avro.Bool}, nil
	case types.Int:
		return avro.Value{Kind: avro.Long, Int: int64(v)}, nil
	case types.Double:
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return avro.Value{}, errBeyond
		}
		return avro.Value{Kind: avro.Double, Float: float64(v)}, nil
	case types.String:
		if !utf8.ValidString(string(v)) || strings.IndexByte(string(v), 0) >= 0 {
			return avro.Value{}, errBeyond
		}
		return avro.Value{Kind: avro.String, Bytes: f.keep(func(b []byte) []byte { return append(b, v...) })}, nil
	case types.Timestamp:
		at := event.TimeOf(v.Time)
		if at < event.MinTime || at > event.MaxTime {
			return avro.Value{}, errBeyond
		}
		return avro.Value{Kind: avro.Timestamp, Int: int64(at)}, nil
	case types.Null:
		return avro.Value{}, nil
	default:
		return avro.Value{}, fmt.Errorf("its value is %s", out.Type().TypeName())
	}
}
