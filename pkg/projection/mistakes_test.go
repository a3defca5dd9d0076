package projection_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/projection"
)

var orders = fstest.MapFS{
	"events/Order/Placed.v1.avsc": {Data: []byte(`{"type": "record", "name": "Placed", "fields": [{"name": "customer", "type": "string"}, {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}},
		{"name": "lines", "type": "int"}, {"name": "weight", "type": "double"}, {"name": "tags", "type": {"type": "array", "items": "string"}}, {"name": "address", "type": {"type": "record", "name": "Address", "fields": [{"name": "city", "type": "string"}]}},
		{"name": "paid", "type": "boolean"}, {"name": "nothing", "type": "null"}]}`)},
	"events/Order/LineAdded.v1.avsc": {Data: []byte(`{"type": "record", "name": "LineAdded", "fields": [{"name": "line", "type": "int"}, {"name": "sku", "type": ["null", "string"]}, {"name": "customer", "type": "int"}]}`)},
	"events/Order/Closed.v1.avsc":    {Data: []byte(`{"type": "record", "name": "Closed", "fields": []}`)},
}

// Every refusal of the compiler and the reader, as its author sees it. A change of
// the golden file is a change of what users read: REFOLD_GOLDEN=write writes it.
func TestMistakesAreExplained(t *testing.T) {
	t.Parallel()
	contracts, err := avro.LoadContracts(orders)
	require.NoError(t, err)
	var out strings.Builder
	for _, c := range mistakes {
		text := c
		if !strings.HasPrefix(text, "projection:") {
			text = "projection: orders\ncategory: Order\n" + c
		}
		definitions, err := projection.ParseDefinitions("orders.yaml", []byte(text))
		if err == nil {
			_, err = projection.Compile(definitions[0], contracts)
		}
		require.Error(t, err, "%s", text)
		var at *projection.SourceError
		require.ErrorAs(t, err, &at, "%s", text)
		fmt.Fprintf(&out, "%v\n\n", err)
	}
	const golden = "testdata/mistakes.golden"
	if os.Getenv("REFOLD_GOLDEN") == "write" {
		require.NoError(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

var mistakes = []string{
	"fields: {n: {count: Placd}}", "fields: {n: {from: Placed.custmer}}", "fields: {n: {}}", "fields: {n: {cuont: Placed}}", "feilds: {}", "fields: {order: {count: Placed}}",
	"fields: {n: {count: Placed.lines}}", "fields: {n: {add: Placed.customer}}", "fields: {n: {max: Placed.tags}}", "fields: {n: {from: [Placed.customer, LineAdded.line]}}",
	"fields: {n: {from: Placed.nothing}}", "fields: {n: {from: Placed.$tme}}", "fields: {n: {clear: Placed}}", "fields: {n: {from: \"*.nowhere\"}}",
	"fields: {n: {count: Placed, set: {Closed: x}}}", "fields: {n: {include: Placed.weight}}", "fields: {n: {include: Placed.customer, initial: 1}}",
	"fields: {n: {put: Placed.customer}}", "fields: {n: {put: {event: Placed, key: customer}}}", "fields: {n: {put: {event: Placed, key: address, value: lines}}}", "fields: {n: {delete: {event: LineAdded, key: line}}}",
	"fields: {n: {count: {event: Placed, when: \"lines\"}}}", "fields: {n: {count: {event: Placed, when: \"lins > 3\"}}}", "fields: {n: {count: {event: Placed, when: \"amount > 3\"}}}", "fields: {n: {count: {event: Placed, when: \"lines > 'x'\"}}}",
	"fields: {n: {from: {event: Placed, value: \"tags\", transform: lower}}}", "fields: {n: {from: {event: Placed.customer, transform: [upper, day]}}}", "fields: {n: {from: {event: Placed.customer, transform: shout}}}",
	"fields: {n: {from: {event: Placed.customer, value: \"lines\"}}}", "fields: {n: {from: {event: Placed.customer, whne: \"true\"}}}", "fields: {n: {from: {event: Placed.customer, key: x}}}",
	"fields: {a: {fields: {}}}", "fields: {a: {fields: {b: {count: Placed}}, count: Placed}}", "fields: {a: {fields: {b: {key: true}}}}",
	"fields: {a: {children: {fields: {b: {from: LineAdded.sku}}}}}", "fields: {a: {children: {key: line, fields: {b: {count: [LineAdded, Closed]}}}}}", "fields: {a: {children: {key: line, fields: {line: {from: LineAdded}}}}}",
	"fields: {a: {children: {key: line, fields: {n: {distinct: LineAdded.line}}}}}", "key: customer\nfields: {n: {count: Placed}, a: {children: {key: customer, fields: {b: {count: Placed}}}}}",
	"key: customer\nfields: {n: {count: [Placed, LineAdded]}}", "key: customer\nfields: {n: {count: [Placed, Closed]}}", "key: address\nfields: {n: {count: Placed}}", "key: {each: customer}\nfields: {n: {count: Placed}}",
	"key: {bucket: $time, by: week}\nfields: {n: {count: Placed}}", "key: {constant: \"\"}\nfields: {n: {count: Placed}}", "key: {constant: a, by: day}\nfields: {n: {count: Placed}}", "key: {from: [Placed.customer]}\nfields: {n: {count: [Placed, Closed]}}",
	"key: [customer, lines]\nfields: {k: {key: true}, n: {count: Placed}}", "key: {constant: a}\nfields: {n: {add: Placed.weight}}", "key: {constant: a}\nfields: {n: {count: Placed, initial: 3}}",
	"key: {constant: a}\nfields: {n: {count: Placed, set: {Closed: 0}}}", "key: {constant: a}\nfields: {n: {count: Placed}}\nremove: Closed", "fields: {n: {count: Placed}}\nremove: Placed.customer",
	"fields: {n: {count: Placed}}\nindexes: {fields: m}", "fields: {t: {from: Placed.tags}}\nindexes: {fields: [t], unique: true}", "fields: {o: {fields: {n: {count: Placed}}}}\nindexes: {fields: o}",
	"fold: {revision: 0}\nfields: {n: {type: long}}", "fold: {revision: 1}\nfields: {n: {count: Placed}}", "fold: {revision: 1}\nfields: {n: {type: lnog}}", "fields: {n: {type: long}}",
	"projection: Orders\ncategory: Order\nfields: {n: {count: Placed}}", "projection: orders\ncategory: Ordr\nfields: {n: {count: Placed}}", "projection: orders\nfields: {n: {count: Placed}}", "projection: [",
}
