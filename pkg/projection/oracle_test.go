package projection_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/refoldhq/refold/pkg/strictjson"
)

// The second implementation of the fold: slow, obvious, and without a line of the
// first. It reads the definition's text by itself and folds values of
// encoding/json, of one stream after the other, or of all in the order of their
// stamps for shared rows.

// fact is an event as the oracle sees it.
type fact struct {
	category, typ, stream, id, actor string
	version, seq                     int64
	slot                             int
	time                             int64          // microseconds
	data                             map[string]any // nil, bool, json.Number, string, []any, map[string]any
}

// world is what the oracle knows of a schema: the type of each field by path.
type world struct {
	types map[string]string // long, double, decimal, string, timestamp, date, list, document, ...
	// events has the fields of each event type.
	events map[string]map[string]bool
	// expressions are what the definitions may compute, by their text.
	expressions map[string]func(*fact, string) any
}

// oracle folds facts by a definition.
type oracle struct {
	world  *world
	doc    map[string]any
	shared bool
	rows   map[string]map[string]any
	// sets and maps by row and field are plain maps; these are hidden from rows.
	distinct map[string]map[string]bool
	parked   map[string]bool
}

// poisoned says that an event parks its stream.
type poisoned struct{ why string }

func (w *world) fold(definition string, facts []*fact) map[string]string {
	o := &oracle{world: w, doc: map[string]any{}, rows: map[string]map[string]any{}, distinct: map[string]map[string]bool{}, parked: map[string]bool{}}
	if err := yaml.Unmarshal([]byte(definition), &o.doc); err != nil {
		panic(err)
	}
	_, keyed := o.doc["key"]
	o.shared = keyed && o.doc["key"] != "$stream"
	ordered := slices.Clone(facts)
	slices.SortStableFunc(ordered, func(a, b *fact) int { return cmp.Compare(a.seq, b.seq) })
	if o.shared { // what is poison is so whoever folds it; the rest goes by stamps
		ordered = slices.DeleteFunc(ordered, func(f *fact) bool {
			if !o.parked[f.stream] {
				o.try(f, func() { o.keys(f) })
			}
			return o.parked[f.stream]
		})
		clear(o.parked) // what is left can be applied
		slices.SortStableFunc(ordered, func(a, b *fact) int {
			return cmp.Or(cmp.Compare(a.time, b.time), cmp.Compare(a.category, b.category), cmp.Compare(a.slot, b.slot), cmp.Compare(a.seq, b.seq))
		})
	}
	for _, f := range ordered {
		if o.parked[f.stream] {
			continue
		}
		before := clone(o.rows).(map[string]map[string]any)
		hidden := map[string]map[string]bool{}
		for k, set := range o.distinct {
			hidden[k] = map[string]bool{}
			for item := range set {
				hidden[k][item] = true
			}
		}
		o.try(f, func() {
			for _, key := range o.keys(f) {
				o.apply(f, key)
			}
		})
		if o.parked[f.stream] {
			o.rows, o.distinct = before, hidden
		}
	}
	out := map[string]string{}
	for key, row := range o.rows {
		var c strictjson.JSONB
		text, err := c.Append(nil, []byte(o.show(key, row, o.doc["fields"].(map[string]any), "")))
		if err != nil {
			panic(err)
		}
		out[key] = string(text)
	}
	return out
}

func (o *oracle) try(f *fact, do func()) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case poisoned:
			o.parked[f.stream] = true
		default:
			panic(p)
		}
	}()
	do()
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]map[string]any:
		out := map[string]map[string]any{}
		for k, x := range v {
			out[k] = clone(x).(map[string]any)
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			out[k] = clone(x)
		}
		return out
	default:
		return v
	}
}

// list is a YAML value as a list.
func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	default:
		return []any{v}
	}
}

// reference is Event.path or the long form.
type reference struct {
	event, path, value, when, key string
	transforms                    []string
}

func refOf(v any) (r reference) {
	text := func(m map[string]any, k string) string {
		if m[k] == nil {
			return ""
		}
		return fmt.Sprint(m[k])
	}
	if m, long := v.(map[string]any); long {
		r.value, r.when, r.key = text(m, "value"), text(m, "when"), text(m, "key")
		for _, t := range list(m["transform"]) {
			r.transforms = append(r.transforms, fmt.Sprint(t))
		}
		v = m["event"]
	}
	r.event, r.path, _ = strings.Cut(fmt.Sprint(v), ".")
	return r
}

func (o *oracle) names(f *fact, r reference) bool {
	if r.event == "*" && r.path != "" && !strings.HasPrefix(r.path, "$") {
		return o.world.events[f.typ][r.path]
	}
	return r.event == "*" || r.event == f.typ
}

// uses tells whether a field's definition, or anything in it, names the event.
func (o *oracle) uses(f *fact, v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for name, x := range v {
			switch name {
			case "set":
				if _, ok := x.(map[string]any)[f.typ]; ok {
					return true
				}
			case "initial", "key":
			default:
				if m, object := x.(map[string]any); object && m["event"] == nil {
					if o.uses(f, m) {
						return true
					}
					continue
				}
				for _, item := range list(x) {
					if o.names(f, refOf(item)) {
						return true
					}
				}
			}
		}
	}
	return false
}

func (o *oracle) used(f *fact) bool {
	for _, field := range o.doc["fields"].(map[string]any) {
		if o.uses(f, field) {
			return true
		}
	}
	for _, r := range list(o.doc["remove"]) {
		if o.names(f, refOf(r)) {
			return true
		}
	}
	return false
}

// value is what a path, a name with $, or an expression gives.
func (o *oracle) value(f *fact, path, key string) any {
	switch path {
	case "$time", "$recorded":
		return rfc3339(f.time)
	case "$id":
		return f.id
	case "$type":
		return f.typ
	case "$stream":
		return f.stream
	case "$version":
		return json.Number(strconv.FormatInt(f.version, 10))
	case "$actor":
		if f.actor == "" {
			return nil
		}
		return f.actor
	}
	if x := o.world.expressions[path]; x != nil {
		return x(f, key)
	}
	var v any = f.data
	for _, name := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

func rfc3339(us int64) string {
	return time.UnixMicro(us).UTC().Format("2006-01-02T15:04:05.999999Z07:00")
}

func (o *oracle) typeOf(path string) string {
	switch path {
	case "$time", "$recorded":
		return "timestamp"
	case "$version":
		return "long"
	case "$id", "$type", "$stream", "$actor":
		return "string"
	}
	return o.world.types[path]
}

func (o *oracle) resolve(f *fact, r reference, otherwise, key string) any {
	path := cmp.Or(r.value, r.path, otherwise)
	v := o.value(f, path, key)
	for _, t := range r.transforms {
		s, ok := v.(string)
		if !ok {
			return nil
		}
		switch t {
		case "lower":
			v = strings.ToLower(s)
		case "upper":
			v = strings.ToUpper(s)
		case "trim":
			v = strings.TrimSpace(s)
		case "day":
			v = s[:10]
		case "month":
			v = s[:7]
		case "year":
			v = s[:4]
		case "hour":
			v = s[:13] + ":00:00Z"
		}
	}
	return v
}

func (o *oracle) holds(f *fact, r reference, key string) bool {
	return r.when == "" || o.value(f, r.when, key) == true
}

func text(v any) string {
	if b, ok := v.(bool); ok {
		return strconv.FormatBool(b)
	}
	return fmt.Sprint(v)
}

func (o *oracle) keys(f *fact) (keys []string) {
	if !o.used(f) {
		return nil
	}
	defer func() {
		keys = slices.DeleteFunc(slices.Compact(dedupe(keys)), func(key string) bool { return !o.concerns(f, key) })
	}()
	switch k := o.doc["key"].(type) {
	case nil:
		return []string{f.stream}
	case map[string]any:
		switch {
		case k["constant"] != nil:
			return []string{fmt.Sprint(k["constant"])}
		case k["bucket"] != nil:
			return []string{o.resolve(f, reference{path: "$time", transforms: []string{fmt.Sprint(k["by"])}}, "", "").(string)}
		case k["each"] != nil:
			items, _ := o.value(f, fmt.Sprint(k["each"]), "").([]any)
			for _, item := range items {
				keys = append(keys, o.key(text(item)))
			}
			return keys
		}
		var refs []reference
		for _, r := range list(k["from"]) {
			if r := refOf(r); o.names(f, r) {
				refs = append(refs, r)
			}
		}
		for _, r := range refs {
			if v := o.resolve(f, r, "", ""); v != nil {
				keys = append(keys, o.key(text(v)))
			} else if len(refs) == 1 {
				panic(poisoned{"no key"})
			}
		}
		return keys
	default:
		var parts []string
		for _, part := range list(k) {
			v := o.value(f, fmt.Sprint(part), "")
			if v == nil {
				panic(poisoned{"no key"})
			}
			parts = append(parts, text(v))
		}
		if len(parts) > 1 {
			for i, p := range parts {
				parts[i] = escape(p)
			}
		}
		return []string{o.key(strings.Join(parts, ","))}
	}
}

func escape(s string) (out string) {
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			out += string(c)
		} else {
			out += fmt.Sprintf("%%%02X", c)
		}
	}
	return out
}

func (o *oracle) key(s string) string {
	if s == "" || len(s) > 2000 {
		panic(poisoned{"bad key"})
	}
	return s
}

func dedupe(keys []string) (out []string) {
	for _, k := range keys {
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// concerns tells whether anything of the definition holds for the event and key.
func (o *oracle) concerns(f *fact, key string) bool {
	if len(list(o.doc["remove"])) > 0 {
		for _, r := range list(o.doc["remove"]) {
			if r := refOf(r); o.names(f, r) && o.holds(f, r, key) {
				return true
			}
		}
	}
	for name, field := range o.doc["fields"].(map[string]any) {
		if o.concernsField(f, key, name, field.(map[string]any)) {
			return true
		}
	}
	return false
}

func (o *oracle) concernsField(f *fact, key, name string, field map[string]any) bool {
	for op, x := range field {
		switch op {
		case "set":
			if _, ok := x.(map[string]any)[f.typ]; ok {
				return true
			}
		case "fields":
			for inner, d := range x.(map[string]any) {
				if o.concernsField(f, key, inner, d.(map[string]any)) {
					return true
				}
			}
		case "children":
			if o.uses(f, x) {
				return true // children have no conditions that count for the row
			}
		case "initial", "key":
		default:
			for _, r := range list(x) {
				if r := refOf(r); o.names(f, r) && o.holds(f, r, key) {
					return true
				}
			}
		}
	}
	return false
}

func (o *oracle) apply(f *fact, key string) {
	for _, r := range list(o.doc["remove"]) {
		if r := refOf(r); o.names(f, r) && o.holds(f, r, key) {
			delete(o.rows, key)
			for k := range o.distinct {
				if strings.HasPrefix(k, key+"\x00") {
					delete(o.distinct, k)
				}
			}
			return
		}
	}
	fields := o.doc["fields"].(map[string]any)
	row := o.rows[key]
	if row == nil {
		row = map[string]any{}
		o.begin(row, fields)
		o.rows[key] = row
		for name, d := range fields {
			if d.(map[string]any)["key"] == true {
				row[name] = o.shown(f, key, name)
			}
		}
	}
	o.applyFields(f, key, "", row, fields)
}

// shown is the value of a field that shows the key.
func (o *oracle) shown(f *fact, key, name string) any {
	if parts := list(o.doc["key"]); len(parts) > 1 {
		return o.value(f, name, "")
	}
	if part, ok := o.doc["key"].(string); ok {
		return o.value(f, part, "")
	}
	if k, ok := o.doc["key"].(map[string]any); ok && k["each"] != nil && o.world.types[fmt.Sprint(k["each"])+"[]"] == "long" {
		return json.Number(key)
	}
	return key
}

func (o *oracle) begin(row, fields map[string]any) {
	for name, d := range fields {
		field := d.(map[string]any)
		has := func(ops ...string) bool {
			return slices.ContainsFunc(ops, func(op string) bool { return field[op] != nil })
		}
		switch {
		case has("fields"):
			inner := map[string]any{}
			o.begin(inner, field["fields"].(map[string]any))
			row[name] = inner
		case has("children", "include", "exclude", "put", "delete"):
			row[name] = map[string]any{}
		case has("initial"):
			row[name] = normal(field["initial"])
		case has("count", "increment", "decrement", "add", "subtract", "distinct"):
			row[name] = json.Number("0")
			if r := refOf(append(append(list(field["add"]), list(field["subtract"])...), "x.x")[0]); o.typeOf(cmp.Or(r.path, name)) == "decimal" {
				row[name] = "0.00"
			}
		default:
			row[name] = nil
		}
	}
}

func normal(v any) any {
	switch v := v.(type) {
	case uint64, int64, int:
		return json.Number(fmt.Sprint(v))
	default:
		return v
	}
}

// operators in an order that does not matter: a field's operators on one event
// are written in the definition's order, and generated definitions have one.
func (o *oracle) applyFields(f *fact, key, prefix string, row, fields map[string]any) {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		field := fields[name].(map[string]any)
		if field["fields"] != nil {
			o.applyFields(f, key, prefix+name+".", row[name].(map[string]any), field["fields"].(map[string]any))
			continue
		}
		if c, ok := field["children"].(map[string]any); ok {
			o.applyChildren(f, key, row[name].(map[string]any), c)
			continue
		}
		if set, ok := field["set"].(map[string]any); ok {
			if v, names := set[f.typ]; names {
				row[name] = normal(v)
			}
		}
		for _, op := range []string{"from", "last", "first", "clear", "count", "increment", "decrement", "add", "subtract", "min", "max", "distinct", "include", "exclude", "put", "delete"} {
			for _, x := range list(field[op]) {
				if r := refOf(x); o.names(f, r) && o.holds(f, r, key) {
					row[name] = o.operate(f, key, prefix+name, name, op, r, row[name])
					if op == "clear" && (field["include"] != nil || field["put"] != nil) {
						row[name] = map[string]any{}
					}
				}
			}
		}
	}
}

func (o *oracle) operate(f *fact, key, path, name, op string, r reference, now any) any {
	var v any
	if op != "clear" && op != "count" && op != "increment" && op != "decrement" && op != "put" && op != "delete" {
		v = o.resolve(f, r, name, key)
	}
	typ := o.typeOf(cmp.Or(r.path, r.value, name))
	switch op {
	case "from", "last":
		return v
	case "first":
		if now == nil {
			return v
		}
		return now
	case "clear":
		return nil // of a set or map: see applyFields
	case "count", "increment":
		return o.sum(now, json.Number("1"), 1, "long")
	case "decrement":
		return o.sum(now, json.Number("1"), -1, "long")
	case "add":
		return o.sum(now, v, 1, typ)
	case "subtract":
		return o.sum(now, v, -1, typ)
	case "min", "max":
		if v == nil {
			return now
		}
		if now == nil || compareValues(v, now, typ) < 0 == (op == "min") && compareValues(v, now, typ) != 0 {
			return v
		}
		return now
	case "distinct":
		hidden := key + "\x00" + path
		if o.distinct[hidden] == nil {
			o.distinct[hidden] = map[string]bool{}
		}
		for _, item := range scalars(v) {
			o.distinct[hidden][text(item)] = true
		}
		return json.Number(fmt.Sprint(len(o.distinct[hidden])))
	case "include":
		for _, item := range scalars(v) {
			now.(map[string]any)[text(item)] = item
		}
	case "exclude":
		for _, item := range scalars(v) {
			delete(now.(map[string]any), text(item))
		}
	case "put":
		if k := o.value(f, r.key, key); k != nil {
			now.(map[string]any)[text(k)] = entry{o.value(f, cmp.Or(r.value, r.path), key)}
		}
	case "delete":
		for _, k := range scalars(o.value(f, cmp.Or(r.key, r.path), key)) {
			delete(now.(map[string]any), text(k))
		}
	}
	return now
}

// entry is a map's value, apart from the items of sets.
type entry struct{ value any }

func scalars(v any) (out []any) {
	if v == nil {
		return nil
	}
	for _, x := range list(v) {
		if x != nil {
			out = append(out, x)
		}
	}
	return out
}

func (o *oracle) sum(now, v any, sign int64, typ string) any {
	if v == nil {
		return now
	}
	switch typ {
	case "double":
		a, _ := strconv.ParseFloat(fmt.Sprint(orZero(now)), 64)
		b, _ := strconv.ParseFloat(fmt.Sprint(v), 64)
		s := a + float64(sign)*b
		if math.IsInf(s, 0) {
			panic(poisoned{"infinite"})
		}
		return json.Number(strconv.FormatFloat(s, 'g', -1, 64))
	case "decimal":
		a, b := cents(orZero(now)), cents(v)
		s := new(big.Int).Add(a, b.Mul(b, big.NewInt(sign)))
		return dollars(s)
	default:
		a, _ := new(big.Int).SetString(fmt.Sprint(orZero(now)), 10)
		b, _ := new(big.Int).SetString(fmt.Sprint(v), 10)
		s := new(big.Int).Add(a, b.Mul(b, big.NewInt(sign)))
		if !o.shared && !s.IsInt64() {
			panic(poisoned{"beyond 64 bits"})
		}
		return json.Number(s.String())
	}
}

func orZero(v any) any {
	if v == nil {
		return "0"
	}
	return v
}

func cents(v any) *big.Int {
	r, _ := new(big.Rat).SetString(fmt.Sprint(v))
	r.Mul(r, big.NewRat(100, 1))
	return new(big.Int).Set(r.Num())
}

func dollars(c *big.Int) string { return new(big.Rat).SetFrac(c, big.NewInt(100)).FloatString(2) }

func compareValues(a, b any, typ string) int {
	switch typ {
	case "long", "double", "decimal":
		x, _ := new(big.Rat).SetString(fmt.Sprint(a))
		y, _ := new(big.Rat).SetString(fmt.Sprint(b))
		return x.Cmp(y)
	case "timestamp":
		x, _ := time.Parse(time.RFC3339Nano, a.(string))
		y, _ := time.Parse(time.RFC3339Nano, b.(string))
		return x.Compare(y)
	case "time":
		x, _ := time.Parse("15:04:05.999999", a.(string))
		y, _ := time.Parse("15:04:05.999999", b.(string))
		return x.Compare(y)
	default:
		return strings.Compare(a.(string), b.(string))
	}
}

func (o *oracle) applyChildren(f *fact, key string, children map[string]any, d map[string]any) {
	id := o.value(f, fmt.Sprint(d["key"]), key)
	if id == nil {
		return
	}
	fields := d["fields"].(map[string]any)
	concerned := false
	for name, d := range fields {
		concerned = concerned || o.concernsField(f, key, name, d.(map[string]any))
	}
	if concerned {
		child, ok := children[text(id)].(map[string]any)
		if !ok {
			child = map[string]any{}
			o.begin(child, fields)
			child[fmt.Sprint(d["key"])] = id
			children[text(id)] = child
		}
		o.applyFields(f, key, "", child, fields)
	}
	for _, r := range list(d["remove"]) {
		if r := refOf(r); o.names(f, r) && o.holds(f, r, key) {
			delete(children, text(id))
		}
	}
}

// show writes a row as JSON.
func (o *oracle) show(key string, row, fields map[string]any, prefix string) string {
	var parts []string
	for name, d := range fields {
		field := d.(map[string]any)
		parts = append(parts, fmt.Sprintf("%q: %s", name, o.showField(key, row[name], name, field)))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func (o *oracle) showField(key string, v any, name string, field map[string]any) string {
	switch {
	case field["fields"] != nil:
		return o.show(key, v.(map[string]any), field["fields"].(map[string]any), name)
	case field["children"] != nil:
		d := field["children"].(map[string]any)
		keyName := fmt.Sprint(d["key"])
		fields := clone(d["fields"]).(map[string]any)
		fields[keyName] = map[string]any{"from": "x"}
		return "[" + strings.Join(sorted(v.(map[string]any), o.typeOf(keyName), func(x any) string { return o.show(key, x.(map[string]any), fields, "") }), ", ") + "]"
	case field["include"] != nil || field["exclude"] != nil:
		r := refOf(append(list(field["include"]), list(field["exclude"])...)[0])
		path := cmp.Or(r.path, name)
		return "[" + strings.Join(sorted(v.(map[string]any), cmp.Or(o.world.types[path+"[]"], o.typeOf(path)), toJSON), ", ") + "]"
	case field["put"] != nil:
		var parts []string
		for k, e := range v.(map[string]any) {
			parts = append(parts, toJSON(k)+": "+toJSON(e.(entry).value))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	default:
		return toJSON(v)
	}
}

func sorted(items map[string]any, typ string, show func(any) string) (out []string) {
	var keys []string
	for k := range items {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if typ == "long" {
			return compareValues(a, b, "long")
		}
		return strings.Compare(a, b)
	})
	for _, k := range keys {
		out = append(out, show(items[k]))
	}
	return out
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
