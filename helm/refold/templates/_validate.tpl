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
{{- include "refold.validateKafka" . }}
{{- include "refold.validateContracts" . }}
{{- include "refold.validateProjectors" . }}
{{- range $role := list "writer" "relay" "queries" }}
{{- include "refold.validateRole" (dict "name" $role "values" (get $v $role)) }}
{{- end }}
{{- $limit := dig "resources" "limits" "memory" "" $v.rebuild }}
{{- if and $limit (ge (include "refold.bytes" $v.rebuild.memory | int64) (include "refold.bytes" $limit | int64)) }}
{{- fail (printf "rebuild.memory (%s) must be below rebuild.resources.limits.memory (%v), or the pods are killed" $v.rebuild.memory $limit) }}
{{- end }}
{{- end }}

{{- /* Credentials that a protocol does not use would be left out in silence. */}}
{{- define "refold.validateKafka" -}}
{{- with .Values.kafka }}
{{- if not .serviceBinding.existingSecret }}
{{- $asks := hasPrefix "SASL_" .securityProtocol }}
{{- if and $asks (not .sasl.mechanism) }}
{{- fail (printf "kafka.sasl.mechanism is required with kafka.securityProtocol %s" .securityProtocol) }}
{{- end }}
{{- if and (or .sasl.mechanism .sasl.existingSecret) (not $asks) }}
{{- fail "kafka.securityProtocol must be SASL_SSL or SASL_PLAINTEXT where kafka.sasl is set" }}
{{- end }}
{{- if and (or .ca.existingSecret .clientCertificate.existingSecret) (not (hasSuffix "SSL" .securityProtocol)) }}
{{- fail "kafka.securityProtocol must be SSL or SASL_SSL where kafka.ca or kafka.clientCertificate is set" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What belongs together in the values of a Deployment: (dict "name" "writer" "values" v). */}}
{{- define "refold.validateRole" -}}
{{- with .values }}
{{- $delay := .drainDelay | default "0s" }}
{{- $drain := hasSuffix "ms" $delay | ternary (div (trimSuffix "ms" $delay | int64) 1000) (trimSuffix "s" $delay | int64) }}
{{- if le (int64 .terminationGracePeriodSeconds) (add $drain 10) }}
{{- fail (printf "%s.terminationGracePeriodSeconds (%v) must be longer than the drain delay (%s) and the 10 s in which programs stop" $.name .terminationGracePeriodSeconds $delay) }}
{{- end }}
{{- with .autoscaling }}
{{- if and .enabled (gt (int64 .minReplicas) (int64 .maxReplicas)) }}
{{- fail (printf "%s.autoscaling.minReplicas (%v) is above maxReplicas (%v)" $.name .minReplicas .maxReplicas) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "refold.validateContracts" -}}
{{- $c := .Values.contracts }}
{{- $events := or $c.events $c.existing.events $c.registry.categories }}
{{- $projections := or $c.projections $c.existing.projections }}
{{- if and $projections (not $events) }}
{{- fail "contracts.events (or contracts.existing.events, or contracts.registry.categories) is required where projections are given: pods read both from one folder" }}
{{- end }}
{{- if and $events (not $projections) .Values.projectors }}
{{- fail "contracts.projections (or contracts.existing.projections) is required where events are given and projectors are to run" }}
{{- end }}
{{- if and $c.projections $c.existing.projections }}
{{- fail "contracts.projections and contracts.existing.projections are both set: set one of them" }}
{{- end }}
{{- if and $c.registry.categories (not .Values.schemaRegistry.url) }}
{{- fail "schemaRegistry.url is required with contracts.registry.categories: it is where the schemas are taken from" }}
{{- end }}
{{- range $category := $c.registry.categories }}
{{- if or (hasKey $c.events $category) (hasKey $c.existing.events $category) }}
{{- fail (printf "the events of %s come from the registry (contracts.registry.categories) and from contracts.events or contracts.existing.events: choose one" $category) }}
{{- end }}
{{- end }}
{{- $named := dict }}
{{- range $category, $_ := $c.events }}
{{- with get $named (lower $category) }}
{{- fail (printf "contracts.events: the ConfigMaps of %s and %s would have one name" . $category) }}
{{- end }}
{{- $_ := set $named (lower $category) $category }}
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
{{- $entry := include "refold.projector" (dict "root" $ "name" $name "entry" $given) | fromJson }}
{{- include "refold.validateRole" (dict "name" (printf "projectors.%s" $name) "values" $entry) }}
{{- range $entry.projections }}
{{- if hasKey $fedBy . }}
{{- fail (printf "the projection %s is in two projectors: %s and %s" . (get $fedBy .) $name) }}
{{- end }}
{{- $_ := set $fedBy . $name }}
{{- end }}
{{- end }}
{{- end }}
