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

{{- /* Labels that select: (dict "root" $ "component" "writer" "projector" "users"). */}}
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
namespace: {{ .namespace | default .root.Release.Namespace }}
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
{{- if not $entry.projections }}{{ $_ := set $entry "projections" (list (.name | replace "-" "_")) }}{{ end }}
{{- toJson $entry }}
{{- end }}

{{- /* All projections that are fed, as a JSON list. */}}
{{- define "refold.projections" -}}
{{- $all := list }}
{{- range $name, $given := .Values.projectors }}
{{- $all = concat $all (include "refold.projector" (dict "root" $ "name" $name "entry" $given) | fromJson).projections }}
{{- end }}
{{- toJson $all }}
{{- end }}

{{- /* <fullname>-<rest>, at most 52 characters, so that Jobs and pods can add theirs; what is cut off
     is told apart by a hash: (dict "root" $ "rest" "projector-users"). */}}
{{- define "refold.childName" -}}
{{- $name := printf "%s-%s" (include "refold.fullname" .root) .rest }}
{{- if gt (len $name) 52 }}{{ $name = printf "%s-%s" ($name | trunc 43 | trimSuffix "-") ($name | sha256sum | trunc 8) }}{{ end }}
{{- $name }}
{{- end }}

{{- /* Name of the CronJob of a projection: (dict "root" $ "projection" p). */}}
{{- define "refold.rebuildName" -}}
{{- include "refold.childName" (dict "root" .root "rest" (printf "rebuild-%s" (include "refold.kebab" .projection))) }}
{{- end }}

{{- /* Bytes of a size, Kubernetes' (256Mi) or the programs' (512MiB); 0 where it is none. */}}
{{- define "refold.bytes" -}}
{{- $text := kindIs "float64" . | ternary (printf "%.0f" .) (toString .) }}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text }}
{{- $units := dict "" 1 "k" 1000 "K" 1024 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- mulf (float64 $number) (get $units ($text | trimPrefix $number | trimSuffix "B") | default 0) | int64 }}
{{- end }}

{{- /* A part of the memory that a container may take, in bytes, 0 where it has no limit: (dict "values" v "percent" 80). */}}
{{- define "refold.memory" -}}
{{- $limit := dig "resources" "limits" "memory" "" .values }}
{{- div (mul (include "refold.bytes" $limit | int64) .percent) 100 }}
{{- end }}

{{- define "refold.scheme" -}}
{{- if .Values.tls.existingSecret }}https{{ else }}http{{ end }}
{{- end }}

{{- /* Definitions from values by projection, as JSON. */}}
{{- define "refold.definitions" -}}
{{- $found := dict }}
{{- range $file, $text := .Values.contracts.projections }}
{{- if not (regexMatch "\\.test\\.ya?ml$" $file) }}
{{- range regexSplit "(?m)^---.*$" $text -1 }}
{{- $parsed := fromYaml . }}
{{- with $parsed.Error }}{{ fail (printf "contracts.projections, %s: %s" $file .) }}{{ end }}
{{- with $parsed.projection }}{{ $_ := set $found . $parsed }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- /* A hash of the contracts that pods read: (dict "root" $ "projections" (list ...)); without
     projections those of the events alone, with "all" everything. */}}
{{- define "refold.contractsHash" -}}
{{- $c := .root.Values.contracts }}
{{- $read := dict "events" $c.events "existing" $c.existing "path" $c.path }}
{{- if $c.registry.categories }}{{ $_ := set $read "registry" $c.registry }}{{ end }}
{{- if .all }}{{ $_ := set $read "definitions" $c.projections }}{{ end }}
{{- $all := include "refold.definitions" .root | fromJson }}
{{- range .projections }}{{ $_ := set $read (printf "definition %s" .) (get $all .) }}{{ end }}
{{- toJson $read | sha256sum | trunc 16 }}
{{- end }}
