package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"sigs.k8s.io/yaml"
)

func TestREADMEAndSchemaAreThoseOfTheValues(t *testing.T) {
	made, err := generate(chartDir)
	require.NoError(t, err)
	for name, want := range made {
		have, err := os.ReadFile(filepath.Join(chartDir, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, have), "%s is not what values.yaml says: run `make chart`", name)
	}
}

func TestMatrixIsLargeEnough(t *testing.T) { require.GreaterOrEqual(t, len(matrix), 30) }

func TestLint(t *testing.T) {
	for name, more := range matrix {
		var values map[string]any
		require.NoError(t, yaml.Unmarshal([]byte(least), &values))
		var some map[string]any
		require.NoError(t, yaml.Unmarshal([]byte(more), &some))
		for key, value := range some {
			values[key] = value
		}
		if name == "service binding" || name == "sasl" || name == "client certificate" || name == "keda with sasl" {
			continue // they name a part of kafka, which stands in the least values too
		}
		for _, m := range lint.RunAll(chartDir, values, "shop").Messages {
			require.Less(t, m.Severity, support.WarningSev, "%s: %v", name, m)
		}
	}
}

func TestWhatCannotWorkIsRefusedAndNamed(t *testing.T) {
	for values, want := range refused {
		_, err := tryRender(t, values)
		require.ErrorContains(t, err, want, "%s", values)
	}
}

// The versions of chart, application and image are one: that of the newest
// release in the changelog, once there is one.
func TestVersionsAreConsistent(t *testing.T) {
	meta := loadChart(t).Metadata
	require.Regexp(t, `^\d+\.\d+\.\d+(-[a-z0-9.]+)?$`, meta.Version)
	require.Equal(t, meta.Version, meta.AppVersion, "one repository, one version")
	changelog, err := os.ReadFile("../../CHANGELOG.md")
	require.NoError(t, err)
	if released := regexp.MustCompile(`(?m)^## (\d\S*)`).FindSubmatch(changelog); released != nil {
		require.Equal(t, meta.Version, string(released[1]), "the newest release of CHANGELOG.md is another one")
	}
	dockerfile, err := os.ReadFile("../../Dockerfile")
	require.NoError(t, err)
	require.Contains(t, string(dockerfile), "refold/refold:"+meta.AppVersion, "the Dockerfile shows another version")
	upgrading, err := os.ReadFile(filepath.Join(chartDir, "UPGRADING.md"))
	require.NoError(t, err)
	require.Contains(t, string(upgrading), "## "+meta.Version, "UPGRADING.md has no section for the chart's version")
}

// The program's flags are what the chart sets: a variable that no program knows
// would have no effect.
func TestEveryVariableIsASettingOfAProgram(t *testing.T) {
	known := regexp.MustCompile(`^((REFOLD|KAFKA|SCHEMA_REGISTRY|SERVICE_BINDING|DATABASE|PG)[A-Z_]+|GOMEMLIMIT)$`)
	flags := sourceFlags(t)
	for name, objects := range renderedMatrix(t) {
		if name == "environment" {
			continue // it sets what it likes
		}
		for _, o := range objects {
			for variable := range o.env() {
				require.Regexp(t, known, variable)
				if flag, ok := strings.CutPrefix(variable, "REFOLD_"); ok {
					require.True(t, flags[strings.ToLower(strings.ReplaceAll(flag, "_", ""))], "%s of %v is no setting", variable, o)
				}
			}
		}
	}
}

// sourceFlags finds the fields of the programs' command lines: in lower case,
// without dashes.
func sourceFlags(t *testing.T) map[string]bool {
	flags := map[string]bool{}
	field := regexp.MustCompile(`^\s+(\w+)\s+[\w.\[\]*]+\s+` + "`" + `[^` + "`" + `]*help:"`)
	named := regexp.MustCompile(`name:"([a-z-]+)"`)
	for _, pattern := range []string{"../../pkg/service/*.go", "../../writer/*.go", "../../projector/*.go", "../../rebuild/*.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			for line := range strings.Lines(string(text)) {
				if m := field.FindStringSubmatch(line); m != nil {
					name := m[1]
					if n := named.FindStringSubmatch(line); n != nil {
						name = strings.ReplaceAll(n[1], "-", "")
					}
					flags[strings.ToLower(name)] = true
				}
			}
		}
	}
	require.Greater(t, len(flags), 20, "the flags of the programs are not where this test looks")
	return flags
}

// The grace period is longer than what a program takes at most: its drain delay
// and 10 s to stop.
func TestGraceIsLongerThanTheDrain(t *testing.T) {
	for name, objects := range renderedMatrix(t) {
		for _, o := range objects {
			delay, ok := o.env()["REFOLD_DRAIN_DELAY"].(string)
			if !ok {
				continue
			}
			drain, err := time.ParseDuration(delay)
			require.NoError(t, err)
			grace := time.Duration(object{tree: o.podSpec()}.at("terminationGracePeriodSeconds").(float64)) * time.Second
			require.Greater(t, grace, drain+10*time.Second, "%s: %v", name, o)
		}
	}
}

func TestScaledDeploymentsHaveNoNumberOfTheirOwn(t *testing.T) {
	scaled := render(t, `{writer: {autoscaling: {enabled: true}}, queries: {autoscaling: {enabled: true}}, projectors: {users: {autoscaling: {enabled: true}}, fixed: {replicas: 3}}}`)
	for _, name := range []string{"refold-writer", "refold-queries", "refold-projector-users"} {
		require.Nil(t, one(t, scaled, "Deployment", name).at("spec", "replicas"), name)
	}
	require.EqualValues(t, 3, one(t, scaled, "Deployment", "refold-projector-fixed").at("spec", "replicas"))
	require.Equal(t, "refold.users", one(t, scaled, "ScaledObject", "refold-projector-users").at("spec", "triggers", 0, "metadata", "consumerGroup"))
	require.False(t, has(scaled, "ScaledObject", "refold-projector-fixed"))
}

// The collector and rebuilds in the query service know what the container may take.
func TestMemoryFollowsTheLimits(t *testing.T) {
	objects := render(t, `{writer: {resources: {limits: {memory: 1Gi}}}, queries: {resources: {limits: {memory: 268435456}}}, rebuild: {auto: true}, projectors: {users: {resources: {limits: {memory: null}}}}}`)
	writer, queries := one(t, objects, "Deployment", "refold-writer").env(), one(t, objects, "Deployment", "refold-queries").env()
	require.Equal(t, "858993459", writer["GOMEMLIMIT"])
	require.Equal(t, "214748364", queries["GOMEMLIMIT"])
	require.Equal(t, "134217728", queries["REFOLD_REBUILD_MEMORY"])
	require.NotContains(t, one(t, objects, "Deployment", "refold-projector-users").env(), "GOMEMLIMIT")
	require.NotContains(t, one(t, objects, "CronJob", "refold-rebuild-users").env(), "GOMEMLIMIT")
}

// Ports that the values name anyway need not be named again for the NetworkPolicy.
func TestPolicyLetsOutToWhatTheValuesName(t *testing.T) {
	objects := render(t, `{kafka: {bootstrapServers: "a:29092, b:29093"}, auth: {mode: oidc, oidc: {issuer: "https://id.example:8443/realms/a", audience: refold}}}`)
	var ports []any
	for _, p := range one(t, objects, "NetworkPolicy", "refold").at("spec", "egress", 1, "ports").([]any) {
		ports = append(ports, p.(map[string]any)["port"])
	}
	require.Equal(t, []any{5432.0, 9092.0, 9093.0, 9094.0, 29092.0, 29093.0, 443.0, 8443.0}, ports)
}

// Strimzi 1.0 knows KafkaTopics of v1 only, older ones none; and a topic outlives
// its release.
func TestTopicsAreWhatTheirStrimziTakes(t *testing.T) {
	for serves, want := range map[string]string{"": "v1", "kafka.strimzi.io/v1beta2": "v1beta2", "kafka.strimzi.io/v1beta2 kafka.strimzi.io/v1": "v1"} {
		objects, err := tryRender(t, `topics: {mode: strimzi, strimziCluster: main, items: {refold.user: {}}}`, strings.Fields(serves)...)
		require.NoError(t, err)
		topic := one(t, objects, "KafkaTopic", "refold.user")
		require.Equal(t, "kafka.strimzi.io/"+want+"/KafkaTopic", topic.kind, serves)
		require.Equal(t, "keep", topic.at("metadata", "annotations", "helm.sh/resource-policy"))
	}
}

// The spec of a Job cannot be changed, so that another spec needs another name.
func TestAnotherJobHasAnotherName(t *testing.T) {
	names := map[string]bool{}
	for _, tag := range []string{"a", "b"} {
		for _, o := range render(t, `{migrations: {mode: job}, topics: {mode: job}, image: {tag: `+tag+`}}`) {
			if strings.HasSuffix(o.kind, "/Job") {
				names[o.name] = true
			}
		}
	}
	require.Len(t, names, 4)
}

// A changed definition rolls who reads it, and nobody else.
func TestChangedDefinitionRollsItsProjector(t *testing.T) {
	hashes := func(a, b string) map[string]any {
		found := map[string]any{}
		for _, o := range render(t, `{projectors: {a: {}, b: {}}, contracts: {events: {User: {A.v1.avsc: "{}"}}, projections: {both.yaml: "projection: a\nfields: `+a+`\n---\nprojection: b\nfields: `+b+`\n"}}}`) {
			if strings.HasSuffix(o.kind, "/Deployment") {
				found[o.name] = o.at("spec", "template", "metadata", "annotations", "refold.dev/contracts")
				require.NotEmpty(t, found[o.name])
			}
		}
		return found
	}
	before, after := hashes("1", "1"), hashes("2", "1")
	require.NotEqual(t, before["refold-projector-a"], after["refold-projector-a"])
	require.NotEqual(t, before["refold-queries"], after["refold-queries"])
	require.Equal(t, before["refold-projector-b"], after["refold-projector-b"])
	require.Equal(t, before["refold-writer"], after["refold-writer"])
}

func TestNotesPrintThreeCommandsThatFit(t *testing.T) {
	text := notes(t, `
projectors: {users: {projections: [rm_users]}}
tls: {existingSecret: cert}
`)
	for _, want := range []string{"helm test refold -n shop", "port-forward svc/refold-writer 8080:8080", "curl --resolve refold-queries.shop.svc:8081:127.0.0.1 --cacert <(kubectl -n shop get secret cert -o jsonpath='{.data.ca\\.crt}' | base64 -d) 'https://refold-queries.shop.svc:8081/v1/read-models/rm_users?limit=3'",
		"create job --from=cronjob/refold-rebuild-rm-users rm-users-1", "auth.mode is none"} {
		require.Contains(t, text, want)
	}
	require.Contains(t, notes(t, ``), "no projection is fed yet")
	require.NotContains(t, notes(t, ``), "NetworkPolicy")
	for _, open := range []string{`ingress: {enabled: true, host: a}`, `writer: {service: {type: LoadBalancer}}`} {
		require.Contains(t, notes(t, open), "networkPolicy.apiFrom", open)
		require.NotContains(t, notes(t, open+"\nnetworkPolicy: {apiFrom: [{podSelector: {}}]}"), "networkPolicy.apiFrom")
	}
	require.Contains(t, notes(t, `metrics: {podMonitor: {enabled: true}}`), "networkPolicy.adminFrom")
}
