{{- /* A Deployment and what surrounds it: (the dict of refold.podTemplate and "name" n). */}}
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
  revisionHistoryLimit: 5
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels: {{- include "refold.selector" . | nindent 6 }}
  template: {{- include "refold.podTemplate" . | nindent 4 }}
{{- end }}

{{- define "refold.pdb" -}}
{{- if not (kindIs "invalid" .values.minAvailable) }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  {{- include "refold.meta" . | nindent 2 }}
spec:
  minAvailable: {{ .values.minAvailable }}
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
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  {{- include "refold.meta" (merge (dict "annotations" .values.service.annotations) .) | nindent 2 }}
spec:
  type: {{ .values.service.type }}
  selector: {{- include "refold.selector" . | nindent 4 }}
  ports:
  - {name: http, port: {{ .values.service.port }}, targetPort: api, appProtocol: http}
{{- end }}
