{{- /* Pod template of a role (see _env.tpl). More keys: "restartPolicy", "hash" (of the contracts),
     "serviceAccount" (false where it is older than the chart's objects), "deadline". */}}
{{- define "refold.podTemplate" -}}
{{- $v := .values }}
metadata:
  labels:
    {{- include "refold.labels" . | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) (ternary (dict "refold.dev/contracts" .hash) dict (hasKey . "hash")) ($v.podAnnotations | default dict) .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "refold.podSpec" . | nindent 2 }}
{{- end }}

{{- define "refold.podSpec" -}}
{{- $v := .values }}
{{- $root := .root.Values }}
{{- with .restartPolicy }}
restartPolicy: {{ . }}
{{- end }}
{{- if .serviceAccount }}
serviceAccountName: {{ include "refold.serviceAccount" .root }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml $root.podSecurityContext | nindent 2 }}
{{- with $root.imagePullSecrets }}
imagePullSecrets: {{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- range $field := list "affinity" "nodeSelector" "priorityClassName" "terminationGracePeriodSeconds" "tolerations" }}
{{- with get $v $field }}
{{ toYaml (dict $field .) }}
{{- end }}
{{- end }}
{{- if hasKey $v "topologySpreadConstraints" }}
topologySpreadConstraints:
{{- with $v.topologySpreadConstraints }}
{{- toYaml . | nindent 0 }}
{{- else }}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "refold.selector" $ | nindent 6 }}
{{- end }}
{{- end }}
{{- with omit $root.extraPodSpec "initContainers" }}
{{ toYaml . }}
{{- end }}
{{- $pull := and .contracts $root.contracts.registry.categories }}
{{- if or $pull $root.extraPodSpec.initContainers }}
initContainers:
{{- with $root.extraPodSpec.initContainers }}
{{ toYaml . }}
{{- end }}
{{- if $pull }}
{{ include "refold.pull" . }}
{{- end }}
{{- end }}
containers:
{{ include "refold.container" . }}
{{- if and .admin (not .job) }}
{{- with $root.extraContainers }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- with include "refold.volumes" . }}
volumes: {{- . | nindent 0 }}
{{- end }}
{{- end }}

{{- /* Takes event schemas from the registry before the program starts. */}}
{{- define "refold.pull" -}}
{{- $root := .root.Values -}}
- name: schemas
  image: {{ include "refold.image" .root }}
  imagePullPolicy: {{ $root.image.pullPolicy }}
  command: {{- toYaml (concat (list "writer" "schema" "pull") $root.contracts.registry.categories) | nindent 2 }}
  env: {{- include "refold.envList" (merge (dict "REFOLD_PREFIX" $root.prefix "REFOLD_SCHEMAS" "/etc/refold/schemas") (include "refold.schemaRegistryEnv" .root | fromYaml)) | nindent 2 }}
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {memory: 64Mi}
  securityContext: {{- toYaml $root.securityContext | nindent 4 }}
  volumeMounts:
  {{- range $category := $root.contracts.registry.categories }}
  - {name: {{ include "refold.eventsVolume" $category }}, mountPath: /etc/refold/schemas/events/{{ $category }}}
  {{- end }}
  {{- if $root.schemaRegistry.ca.existingSecret }}
  - {name: schema-registry-ca, mountPath: /etc/refold/schema-registry, readOnly: true}
  {{- end }}
{{- end }}

{{- define "refold.container" -}}
{{- $root := .root.Values -}}
- name: {{ .component }}
  image: {{ include "refold.image" .root }}
  imagePullPolicy: {{ $root.image.pullPolicy }}
  command: {{- toYaml .command | nindent 2 }}
  {{- with .values.extraArgs }}
  args: {{- toYaml . | nindent 2 }}
  {{- end }}
  env: {{- include "refold.env" . | nindent 2 }}
  {{- if or .api .admin }}
  ports:
  {{- with .api }}
  - {name: api, containerPort: {{ . }}}
  {{- end }}
  {{- with .admin }}
  - {name: admin, containerPort: {{ . }}}
  {{- end }}
  {{- end }}
  {{- if .admin }}
  startupProbe: {{- toYaml (merge (dict "httpGet" (dict "path" "/livez" "port" "admin")) $root.probes.startup) | nindent 4 }}
  livenessProbe: {{- toYaml (merge (dict "httpGet" (dict "path" "/livez" "port" "admin")) $root.probes.liveness) | nindent 4 }}
  {{- if not .job }}
  readinessProbe: {{- toYaml (merge (dict "httpGet" (dict "path" "/readyz" "port" "admin")) $root.probes.readiness) | nindent 4 }}
  {{- end }}
  {{- end }}
  resources: {{- toYaml .values.resources | nindent 4 }}
  securityContext: {{- toYaml $root.securityContext | nindent 4 }}
  {{- with include "refold.volumeMounts" . }}
  volumeMounts: {{- . | nindent 2 }}
  {{- end }}
{{- end }}
