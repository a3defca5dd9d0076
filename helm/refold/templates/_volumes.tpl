{{- define "refold.mountsContracts" -}}
{{- with .Values.contracts }}
{{- if or .events .projections .existing.events .existing.projections .registry.categories }}true{{ end }}
{{- end }}
{{- end }}

{{- define "refold.eventsVolume" -}}
{{- $name := printf "events-%s" (lower .) }}
{{- if gt (len $name) 63 }}{{ $name = printf "%s-%s" (trunc 54 $name) (. | sha256sum | trunc 8) }}{{ end }}
{{- $name }}
{{- end }}

{{- /* What a role mounts, as a YAML list of {name, mountPath, source}: from it both lists of a pod
     are made, so that they cannot differ. */}}
{{- define "refold.mounted" -}}
{{- $v := .root.Values }}
{{- $full := include "refold.fullname" .root }}
{{- with $v.database.ca }}
{{- if .existingSecret }}
- {name: database-ca, path: /etc/refold/database, source: {secret: {secretName: {{ .existingSecret }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}}}
{{- end }}
{{- end }}
{{- if .kafka }}
{{- if $v.kafka.serviceBinding.existingSecret }}
- {name: kafka-binding, path: /etc/refold/bindings/kafka, source: {secret: {secretName: {{ $v.kafka.serviceBinding.existingSecret }}}}}
{{- else }}
{{- with $v.kafka.ca }}
{{- if .existingSecret }}
- {name: kafka-ca, path: /etc/refold/kafka, source: {secret: {secretName: {{ .existingSecret }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}}}
{{- end }}
{{- end }}
{{- with $v.kafka.clientCertificate }}
{{- if .existingSecret }}
- {name: kafka-client, path: /etc/refold/kafka-client, source: {secret: {secretName: {{ .existingSecret }}, items: [{key: {{ .certKey | quote }}, path: tls.crt}, {key: {{ .keyKey | quote }}, path: tls.key}]}}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if .api }}
{{- with $v.tls }}
{{- if .existingSecret }}
- {name: tls, path: /etc/refold/tls, source: {secret: {secretName: {{ .existingSecret }}, items: [{key: {{ .certKey | quote }}, path: tls.crt}, {key: {{ .keyKey | quote }}, path: tls.key}]}}}
{{- end }}
{{- end }}
{{- end }}
{{- if .contracts }}
{{- with $v.schemaRegistry }}
{{- if and .url .ca.existingSecret }}
- {name: schema-registry-ca, path: /etc/refold/schema-registry, source: {secret: {secretName: {{ .ca.existingSecret }}, items: [{key: {{ .ca.key | quote }}, path: ca.crt}]}}}
{{- end }}
{{- end }}
{{- range $category := $v.contracts.registry.categories }}
- {name: {{ include "refold.eventsVolume" $category }}, path: /etc/refold/schemas/events/{{ $category }}, source: {emptyDir: {}}}
{{- end }}
{{- range $category, $_ := $v.contracts.events }}
- {name: {{ include "refold.eventsVolume" $category }}, path: /etc/refold/schemas/events/{{ $category }}, source: {configMap: {name: {{ $full }}-events-{{ lower $category }}}}}
{{- end }}
{{- range $category, $name := $v.contracts.existing.events }}
- {name: {{ include "refold.eventsVolume" $category }}, path: /etc/refold/schemas/events/{{ $category }}, source: {configMap: {name: {{ $name }}}}}
{{- end }}
{{- if $v.contracts.projections }}
- {name: projections, path: /etc/refold/schemas/projections, source: {configMap: {name: {{ $full }}-projections}}}
{{- else if $v.contracts.existing.projections }}
- {name: projections, path: /etc/refold/schemas/projections, source: {configMap: {name: {{ $v.contracts.existing.projections }}}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.volumes" -}}
{{- range include "refold.mounted" . | fromYamlArray }}
- {{ toYaml (merge (dict "name" .name) .source) | nindent 2 | trim }}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "refold.volumeMounts" -}}
{{- range include "refold.mounted" . | fromYamlArray }}
- {name: {{ .name }}, mountPath: {{ .path }}, readOnly: true}
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
