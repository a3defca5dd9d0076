package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	extensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"sigs.k8s.io/yaml"
)

// types are the Go types of what the chart makes.
var types = map[string]any{
	"v1/ConfigMap":                            core.ConfigMap{},
	"v1/Pod":                                  core.Pod{},
	"v1/Service":                              core.Service{},
	"v1/ServiceAccount":                       core.ServiceAccount{},
	"apps/v1/Deployment":                      apps.Deployment{},
	"batch/v1/Job":                            batch.Job{},
	"batch/v1/CronJob":                        batch.CronJob{},
	"autoscaling/v2/HorizontalPodAutoscaler":  autoscaling.HorizontalPodAutoscaler{},
	"policy/v1/PodDisruptionBudget":           policy.PodDisruptionBudget{},
	"networking.k8s.io/v1/NetworkPolicy":      networking.NetworkPolicy{},
	"networking.k8s.io/v1/Ingress":            networking.Ingress{},
	"monitoring.coreos.com/v1/PodMonitor":     monitoring.PodMonitor{},
	"monitoring.coreos.com/v1/PrometheusRule": monitoring.PrometheusRule{},
}

// definitions are the CRDs of the others, from the modules that bring them; the
// one of Strimzi, whose module cannot be had, is written down here.
var definitions = map[string]struct{ module, file string }{
	"keda.sh/v1alpha1/ScaledObject":          {"github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases/keda.sh_scaledobjects.yaml"},
	"keda.sh/v1alpha1/TriggerAuthentication": {"github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases/keda.sh_triggerauthentications.yaml"},
	"gateway.networking.k8s.io/v1/HTTPRoute": {"sigs.k8s.io/gateway-api@v1.3.0", "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"},
	"kafka.strimzi.io/v1/KafkaTopic":         {"", "testdata/kafkatopics.yaml"},
}

// Every object of every combination is what its kind takes: no field is misspelt
// or in the wrong place, and those by CRD are valid.
func TestEveryObjectIsOfItsType(t *testing.T) {
	kinds := map[string]bool{}
	for name, objects := range renderedMatrix(t) {
		for _, o := range objects {
			kinds[o.kind] = true
			if _, ok := definitions[o.kind]; ok {
				checkByDefinition(t, name, o)
				continue
			}
			typ, ok := types[o.kind]
			require.True(t, ok, "%s: no type is known of %v", name, o)
			into := reflect.New(reflect.TypeOf(typ)).Interface()
			require.NoError(t, yaml.UnmarshalStrict([]byte(o.text), into), "%s: %v", name, o)
		}
	}
	for kind := range types {
		require.True(t, kinds[kind], "no combination makes a %s", kind)
	}
	for kind := range definitions {
		require.True(t, kinds[kind], "no combination makes a %s", kind)
	}
}

// A field that is misspelt is found, so that the test above can fail.
func TestMisspeltFieldsAreFound(t *testing.T) {
	var d apps.Deployment
	require.ErrorContains(t, yaml.UnmarshalStrict([]byte("spec: {replica: 1}"), &d), "replica")
	unknown, problems := validate(t, "keda.sh/v1alpha1/ScaledObject", map[string]any{"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
		"spec": map[string]any{"scaleTargetRef": map[string]any{"name": "x"}, "triggers": []any{map[string]any{"type": 7, "metadata": map[string]any{}}}, "maxReplicas": 1}})
	require.Equal(t, []string{"spec.maxReplicas"}, unknown)
	require.NotEmpty(t, problems)
}

func checkByDefinition(t *testing.T, name string, o object) {
	unknown, problems := validate(t, o.kind, o.tree)
	require.Empty(t, unknown, "%s: %v has fields that its CRD does not know", name, o)
	require.Empty(t, problems, "%s: %v", name, o)
}

// validate does what the API server does with an object of a CRD. Numbers come
// through JSON, as they do there.
func validate(t *testing.T, kind string, tree map[string]any) (unknown, problems []string) {
	raw, err := json.Marshal(tree)
	require.NoError(t, err)
	var value map[string]any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	require.NoError(t, decoder.Decode(&value))
	props := schemaOf(t, kind)
	structural, err := schema.NewStructural(props)
	require.NoError(t, err)
	unknown = pruning.PruneWithOptions(value, structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	validator, _, err := validation.NewSchemaValidator(props)
	require.NoError(t, err)
	for _, problem := range validation.ValidateCustomResource(nil, value, validator) {
		problems = append(problems, problem.Error())
	}
	return unknown, problems
}

var schemas sync.Map

func schemaOf(t *testing.T, kind string) *apiextensions.JSONSchemaProps {
	if known, ok := schemas.Load(kind); ok {
		return known.(*apiextensions.JSONSchemaProps)
	}
	from := definitions[kind]
	text, err := os.ReadFile(filepath.Join(moduleDir(t, from.module), from.file))
	require.NoError(t, err)
	var crd extensions.CustomResourceDefinition
	require.NoError(t, yaml.Unmarshal(text, &crd))
	version := strings.Split(kind, "/")[1]
	for _, v := range crd.Spec.Versions {
		if v.Name == version {
			var internal apiextensions.JSONSchemaProps
			require.NoError(t, extensions.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, &internal, nil))
			schemas.Store(kind, &internal)
			return &internal
		}
	}
	require.Fail(t, "the CRD has no such version", "%s", kind)
	return nil
}

// moduleDir is where the module proxy's copy of a module lies; without a module
// this folder.
func moduleDir(t *testing.T, module string) string {
	if module == "" {
		return "."
	}
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	var answer struct{ Dir string }
	require.NoError(t, json.Unmarshal(out, &answer))
	return answer.Dir
}
