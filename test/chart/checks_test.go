package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every object of every combination goes through these. They are what kube-score
// looks for as far as it concerns a chart, and what the Pod Security Standard
// `restricted` demands.
func TestEveryObjectIsSound(t *testing.T) {
	for name, objects := range renderedMatrix(t) {
		seen := map[string]bool{}
		for _, o := range objects {
			where := fmt.Sprintf("%s: %v", name, o)
			id := o.kind + " " + o.name
			require.False(t, seen[id], "%s is there twice", where)
			seen[id] = true
			require.LessOrEqual(t, len(o.name), 63, where)
			if o.file == "extra.yaml" {
				continue
			}
			require.NotEmpty(t, o.at("metadata", "namespace"), where)
			require.Equal(t, "refold", o.at("metadata", "labels", "app.kubernetes.io/instance"), where)
			if spec := o.podSpec(); spec != nil {
				checkPod(t, where, name, spec)
			}
		}
		checkSelectors(t, name, objects)
	}
}

func checkPod(t *testing.T, where, combination string, spec map[string]any) {
	require.Equal(t, false, spec["automountServiceAccountToken"], where)
	require.Equal(t, false, spec["enableServiceLinks"], where)
	for _, key := range []string{"hostNetwork", "hostPID", "hostIPC"} {
		require.Nil(t, spec[key], where)
	}
	pod := object{tree: spec}
	require.Equal(t, "RuntimeDefault", pod.at("securityContext", "seccompProfile", "type"), where)
	require.Equal(t, true, pod.at("securityContext", "runAsNonRoot"), where)
	for i, entry := range spec["containers"].([]any) {
		c := object{tree: entry.(map[string]any)}
		if c.at("name") == "proxy" {
			continue // the user's own
		}
		require.Equal(t, false, c.at("securityContext", "allowPrivilegeEscalation"), where)
		require.Equal(t, true, c.at("securityContext", "readOnlyRootFilesystem"), where)
		require.Equal(t, []any{"ALL"}, c.at("securityContext", "capabilities", "drop"), where)
		require.NotNil(t, c.at("resources", "requests", "cpu"), where)
		require.NotNil(t, c.at("resources", "requests", "memory"), where)
		require.NotNil(t, c.at("resources", "limits", "memory"), where)
		require.Nil(t, c.at("resources", "limits", "cpu"), "%s: a limit on CPU only makes pods slower", where)
		image := c.at("image").(string)
		require.True(t, strings.Contains(image, ":") && !strings.HasSuffix(image, ":latest"), "%s: %s", where, image)
		checkEnvironment(t, where, combination, c)
		checkMounts(t, where, spec, c)
		if i == 0 && spec["restartPolicy"] == nil {
			for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
				require.Equal(t, "admin", c.at(probe, "httpGet", "port"), "%s: %s", where, probe)
			}
			require.NotEqual(t, c.at("livenessProbe", "httpGet", "path"), c.at("readinessProbe", "httpGet", "path"), where)
		}
	}
}

// Helm applies server-side, where a list of variables is a map by name. Secrets
// come by reference only.
func checkEnvironment(t *testing.T, where, combination string, c object) {
	names := map[any]bool{}
	list, _ := c.at("env").([]any)
	for _, entry := range list {
		e := entry.(map[string]any)
		require.False(t, names[e["name"]], "%s: %v is there twice", where, e["name"])
		names[e["name"]] = true
		for _, secret := range []string{"DATABASE_URL", "PASSWORD", "KAFKA_SASL_PASSWORD"} {
			if e["name"] == secret {
				require.NotNil(t, object{tree: e}.at("valueFrom", "secretKeyRef"), "%s: %s", where, secret)
			}
		}
		if value, ok := e["value"]; ok {
			require.IsType(t, "", value, "%s: %v", where, e["name"])
		}
	}
	if combination == "environment" && c.at("name") == "writer" {
		env := object{tree: map[string]any{"spec": map[string]any{"containers": []any{c.tree}}}}.env()
		require.Equal(t, "1000000", env["REFOLD_CACHE_SIZE"])
		require.Equal(t, "off", env["REFOLD_RELAY"], "what the user gives wins")
	}
}

// What is mounted is there, what is there is mounted, and each file that a
// variable names lies in a mount.
func checkMounts(t *testing.T, where string, spec map[string]any, c object) {
	var volumes, mounts, paths []string
	list, _ := spec["volumes"].([]any)
	for _, v := range list {
		volumes = append(volumes, v.(map[string]any)["name"].(string))
		require.LessOrEqual(t, len(volumes[len(volumes)-1]), 63, where)
	}
	list, _ = c.at("volumeMounts").([]any)
	for _, m := range list {
		mounts = append(mounts, m.(map[string]any)["name"].(string))
		paths = append(paths, m.(map[string]any)["mountPath"].(string))
	}
	slices.Sort(volumes)
	slices.Sort(mounts)
	require.Equal(t, volumes, mounts, where)
	require.Len(t, slices.Compact(slices.Clone(volumes)), len(volumes), where)
	list, _ = c.at("env").([]any)
	for _, entry := range list {
		value, _ := entry.(map[string]any)["value"].(string)
		if !strings.HasPrefix(value, "/etc/refold/") {
			continue
		}
		require.True(t, slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(value, p) || strings.HasPrefix(p, value) }), "%s: nothing is mounted at %s", where, value)
	}
}

// Services, budgets and autoscalers must find what they are for, and selectors of
// two Deployments must not find the same pods.
func checkSelectors(t *testing.T, name string, objects []object) {
	templates := map[string]map[string]any{}
	for _, o := range objects {
		if strings.HasSuffix(o.kind, "/Deployment") {
			templates[o.name] = o.at("spec", "template", "metadata", "labels").(map[string]any)
			require.Equal(t, []string{o.name}, matched(templates, o.at("spec", "selector", "matchLabels")), "%s: %v", name, o)
		}
	}
	for _, o := range objects {
		switch {
		case o.file == "extra.yaml":
		case strings.HasSuffix(o.kind, "/Service"):
			require.Len(t, matched(templates, o.at("spec", "selector")), 1, "%s: %v", name, o)
		case strings.HasSuffix(o.kind, "/PodDisruptionBudget"):
			require.Len(t, matched(templates, o.at("spec", "selector", "matchLabels")), 1, "%s: %v", name, o)
		case strings.HasSuffix(o.kind, "/HorizontalPodAutoscaler"), strings.HasSuffix(o.kind, "/ScaledObject"):
			require.Contains(t, templates, o.at("spec", "scaleTargetRef", "name"), "%s: %v", name, o)
		case strings.HasSuffix(o.kind, "/NetworkPolicy"):
			require.Len(t, matched(templates, o.at("spec", "podSelector", "matchLabels")), len(templates), "%s: all pods are behind the policy", name)
		}
	}
}

// matched names the Deployments whose pods a selector finds.
func matched(templates map[string]map[string]any, selector any) (names []string) {
	for name, labels := range templates {
		all := true
		for key, value := range selector.(map[string]any) {
			all = all && labels[key] == value
		}
		if all {
			names = append(names, name)
		}
	}
	return names
}
