{{- /* Whether the brokers ask who we are, or show a certificate that must be told. */}}
{{- define "refold.kedaAsks" -}}
{{- with .Values.kafka }}
{{- if or .sasl.existingSecret .ca.existingSecret .clientCertificate.existingSecret }}true{{ end }}
{{- end }}
{{- end }}

{{- define "refold.triggerAuthenticationName" -}}
{{- include "refold.fullname" . }}-kafka
{{- end }}

{{- /* Scaling of a projector on the lag of its projections: the role of the projector. */}}
{{- define "refold.scaledObject" -}}
{{- $a := .values.autoscaling }}
{{- $kafka := .root.Values.kafka }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  {{- include "refold.meta" . | nindent 2 }}
spec:
  scaleTargetRef: {name: {{ .name }}}
  minReplicaCount: {{ $a.minReplicas }}
  maxReplicaCount: {{ $a.maxReplicas }}
  triggers:
  {{- range .values.projections }}
  - type: kafka
    metadata:
      {{- if $kafka.serviceBinding.existingSecret }}
      bootstrapServersFromEnv: KAFKA_BOOTSTRAP_SERVERS
      {{- else }}
      bootstrapServers: {{ $kafka.bootstrapServers | quote }}
      {{- end }}
      # The group without members follows the version that serves, across promotions;
      # without a topic KEDA takes all that the group has offsets of.
      consumerGroup: {{ printf "%s.%s" $.root.Values.prefix . | quote }}
      lagThreshold: {{ $a.lagThreshold | int64 | quote }}
      offsetResetPolicy: earliest
      excludePersistentLag: "true"
      version: {{ $a.kafkaVersion | quote }}
      {{- if has $kafka.securityProtocol (list "SSL" "SASL_SSL") }}
      tls: enable
      {{- end }}
      {{- with $kafka.sasl.mechanism }}
      sasl: {{ get (dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512") . }}
      {{- end }}
    {{- if $a.triggerAuthentication }}
    authenticationRef: {name: {{ $a.triggerAuthentication }}}
    {{- else if eq (include "refold.kedaAsks" $.root) "true" }}
    authenticationRef: {name: {{ include "refold.triggerAuthenticationName" $.root }}}
    {{- end }}
  {{- end }}
{{- end }}
