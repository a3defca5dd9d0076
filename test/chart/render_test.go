package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

// object is one rendered object.
type object struct {
	file string // template
	text string // YAML
	kind string // apiVersion/Kind
	name string
	tree map[string]any
}

func (o object) String() string { return fmt.Sprintf("%s %s of %s", o.kind, o.name, o.file) }

// least are the values without which nothing is rendered.
const least = `
database: {existingSecret: refold-db}
kafka: {bootstrapServers: "kafka:9092"}
auth: {mode: none}
`

func loadChart(t testing.TB) *chart.Chart {
	c, err := loader.Load(chartDir)
	require.NoError(t, err)
	return c
}

// tryRender renders the chart with the least values and those of more, which are
// YAML and win, on a cluster that serves some more APIs.
func tryRender(t testing.TB, more string, apis ...string) ([]object, error) {
	values := map[string]any{}
	for _, text := range []string{least, more} {
		var some map[string]any
		require.NoError(t, yaml.UnmarshalStrict([]byte(text), &some), "%s", text)
		values = loader.MergeMaps(values, some)
	}
	c := loadChart(t)
	capabilities := *common.DefaultCapabilities
	capabilities.APIVersions = append(slices.Clone(capabilities.APIVersions), apis...)
	all, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: "refold", Namespace: "shop", Revision: 3, IsUpgrade: true}, &capabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	var objects []object
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		for _, text := range strings.Split("\n"+files[name], "\n---") {
			o := object{file: filepath.Base(name), text: text}
			require.NoError(t, yaml.UnmarshalStrict([]byte(text), &o.tree), "%s:\n%s", name, text)
			if len(o.tree) == 0 {
				continue
			}
			o.kind, o.name = fmt.Sprintf("%v/%v", o.tree["apiVersion"], o.tree["kind"]), fmt.Sprint(o.at("metadata", "name"))
			objects = append(objects, o)
		}
	}
	return objects, nil
}

func render(t testing.TB, more string) []object {
	t.Helper()
	objects, err := tryRender(t, more)
	require.NoError(t, err, "%s", more)
	return objects
}

var matrixObjects = map[string][]object{}

// renderedMatrix renders every combination, once for all tests.
func renderedMatrix(t testing.TB) map[string][]object {
	all := matrixObjects
	for name, more := range matrix {
		if all[name] == nil {
			all[name] = render(t, more)
		}
	}
	return all
}

// notes renders NOTES.txt.
func notes(t testing.TB, more string) string {
	var values map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(least+more), &values))
	c := loadChart(t)
	all, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: "refold", Namespace: "shop", IsInstall: true}, common.DefaultCapabilities)
	require.NoError(t, err)
	files, err := engine.Render(c, all)
	require.NoError(t, err)
	return files["refold/templates/NOTES.txt"]
}

// at walks down the tree of an object; nil where there is nothing.
func (o object) at(path ...any) any {
	var here any = o.tree
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := here.(map[string]any)
			here = m[step]
		case int:
			l, _ := here.([]any)
			if step >= len(l) {
				return nil
			}
			here = l[step]
		}
	}
	return here
}

// podSpec is the spec of the pods of an object, nil where it has none.
func (o object) podSpec() map[string]any {
	for _, path := range [][]any{{"spec", "template", "spec"}, {"spec", "jobTemplate", "spec", "template", "spec"}, {"spec"}} {
		if spec, ok := o.at(path...).(map[string]any); ok && spec["containers"] != nil {
			return spec
		}
	}
	return nil
}

// env is the environment of the first container.
func (o object) env() map[string]any {
	env := map[string]any{}
	list, _ := object{tree: o.podSpec()}.at("containers", 0, "env").([]any)
	for _, entry := range list {
		e := entry.(map[string]any)
		env[e["name"].(string)] = e["value"]
		if e["valueFrom"] != nil {
			env[e["name"].(string)] = e["valueFrom"]
		}
	}
	return env
}

// one returns the only object of a kind and name.
func one(t testing.TB, objects []object, kind, name string) object {
	t.Helper()
	var found []object
	for _, o := range objects {
		if strings.HasSuffix(o.kind, "/"+kind) && o.name == name {
			found = append(found, o)
		}
	}
	require.Len(t, found, 1, "%s %s among %v", kind, name, objects)
	return found[0]
}

func has(objects []object, kind, name string) bool {
	return slices.ContainsFunc(objects, func(o object) bool { return strings.HasSuffix(o.kind, "/"+kind) && o.name == name })
}
