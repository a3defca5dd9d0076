{{- /* A Deployment of a role and what surrounds it. */}}
{{- define "refold.deployment" -}}
{{- $v := .values }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  {{- include "refold.meta" . | nindent 2 }}
spec:
  {{- /* An autoscaler owns the number; ours would set it back at every upgrade. */}}
  {{- if not (and $v.autoscaling $v.autoscaling.enabled) }}
  replicas: {{ $v.replicas }}
  {{- end }}
  revisionHistoryLimit: {{ .root.Values.revisionHistoryLimit }}
  strategy: {{- toYaml .root.Values.updateStrategy | nindent 4 }}
  selector:
    matchLabels: {{- include "refold.selector" . | nindent 6 }}
  template: {{- include "refold.podTemplate" . | nindent 4 }}
{{- end }}

{{- define "refold.pdb" -}}
{{- if ne (toString .values.maxUnavailable) "" }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  {{- include "refold.meta" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "refold.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{- define "refold.hpa" -}}
{{- with .values.autoscaling }}
{{- if .enabled }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $.name }}
  {{- include "refold.meta" $ | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $.name }}}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
  - type: Resource
    resource:
      name: cpu
      target: {type: Utilization, averageUtilization: {{ .targetCPU }}}
  {{- with .behavior }}
  behavior: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.service" -}}
{{- $scheme := include "refold.scheme" .root }}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  {{- include "refold.meta" (merge (dict "annotations" .values.service.annotations) .) | nindent 2 }}
spec:
  type: {{ .values.service.type }}
  selector: {{- include "refold.selector" . | nindent 4 }}
  ports:
  - {name: {{ $scheme }}, port: {{ .values.service.port }}, targetPort: api, appProtocol: {{ $scheme }}}
{{- end }}

{{- /* The spec of a Job that runs a command once: the role, with "backoffLimit" and "deadline". */}}
{{- define "refold.onceSpec" -}}
backoffLimit: {{ .backoffLimit }}
activeDeadlineSeconds: {{ .deadline }}
{{- with .ttl }}
ttlSecondsAfterFinished: {{ . }}
{{- end }}
template: {{- include "refold.podTemplate" (merge (dict "restartPolicy" "Never" "job" true) .) | nindent 2 }}
{{- end }}

{{- /* What tells such a Job from the one before: the spec of a Job cannot be changed. The revision is a
     constant where others than Helm install, so that the spec itself is in it. */}}
{{- define "refold.onceSuffix" -}}
{{ .root.Release.Revision }}-{{ include "refold.onceSpec" . | sha256sum | trunc 6 }}
{{- end }}
