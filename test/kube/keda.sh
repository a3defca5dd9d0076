#!/usr/bin/env bash
# KEDA for the lab, from the Go module proxy:  keda.sh FOLDER  builds its operator
# and metrics server there, for KEDA_BIN=FOLDER make kube. Ten CPU minutes; nothing
# is committed. run.sh sources it for the functions.
KEDA_VERSION=v2.21.0

keda_build() {
	local to source
	to=$(mkdir -p "$1" && cd "$1" && pwd)
	source=$(cd "$to" && go mod download -json "github.com/kedacore/keda/v2@$KEDA_VERSION" | jq -r .Dir)
	mkdir -p "$to/source"
	cp -r "$source/." "$to/source"
	chmod -R u+w "$to/source"
	cd "$to/source"
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$to/" ./cmd/operator ./cmd/adapter
	cp -r config "$to/"
}

keda_install() {
	lab image kedacore/keda:main "$KEDA_BIN/operator=/keda"
	lab image kedacore/keda-metrics-apiserver:main "$KEDA_BIN/adapter=/keda-adapter"
	kubectl kustomize "$KEDA_BIN/config/default" >"$work/keda.yaml"
	kubectl apply --server-side -f "$work/keda.yaml" >/dev/null
	# Its admission webhooks are a third program, which is not needed.
	kubectl delete validatingwebhookconfiguration keda-admission --ignore-not-found >/dev/null
	kubectl -n keda delete deployment keda-admission --ignore-not-found >/dev/null
	kubectl -n keda rollout status deployment/keda-operator --timeout=180s
	kubectl -n keda rollout status deployment/keda-metrics-apiserver --timeout=180s
	kubectl wait --for=condition=Available apiservice/v1beta1.external.metrics.k8s.io --timeout=120s
}

# keda_lag: what KEDA tells the HorizontalPodAutoscaler.
keda_lag() {
	local metric
	metric=$(kc get scaledobject refold-projector-users -o jsonpath='{.status.externalMetricNames[0]}')
	kubectl get --raw "/apis/external.metrics.k8s.io/v1beta1/namespaces/$ns/$metric?labelSelector=scaledobject.keda.sh%2Fname%3Drefold-projector-users" | jq -re '.items[0].value'
}

keda_remove() {
	kubectl delete apiservice v1beta1.external.metrics.k8s.io --ignore-not-found
	kubectl delete -f "$work/keda.yaml" --ignore-not-found --wait=false >/dev/null
	eventually 60 eval "! kubectl get namespace keda"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
	set -euo pipefail
	[[ $# == 1 ]] || { echo "usage: keda.sh FOLDER" >&2; exit 2; }
	keda_build "$1"
fi
