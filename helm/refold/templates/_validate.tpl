{{- /* What a JSON schema cannot say. */}}
{{- define "refold.validate" -}}
{{- $v := .Values }}
{{- if not $v.database.existingSecret }}
{{- fail "database.existingSecret is required: the name of a Secret whose key `uri` holds the connection string of Postgres (kubectl create secret generic refold-db --from-literal=uri=postgres://...)" }}
{{- end }}
{{- if not (or $v.kafka.bootstrapServers $v.kafka.serviceBinding.existingSecret) }}
{{- fail "kafka.bootstrapServers is required (host:port), or kafka.serviceBinding.existingSecret: the name of a Service Binding secret" }}
{{- end }}
{{- if not $v.auth.mode }}
{{- fail "auth.mode is required: `oidc` (with auth.oidc.issuer and auth.oidc.audience), or `none`, which lets everybody in who reaches the APIs" }}
{{- end }}
{{- if and (eq $v.auth.mode "oidc") (not (and $v.auth.oidc.issuer $v.auth.oidc.audience)) }}
{{- fail "auth.oidc.issuer and auth.oidc.audience are required with auth.mode oidc" }}
{{- end }}
{{- if and (eq $v.topics.mode "strimzi") (not $v.topics.strimziCluster) }}
{{- fail "topics.strimziCluster is required with topics.mode strimzi" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs is required with httpRoute.enabled" }}
{{- end }}
{{- if and $v.ingress.enabled (not $v.ingress.host) }}
{{- fail "ingress.host is required with ingress.enabled" }}
{{- end }}
{{- include "refold.validateContracts" . }}
{{- include "refold.validateProjectors" . }}
{{- end }}

{{- define "refold.validateContracts" -}}
{{- $c := .Values.contracts }}
{{- $events := or $c.events $c.existing.events }}
{{- $projections := or $c.projections $c.existing.projections }}
{{- if and $projections (not $events) }}
{{- fail "contracts.events (or contracts.existing.events) is required where projections are given: pods read both from one folder" }}
{{- end }}
{{- if and $events (not $projections) .Values.projectors }}
{{- fail "contracts.projections (or contracts.existing.projections) is required where events are given and projectors are to run" }}
{{- end }}
{{- if and $c.projections $c.existing.projections }}
{{- fail "contracts.projections and contracts.existing.projections are both set: set one of them" }}
{{- end }}
{{- range $category, $_ := $c.events }}
{{- if hasKey $c.existing.events $category }}
{{- fail (printf "contracts.events.%s and contracts.existing.events.%s are both set: set one of them" $category $category) }}
{{- end }}
{{- end }}
{{- if and $c.projections .Values.projectors }}
{{- $known := include "refold.definitions" . | fromJson }}
{{- range include "refold.projections" . | fromJsonArray }}
{{- if not (hasKey $known .) }}
{{- fail (printf "projectors: no definition in contracts.projections is called %s (there are %s)" . (keys $known | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.validateProjectors" -}}
{{- $fedBy := dict }}
{{- $named := dict }}
{{- range $name, $given := .Values.projectors }}
{{- $kebab := include "refold.kebab" $name }}
{{- if hasKey $named $kebab }}
{{- fail (printf "the projectors %s and %s would have one name in Kubernetes: %s" (get $named $kebab) $name $kebab) }}
{{- end }}
{{- $_ := set $named $kebab $name }}
{{- range (include "refold.projector" (dict "root" $ "name" $name "entry" $given) | fromJson).projections }}
{{- if hasKey $fedBy . }}
{{- fail (printf "the projection %s is in two projectors: %s and %s" . (get $fedBy .) $name) }}
{{- end }}
{{- $_ := set $fedBy . $name }}
{{- end }}
{{- end }}
{{- end }}
