{{- define "refold.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "refold.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "refold.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "refold.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Labels that select: (dict "root" $ "component" "writer" "instance" "users"). */}}
{{- define "refold.selector" -}}
app.kubernetes.io/name: {{ include "refold.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .projector }}
refold.dev/projector: {{ . }}
{{- end }}
{{- end }}

{{- define "refold.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{ include "refold.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: refold
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* metadata without name: (dict "root" $ "component" ...). */}}
{{- define "refold.meta" -}}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "refold.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "refold.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "refold.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "refold.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- /* A Kubernetes name of a projector or projection. */}}
{{- define "refold.kebab" -}}
{{- . | replace "_" "-" }}
{{- end }}

{{- /* An entry of projectors with its defaults, as JSON: (dict "root" $ "name" n "entry" e). */}}
{{- define "refold.projector" -}}
{{- $entry := mergeOverwrite (deepCopy .root.Values.projectorDefaults) (deepCopy (.entry | default dict)) }}
{{- if not $entry.projections }}{{ $_ := set $entry "projections" (list .name) }}{{ end }}
{{- toJson $entry }}
{{- end }}

{{- define "refold.validate" -}}
{{- if not .Values.database.existingSecret }}
{{- fail "database.existingSecret is required: the name of a Secret whose key `uri` holds the connection string of Postgres (kubectl create secret generic refold-db --from-literal=uri=postgres://...)" }}
{{- end }}
{{- if not (or .Values.kafka.bootstrapServers .Values.kafka.serviceBinding) }}
{{- fail "kafka.bootstrapServers is required (host:port), or kafka.serviceBinding: the name of a Service Binding secret" }}
{{- end }}
{{- if and (eq .Values.topics.mode "strimzi") (not .Values.topics.strimziCluster) }}
{{- fail "topics.strimziCluster is required with topics.mode strimzi" }}
{{- end }}
{{- $seen := dict }}
{{- range $name, $entry := .Values.projectors }}
{{- range (include "refold.projector" (dict "root" $ "name" $name "entry" $entry) | fromJson).projections }}
{{- if hasKey $seen . }}
{{- fail (printf "the projection %s is in two projectors: %s and %s" . (get $seen .) $name) }}
{{- end }}
{{- $_ := set $seen . $name }}
{{- end }}
{{- end }}
{{- end }}
