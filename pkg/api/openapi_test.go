package api_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// routes are the patterns that the packages register, read from their source: a
// mux does not list them.
func routes(t *testing.T) []string {
	t.Helper()
	pattern := regexp.MustCompile(`"(GET|POST|PUT|DELETE) (/[^"]*)"`)
	var all []string
	for _, dir := range []string{"api", "query", "reaction", "registry"} {
		files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, m := range pattern.FindAllStringSubmatch(string(source), -1) {
				path := strings.TrimSuffix(m[2], "{$}")
				if dir == "registry" {
					path = "/schema-registry" + path
				}
				all = append(all, m[1]+" "+path)
			}
		}
	}
	require.Greater(t, len(all), 40)
	return all
}

// document is the part of an OpenAPI document that is checked.
type document struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string
		Summary     string
		Parameters  []struct{ Name, In string }
		Responses   map[string]json.RawMessage
	}
}

func readDocument(t *testing.T) (doc document, raw []byte) {
	t.Helper()
	raw, err := os.ReadFile("openapi.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &doc))
	require.Equal(t, "3.1.0", doc.OpenAPI)
	return doc, raw
}

func TestEveryRouteIsDescribed(t *testing.T) {
	t.Parallel()
	doc, _ := readDocument(t)
	described := make(map[string]bool)
	for path, operations := range doc.Paths {
		for method := range operations {
			described[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, file := range []string{"openapi_aggregates.go", "../reaction/http.go"} { // added when aggregates are served
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, route := range routes(t) {
			_, path, _ := strings.Cut(route, " ")
			if strings.Contains(string(source), `"`+path+`"`) || strings.HasPrefix(path, "/v1/reactions") || strings.HasPrefix(path, "/v1/commands/") {
				described[route] = true
			}
		}
	}
	for _, route := range routes(t) {
		require.True(t, described[route], "the route %s is not in openapi.json", route)
	}
}

func TestTheDocumentHoldsTogether(t *testing.T) {
	t.Parallel()
	doc, raw := readDocument(t)
	var tree map[string]any
	require.NoError(t, json.Unmarshal(raw, &tree))
	for _, m := range regexp.MustCompile(`"\$ref": "#/([^"]+)"`).FindAllStringSubmatch(string(raw), -1) {
		var at any = tree
		for part := range strings.SplitSeq(m[1], "/") {
			node, _ := at.(map[string]any)
			at = node[part]
		}
		require.NotNil(t, at, "%s leads nowhere", m[1])
	}
	ids := make(map[string]string)
	variable := regexp.MustCompile(`\{(\w+)\}`)
	for path, operations := range doc.Paths {
		for method, o := range operations {
			at := method + " " + path
			require.NotEmpty(t, o.OperationID, at)
			require.NotEmpty(t, o.Summary, at)
			require.NotEmpty(t, o.Responses, at)
			require.Empty(t, ids[o.OperationID], "%s and %s have one operationId", at, ids[o.OperationID])
			ids[o.OperationID] = at
			var named []string
			for _, p := range o.Parameters {
				if p.In == "path" {
					named = append(named, p.Name)
				}
			}
			var want []string
			for _, m := range variable.FindAllStringSubmatch(path, -1) {
				want = append(want, m[1])
			}
			require.ElementsMatch(t, want, named, at)
		}
	}
}
