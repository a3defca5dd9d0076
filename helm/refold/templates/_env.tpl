{{- /* Environment of a container, names unique because Helm applies server-side. A role is the dict
     that all templates of pods take: "root" $, "component", "projector", "name", "values",
     "command", "env", and which of "kafka", "contracts", "api" (port), "admin" (port) it has. */}}
{{- define "refold.env" -}}
{{- $v := .root.Values }}
{{- $env := dict "REFOLD_PREFIX" $v.prefix "REFOLD_LOG_LEVEL" $v.logLevel "REFOLD_LOG_FORMAT" "json" }}
{{- $_ := merge $env (include "refold.databaseEnv" .root | fromYaml) }}
{{- if .kafka }}{{ $_ := merge $env (include "refold.kafkaEnv" .root | fromYaml) }}{{ end }}
{{- if .api }}{{ $_ := merge $env (include "refold.apiEnv" .root | fromYaml) }}{{ end }}
{{- if .contracts }}{{ $_ := merge $env (include "refold.schemaRegistryEnv" .root | fromYaml) }}{{ end }}
{{- if .contracts }}
{{- if eq (include "refold.mountsContracts" .root) "true" }}
{{- $_ := set $env "REFOLD_SCHEMAS" "/etc/refold/schemas" }}
{{- else if $v.contracts.path }}
{{- $_ := set $env "REFOLD_SCHEMAS" $v.contracts.path }}
{{- end }}
{{- end }}
{{- if and .admin (not .job) }}
{{- /* The collector works harder from there on; rebuilds have a value of their own. */}}
{{- with include "refold.memory" (dict "values" .values "percent" 80) | int64 }}{{ $_ := set $env "GOMEMLIMIT" . }}{{ end }}
{{- end }}
{{- range $name, $value := .env }}{{ $_ := set $env $name $value }}{{ end }}
{{- range $name, $value := .values.extraEnv }}{{ $_ := set $env $name $value }}{{ end }}
{{- include "refold.envList" $env }}
{{- end }}

{{- define "refold.envList" -}}
{{- range $name := keys . | sortAlpha }}
- name: {{ $name }}
  {{- $value := get $ $name }}
  {{- if kindIs "map" $value }}
  valueFrom: {{- toYaml $value | nindent 4 }}
  {{- else if and (kindIs "float64" $value) (eq $value (floor $value)) }}
  value: {{ int64 $value | toString | quote }}
  {{- else }}
  value: {{ $value | toString | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "refold.databaseEnv" -}}
{{- with .Values.database }}
DATABASE_URL: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key | quote }}}}
{{- with .sslMode }}
PGSSLMODE: {{ . | quote }}
{{- end }}
{{- if .ca.existingSecret }}
PGSSLROOTCERT: /etc/refold/database/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.kafkaEnv" -}}
{{- with .Values.kafka }}
{{- if .serviceBinding.existingSecret }}
# KEDA reads this one from the pod; the programs find the rest in the folder.
KAFKA_BOOTSTRAP_SERVERS: {secretKeyRef: {name: {{ .serviceBinding.existingSecret }}, key: {{ .serviceBinding.bootstrapServersKey | quote }}}}
SERVICE_BINDING_ROOT: /etc/refold/bindings
{{- else }}
KAFKA_BOOTSTRAP_SERVERS: {{ .bootstrapServers | quote }}
{{- with .securityProtocol }}
KAFKA_SECURITY_PROTOCOL: {{ . | quote }}
{{- end }}
{{- with .sasl.mechanism }}
KAFKA_SASL_MECHANISM: {{ . | quote }}
{{- end }}
{{- if .sasl.existingSecret }}
KAFKA_SASL_USERNAME: {secretKeyRef: {name: {{ .sasl.existingSecret }}, key: {{ .sasl.usernameKey | quote }}}}
KAFKA_SASL_PASSWORD: {secretKeyRef: {name: {{ .sasl.existingSecret }}, key: {{ .sasl.passwordKey | quote }}}}
{{- end }}
{{- if .ca.existingSecret }}
KAFKA_SSL_CA_FILE: /etc/refold/kafka/ca.crt
{{- end }}
{{- if .clientCertificate.existingSecret }}
KAFKA_SSL_CERT_FILE: /etc/refold/kafka-client/tls.crt
KAFKA_SSL_KEY_FILE: /etc/refold/kafka-client/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.schemaRegistryEnv" -}}
{{- with .Values.schemaRegistry }}
{{- if .url }}
SCHEMA_REGISTRY_URL: {{ .url | quote }}
{{- if .existingSecret }}
{{- if .tokenKey }}
SCHEMA_REGISTRY_BEARER_AUTH_TOKEN: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .tokenKey | quote }}}}
{{- else }}
SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .userInfoKey | quote }}}}
{{- end }}
{{- end }}
{{- if .ca.existingSecret }}
SCHEMA_REGISTRY_SSL_CA_FILE: /etc/refold/schema-registry/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.apiEnv" -}}
REFOLD_AUTH: {{ .Values.auth.mode }}
{{- if eq .Values.auth.mode "oidc" }}
{{- with .Values.auth.oidc }}
REFOLD_OIDC_ISSUER: {{ .issuer | quote }}
REFOLD_OIDC_AUDIENCE: {{ .audience | quote }}
REFOLD_OIDC_CLAIM: {{ .claim | quote }}
{{- end }}
{{- end }}
{{- if .Values.tls.existingSecret }}
REFOLD_TLS_CERT_FILE: /etc/refold/tls/tls.crt
REFOLD_TLS_KEY_FILE: /etc/refold/tls/tls.key
{{- end }}
{{- end }}
