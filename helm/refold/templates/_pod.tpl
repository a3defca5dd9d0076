{{- /* What all pods of refold share. Environment names are unique, because Helm
     applies server-side: (dict "root" $ "component" c "values" v). */}}

{{- define "refold.env" -}}
{{- $v := .root.Values }}
{{- $env := dict }}
{{- $_ := set $env "REFOLD_PREFIX" $v.prefix }}
{{- $_ := set $env "REFOLD_LOG_LEVEL" $v.logLevel }}
{{- $_ := set $env "REFOLD_LOG_FORMAT" "json" }}
{{- $_ := set $env "DATABASE_URL" (dict "secretKeyRef" (dict "name" $v.database.existingSecret "key" $v.database.key)) }}
{{- with $v.database.sslMode }}{{ $_ := set $env "PGSSLMODE" . }}{{ end }}
{{- if $v.database.ca.existingSecret }}{{ $_ := set $env "PGSSLROOTCERT" "/etc/refold/database/ca.crt" }}{{ end }}
{{- if .kafka }}
{{- if $v.kafka.serviceBinding }}
{{- $secret := $v.kafka.serviceBinding }}
{{- $_ := set $env "KAFKA_BOOTSTRAP_SERVERS" (dict "secretKeyRef" (dict "name" $secret "key" "bootstrapServers")) }}
{{- range $name, $key := dict "KAFKA_SECURITY_PROTOCOL" "securityProtocol" "KAFKA_SASL_MECHANISM" "saslMechanism" "KAFKA_SASL_USERNAME" "username" "KAFKA_SASL_PASSWORD" "password" }}
{{- $_ := set $env $name (dict "secretKeyRef" (dict "name" $secret "key" $key "optional" true)) }}
{{- end }}
{{- else }}
{{- $_ := set $env "KAFKA_BOOTSTRAP_SERVERS" $v.kafka.bootstrapServers }}
{{- with $v.kafka.securityProtocol }}{{ $_ := set $env "KAFKA_SECURITY_PROTOCOL" . }}{{ end }}
{{- with $v.kafka.sasl.mechanism }}{{ $_ := set $env "KAFKA_SASL_MECHANISM" . }}{{ end }}
{{- with $v.kafka.sasl.existingSecret }}
{{- $_ := set $env "KAFKA_SASL_USERNAME" (dict "secretKeyRef" (dict "name" . "key" $v.kafka.sasl.usernameKey)) }}
{{- $_ := set $env "KAFKA_SASL_PASSWORD" (dict "secretKeyRef" (dict "name" . "key" $v.kafka.sasl.passwordKey)) }}
{{- end }}
{{- end }}
{{- if $v.kafka.ca.existingSecret }}{{ $_ := set $env "KAFKA_SSL_CA_FILE" "/etc/refold/kafka/ca.crt" }}{{ end }}
{{- if $v.kafka.clientCertificate.existingSecret }}
{{- $_ := set $env "KAFKA_SSL_CERT_FILE" "/etc/refold/kafka-client/tls.crt" }}
{{- $_ := set $env "KAFKA_SSL_KEY_FILE" "/etc/refold/kafka-client/tls.key" }}
{{- end }}
{{- end }}
{{- if eq (include "refold.hasContracts" .root) "true" }}{{ $_ := set $env "REFOLD_SCHEMAS" "/etc/refold/schemas" }}{{ end }}
{{- range $name, $value := .env }}{{ $_ := set $env $name $value }}{{ end }}
{{- range $name, $value := .values.extraEnv }}{{ $_ := set $env $name $value }}{{ end }}
{{- range $name := keys $env | sortAlpha }}
- name: {{ $name }}
  {{- $value := get $env $name }}
  {{- if kindIs "map" $value }}
  valueFrom: {{- toYaml $value | nindent 4 }}
  {{- else }}
  value: {{ $value | toString | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "refold.hasContracts" -}}
{{- with .Values.contracts }}
{{- if or .events .projections .existing.events .existing.projections }}true{{ end }}
{{- end }}
{{- end }}

{{- /* Contracts that roll the pods when they change. */}}
{{- define "refold.contractsChecksum" -}}
{{- toJson .Values.contracts | sha256sum | trunc 16 }}
{{- end }}

{{- define "refold.volumes" -}}
{{- $root := .root }}
{{- $v := .root.Values }}
{{- $full := include "refold.fullname" .root }}
{{- if $v.database.ca.existingSecret }}
- name: database-ca
  secret:
    secretName: {{ $v.database.ca.existingSecret }}
    items: [{key: {{ $v.database.ca.key | quote }}, path: ca.crt}]
{{- end }}
{{- if .kafka }}
{{- if $v.kafka.ca.existingSecret }}
- name: kafka-ca
  secret:
    secretName: {{ $v.kafka.ca.existingSecret }}
    items: [{key: {{ $v.kafka.ca.key | quote }}, path: ca.crt}]
{{- end }}
{{- if $v.kafka.clientCertificate.existingSecret }}
- name: kafka-client
  secret:
    secretName: {{ $v.kafka.clientCertificate.existingSecret }}
    items:
    - {key: {{ $v.kafka.clientCertificate.certKey | quote }}, path: tls.crt}
    - {key: {{ $v.kafka.clientCertificate.keyKey | quote }}, path: tls.key}
{{- end }}
{{- end }}
{{- range $category, $files := $v.contracts.events }}
- name: events-{{ lower $category }}
  configMap: {name: {{ $full }}-events-{{ lower $category }}}
{{- end }}
{{- range $category, $name := $v.contracts.existing.events }}
- name: events-{{ lower $category }}
  configMap: {name: {{ $name }}}
{{- end }}
{{- if $v.contracts.projections }}
- name: projections
  configMap: {name: {{ $full }}-projections}
{{- else if $v.contracts.existing.projections }}
- name: projections
  configMap: {name: {{ $v.contracts.existing.projections }}}
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "refold.mounts" -}}
{{- $v := .root.Values }}
{{- if $v.database.ca.existingSecret }}
- {name: database-ca, mountPath: /etc/refold/database, readOnly: true}
{{- end }}
{{- if .kafka }}
{{- if $v.kafka.ca.existingSecret }}
- {name: kafka-ca, mountPath: /etc/refold/kafka, readOnly: true}
{{- end }}
{{- if $v.kafka.clientCertificate.existingSecret }}
- {name: kafka-client, mountPath: /etc/refold/kafka-client, readOnly: true}
{{- end }}
{{- end }}
{{- range $category, $_ := merge (dict) $v.contracts.events $v.contracts.existing.events }}
- {name: events-{{ lower $category }}, mountPath: /etc/refold/schemas/events/{{ $category }}, readOnly: true}
{{- end }}
{{- if or $v.contracts.projections $v.contracts.existing.projections }}
- {name: projections, mountPath: /etc/refold/schemas/projections, readOnly: true}
{{- end }}
{{- with $v.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Pod template: (dict "root" $ "component" c "projector" p "values" v "command" (list ...) "env" (dict) "kafka" bool "api" port "admin" port). */}}
{{- define "refold.podTemplate" -}}
{{- $v := .values }}
metadata:
  labels:
    {{- include "refold.labels" . | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    refold.dev/contracts: {{ include "refold.contractsChecksum" .root | quote }}
    {{- with merge (dict) $v.podAnnotations .root.Values.commonAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "refold.serviceAccount" .root }}
  {{- include "refold.podSpec" . | nindent 2 }}
{{- end }}

{{- define "refold.podSpec" -}}
{{- $v := .values }}
{{- with .restartPolicy }}
restartPolicy: {{ . }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if hasKey $v "topologySpreadConstraints" }}
topologySpreadConstraints:
{{- if kindIs "invalid" $v.topologySpreadConstraints }}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "refold.selector" . | nindent 6 }}
{{- else }}
{{- toYaml $v.topologySpreadConstraints | nindent 0 }}
{{- end }}
{{- end }}
{{- with $v.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
containers:
- name: {{ .component }}
  image: {{ include "refold.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: {{- toYaml .command | nindent 2 }}
  {{- with $v.extraArgs }}
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
  # Starting may wait for the database and the brokers; only a process that is stuck is killed.
  startupProbe: {httpGet: {path: /livez, port: admin}, periodSeconds: 1, failureThreshold: 60}
  livenessProbe: {httpGet: {path: /livez, port: admin}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
  {{- if not .job }}
  readinessProbe: {httpGet: {path: /readyz, port: admin}, periodSeconds: 2, timeoutSeconds: 2, failureThreshold: 2}
  {{- end }}
  {{- end }}
  resources: {{- toYaml $v.resources | nindent 4 }}
  securityContext: {{- toYaml .root.Values.securityContext | nindent 4 }}
  {{- with include "refold.mounts" . }}
  volumeMounts: {{- . | nindent 2 }}
  {{- end }}
{{- with include "refold.volumes" . }}
volumes: {{- . | nindent 0 }}
{{- end }}
{{- end }}
