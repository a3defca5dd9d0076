package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// rules of a release that feeds two projections.
func ruleGroup(t *testing.T, more string) []monitoring.Rule {
	o := one(t, render(t, `{metrics: {prometheusRule: {enabled: true`+more+`}}, projectors: {users: {projections: [rm_users]}, stats: {projections: [user_stats]}}}`), "PrometheusRule", "refold")
	var rule monitoring.PrometheusRule
	require.NoError(t, yaml.UnmarshalStrict([]byte(o.text), &rule))
	require.Len(t, rule.Spec.Groups, 1)
	return rule.Spec.Groups[0].Rules
}

// in are the labels that the PodMonitor gives; $L in a series stands for them.
const in = `namespace="shop",app_kubernetes_io_instance="refold"`

// healthy is what a healthy release shows over an hour: requests are answered and a
// few refused, the relay and a projection are behind for a moment, a rebuild goes on.
const healthy = `
	refold_build_info{program="writer",pod="w-0",$L} 1x60
	refold_build_info{program="writer",pod="w-1",$L} 1x20 stale 1x38
	refold_build_info{program="queries",pod="q-0",$L} 1x60
	refold_append_duration_seconds_count{outcome="ok",pod="w-0",$L} 0+6000x60
	refold_append_duration_seconds_count{outcome="conflict",pod="w-0",$L} 0+600x60
	refold_append_duration_seconds_count{outcome="unavailable",pod="w-0",$L} 0x30 5x30
	refold_append_duration_seconds_bucket{outcome="ok",le="0.016",pod="w-0",$L} 0+5990x60
	refold_append_duration_seconds_bucket{outcome="ok",le="1.024",pod="w-0",$L} 0+6000x60
	refold_append_duration_seconds_bucket{outcome="ok",le="+Inf",pod="w-0",$L} 0+6000x60
	refold_query_duration_seconds_count{operation="key",outcome="ok",pod="q-0",$L} 0+9000x60
	refold_query_duration_seconds_count{operation="key",outcome="refused",pod="q-0",$L} 0+900x60
	refold_query_duration_seconds_count{operation="key",outcome="stale",pod="q-0",$L} 0+900x60
	refold_query_duration_seconds_bucket{operation="key",outcome="ok",le="0.01",pod="q-0",$L} 0+9000x60
	refold_query_duration_seconds_bucket{operation="key",outcome="ok",le="+Inf",pod="q-0",$L} 0+9000x60
	refold_relay_backlog_seconds{topic="refold.user",pod="w-0",$L} 0x20 45x3 0x37
	refold_relay_stopped_slots{topic="refold.user",pod="w-0",$L} 0x60
	refold_projection_lag_seconds{projection="rm_users",version="1",category="User",partition="0",pod="p-0",$L} 0x10 100x3 0x47
	refold_projection_lag_seconds{projection="user_stats",version="1",category="User",partition="0",pod="p-1",$L} 0x60
	refold_projection_stopped_slots{projection="rm_users",version="1",pod="p-0",$L} 0x60
	refold_projection_stopped_partitions{projection="rm_users",version="1",pod="p-0",$L} 0x60
	refold_projection_parked_streams{projection="rm_users",version="1",pod="p-0",$L} 0x60
	refold_rebuild_progress_ratio{projection="rm_users",pod="r-0",$L} 0+0.02x50 1x10
	refold_rebuild_progress_ratio{projection="user_stats",pod="r-1",$L} 1x60
	refold_old_snapshot_seconds{pod="w-0",$L} 2x20 500x10 2x30`

// wrong says for each alert what makes it fire: series that take the place of the
// healthy ones of the same labels. What it must be about is in the second part.
var wrong = map[string]struct{ series, about string }{
	"RefoldWriterAbsent": {`refold_build_info{program="writer",pod="w-0",$L} 1x30 stale
		refold_build_info{program="writer",pod="w-1",$L} 1x30 stale`, ``},
	"RefoldQueriesAbsent": {`refold_build_info{program="queries",pod="q-0",$L} 1x30 stale`, ``},
	"RefoldAppendsFail":   {`refold_append_duration_seconds_count{outcome="unavailable",pod="w-0",$L} 0x30 0+100x30`, ``},
	"RefoldAppendsSlow": {`refold_append_duration_seconds_bucket{outcome="ok",le="0.016",pod="w-0",$L} 0+5000x60
		refold_append_duration_seconds_bucket{outcome="ok",le="1.024",pod="w-0",$L} 0+5900x60`, ``},
	"RefoldQueriesFail": {`refold_query_duration_seconds_count{operation="key",outcome="failed",pod="q-0",$L} 0x30 0+200x30`, ``},
	"RefoldQueriesSlow": {`refold_query_duration_seconds_bucket{operation="key",outcome="ok",le="0.01",pod="q-0",$L} 0+8000x60
		refold_query_duration_seconds_bucket{operation="key",outcome="ok",le="4",pod="q-0",$L} 0+9000x60`, ``},
	"RefoldRelayBehind":       {`refold_relay_backlog_seconds{topic="refold.user",pod="w-0",$L} 0x40 0+20x20`, `topic="refold.user"`},
	"RefoldRelayStopped":      {`refold_relay_stopped_slots{topic="refold.user",pod="w-0",$L} 0x50 1x10`, `topic="refold.user"`},
	"RefoldProjectionBehind":  {`refold_projection_lag_seconds{projection="rm_users",version="1",category="User",partition="0",pod="p-0",$L} 0x40 0+30x20`, `projection="rm_users"`},
	"RefoldProjectionStopped": {`refold_projection_stopped_slots{projection="rm_users",version="1",pod="p-0",$L} 0x50 2x10`, `projection="rm_users"`},
	"RefoldStreamsParked":     {`refold_projection_parked_streams{projection="rm_users",version="1",pod="p-0",$L} 0x50 1x10`, `projection="rm_users"`},
	"RefoldProjectionNotFed":  {`refold_projection_lag_seconds{projection="user_stats",version="1",category="User",partition="0",pod="p-1",$L} 0x40 stale`, `projection="user_stats"`},
	"RefoldRebuildStuck":      {`refold_rebuild_progress_ratio{projection="rm_users",pod="r-0",$L} 0+0.02x20 0.4x40`, `projection="rm_users"`},
	"RefoldOldSnapshot":       {`refold_old_snapshot_seconds{pod="w-0",$L} 0+60x60`, ``},
}

func TestHealthyReleaseRaisesNoAlert(t *testing.T) {
	require.Empty(t, firing(t, ruleGroup(t, ""), ""))
}

func TestEachAlertFiresOnWhatItSays(t *testing.T) {
	group := ruleGroup(t, "")
	for _, rule := range group {
		require.Contains(t, wrong, rule.Alert, "nothing is known that makes it fire")
	}
	for alert, w := range wrong {
		fired := firing(t, group, w.series)
		require.Len(t, fired, 1, "%s: %v", alert, fired)
		require.Contains(t, fired[0], alert)
		require.Contains(t, fired[0], w.about, alert)
	}
}

// Another release in the same Prometheus is none of ours.
func TestAlertsAreAboutTheirOwnRelease(t *testing.T) {
	for alert, w := range wrong {
		if strings.Contains(w.series, "stale") {
			continue // absent here
		}
		require.Empty(t, firing(t, ruleGroup(t, ""), strings.ReplaceAll(w.series, "$L", `namespace="shop",app_kubernetes_io_instance="other"`)), alert)
	}
}

func TestEveryAlertHasARunbookAndCanBeLeftOut(t *testing.T) {
	runbook, err := os.ReadFile(filepath.Join(chartDir, "RUNBOOK.md"))
	require.NoError(t, err)
	for _, rule := range ruleGroup(t, `, alertLabels: {team: orders}, disabled: [RefoldOldSnapshot]`) {
		require.NotEqual(t, "RefoldOldSnapshot", rule.Alert)
		require.Contains(t, string(runbook), "\n## "+rule.Alert+"\n")
		require.True(t, strings.HasSuffix(rule.Annotations["runbook_url"], "#"+strings.ToLower(rule.Alert)))
		require.NotEmpty(t, rule.Annotations["summary"])
		require.NotEmpty(t, rule.Annotations["description"])
		require.Contains(t, []string{"warning", "critical"}, rule.Labels["severity"])
		require.Equal(t, "orders", rule.Labels["team"])
	}
	for _, section := range regexp.MustCompile(`(?m)^## (Refold\w+)$`).FindAllStringSubmatch(string(runbook), -1) {
		require.Contains(t, wrong, section[1], "the runbook is about an alert that there is not")
	}
}

// The metrics of alerts and dashboard are those of the programs.
func TestMetricsExist(t *testing.T) {
	var source strings.Builder
	files, err := filepath.Glob("../../pkg/*/*.go")
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		source.Write(text)
	}
	dashboard, err := os.ReadFile(filepath.Join(chartDir, "files/dashboard.json"))
	require.NoError(t, err)
	var parsed struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	require.NoError(t, json.Unmarshal(dashboard, &parsed))
	var expressions []string
	for _, panel := range parsed.Panels {
		for _, target := range panel.Targets {
			expressions = append(expressions, strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"))
		}
	}
	require.Greater(t, len(expressions), 15)
	for _, rule := range ruleGroup(t, "") {
		expressions = append(expressions, rule.Expr.String())
	}
	for _, expr := range expressions {
		_, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
		require.NoError(t, err, expr)
		for _, metric := range regexp.MustCompile(`refold_[a-z_]+`).FindAllString(expr, -1) {
			metric = regexp.MustCompile(`(_seconds|_requests)_(count|bucket|sum)$`).ReplaceAllString(metric, "$1")
			require.True(t, strings.Contains(source.String(), `"`+metric+`"`), "no program has the metric %s of %s", metric, expr)
		}
	}
}

// firing loads the healthy series, with others in the place of some, evaluates the
// rules every minute for an hour, and returns which alerts fired at any time.
func firing(t *testing.T, group []monitoring.Rule, instead string) []string {
	storage := promqltest.LoadedStorage(t, "load 1m\n"+replaced(healthy, instead))
	engine := promqltest.NewTestEngine(t, false, 0, 1_000_000)
	fired := map[string]bool{}
	for _, rule := range group {
		expr, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr.String())
		require.NoError(t, err, rule.Alert)
		hold, err := model.ParseDuration(string(*rule.For))
		require.NoError(t, err)
		alerting := rules.NewAlertingRule(rule.Alert, expr, time.Duration(hold), 0, labels.FromMap(rule.Labels), labels.FromMap(rule.Annotations),
			labels.EmptyLabels(), "", true, slog.New(slog.DiscardHandler))
		for minute := range 60 {
			_, err := alerting.Eval(context.Background(), 0, time.Unix(int64(minute)*60, 0), rules.EngineQueryFunc(engine, storage), &url.URL{}, 0)
			require.NoError(t, err, rule.Alert)
			for _, alert := range alerting.ActiveAlerts() {
				if alert.State == rules.StateFiring {
					fired[alert.Labels.String()] = true
					require.NotContains(t, alert.Annotations.Get("description"), "error", "its text cannot be made")
				}
			}
		}
	}
	var names []string
	for name := range fired {
		names = append(names, name)
	}
	return names
}

// replaced puts series in the place of those with the same labels, or beside them.
func replaced(series, instead string) string {
	all := map[string]string{}
	var order []string
	for _, text := range []string{series, instead} {
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			end := strings.Index(line, "}") + 1
			if _, known := all[line[:end]]; !known {
				order = append(order, line[:end])
			}
			all[line[:end]] = line[end:]
		}
	}
	var b strings.Builder
	for _, name := range order {
		fmt.Fprintf(&b, "  %s%s\n", strings.ReplaceAll(name, "$L", in), all[name])
	}
	return b.String()
}
