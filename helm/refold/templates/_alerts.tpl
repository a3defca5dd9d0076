{{- /* All alerts, as a YAML list: (dict "root" $). RUNBOOK.md has a section for each. */}}
{{- define "refold.alerts" -}}
{{- $t := .root.Values.metrics.prometheusRule.thresholds }}
{{- $s := printf "namespace=%q,app_kubernetes_io_instance=%q" .root.Release.Namespace .root.Release.Name }}
- alert: RefoldWriterAbsent
  expr: absent(refold_build_info{program="writer",{{ $s }}})
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: No writer of refold is scraped
    description: No pod of the writer has answered a scrape for two minutes, so that nothing is appended.
- alert: RefoldQueriesAbsent
  expr: absent(refold_build_info{program="queries",{{ $s }}})
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: No query service of refold is scraped
    description: No pod of the query service has answered a scrape for two minutes, so that no read model is served.
- alert: RefoldAppendsFail
  expr: |-
    sum(rate(refold_append_duration_seconds_count{outcome=~"unavailable|unknown",{{ $s }}}[5m]))
      / sum(rate(refold_append_duration_seconds_count{ {{- $s -}} }[5m])) > {{ $t.errorRatio }}
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: Appends fail
    description: '{{ "{{ $value | humanizePercentage }}" }} of the appends are answered with 503.'
- alert: RefoldAppendsSlow
  expr: |-
    histogram_quantile(0.99, sum by (le) (rate(refold_append_duration_seconds_bucket{outcome="ok",{{ $s }}}[5m]))) > {{ $t.slowSeconds }}
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: Appends are slow
    description: 'One append in a hundred takes longer than {{ "{{ $value | humanizeDuration }}" }}.'
- alert: RefoldQueriesFail
  expr: |-
    sum(rate(refold_query_duration_seconds_count{outcome="failed",{{ $s }}}[5m]))
      / sum(rate(refold_query_duration_seconds_count{ {{- $s -}} }[5m])) > {{ $t.errorRatio }}
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: Queries fail
    description: '{{ "{{ $value | humanizePercentage }}" }} of the queries fail.'
- alert: RefoldQueriesSlow
  expr: |-
    histogram_quantile(0.99, sum by (le) (rate(refold_query_duration_seconds_bucket{outcome="ok",{{ $s }}}[5m]))) > {{ $t.slowSeconds }}
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: Queries are slow
    description: 'One query in a hundred takes longer than {{ "{{ $value | humanizeDuration }}" }}.'
- alert: RefoldRelayBehind
  expr: max by (topic) (refold_relay_backlog_seconds{ {{- $s -}} }) > {{ $t.relaySeconds }}
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: The relay is behind
    description: 'Events of {{ "{{ $labels.topic }}" }} have been waiting for {{ "{{ $value | humanizeDuration }}" }} to be sent to Kafka.'
- alert: RefoldRelayStopped
  expr: sum by (topic) (refold_relay_stopped_slots{ {{- $s -}} }) > 0
  for: 1m
  labels: {severity: critical}
  annotations:
    summary: The relay has stopped slots
    description: '{{ "{{ $value }}" }} slots of {{ "{{ $labels.topic }}" }} are not relayed: a broker refuses a record, or topic and event table differ.'
- alert: RefoldProjectionBehind
  expr: max by (projection) (refold_projection_lag_seconds{ {{- $s -}} }) > {{ $t.lagSeconds }}
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: A projection is behind
    description: 'Rows of {{ "{{ $labels.projection }}" }} lack events of the last {{ "{{ $value | humanizeDuration }}" }}.'
- alert: RefoldProjectionStopped
  expr: |-
    sum by (projection) (refold_projection_stopped_slots{ {{- $s -}} }) > 0
      or sum by (projection) (refold_projection_stopped_partitions{ {{- $s -}} }) > 0
  for: 1m
  labels: {severity: critical}
  annotations:
    summary: A projection has stopped
    description: '{{ "{{ $value }}" }} slots or partitions of {{ "{{ $labels.projection }}" }} take no events, because history is missing or differs.'
- alert: RefoldStreamsParked
  expr: sum by (projection) (refold_projection_parked_streams{ {{- $s -}} }) > 0
  for: 1m
  labels: {severity: warning}
  annotations:
    summary: Streams are parked
    description: '{{ "{{ $value }}" }} streams of {{ "{{ $labels.projection }}" }} wait behind an event that could not be folded.'
{{- range include "refold.projections" .root | fromJsonArray }}
- alert: RefoldProjectionNotFed
  expr: absent(refold_projection_lag_seconds{projection={{ . | quote }},{{ $s }}})
  for: 5m
  labels: {severity: critical, projection: {{ . }}}
  annotations:
    summary: A projection is not fed
    description: No pod feeds {{ . }}.
{{- end }}
- alert: RefoldRebuildStuck
  expr: |-
    max by (projection) (refold_rebuild_progress_ratio{ {{- $s -}} }) < 1
      and max by (projection) (changes(refold_rebuild_progress_ratio{ {{- $s -}} }[15m])) == 0
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: A rebuild is stuck
    description: 'The rebuild of {{ "{{ $labels.projection }}" }} stands at {{ "{{ $value | humanizePercentage }}" }}.'
- alert: RefoldOldSnapshot
  expr: max(refold_old_snapshot_seconds{ {{- $s -}} }) > {{ $t.snapshotSeconds }}
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: A transaction holds back the vacuum
    description: 'A snapshot of the database is {{ "{{ $value | humanizeDuration }}" }} old: dead rows stay, and queues slow down.'
{{- end }}
