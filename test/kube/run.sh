#!/usr/bin/env bash
# Proves the chart on a real control plane: installs, upgrades, breaks and removes
# releases under load, and says of each promise whether it was kept.
#
#   KUBE_LAB=FOLDER make kube                      everything; the output goes to last-run.txt
#   KUBE_LAB=FOLDER make kube ARGS="install hpa"   some stages, in this order; `install` comes first
#
# FOLDER holds kube.sh, which starts a one-node cluster on this machine (Kubernetes
# 1.34: real API server, kubelet, containers, DNS, NetworkPolicy, metrics). Postgres
# and a real Kafka broker run beside it on the machine and are machine.lab to pods.
# A cluster that is up already is used and stays up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
chart=$root/helm/refold
ns=refold
all=(install notes projectors rolling kill drain rebuild definition policy hpa lag keda secure beside uninstall)

# ---------------------------------------------------------------- what is reported

failures=0
say() { printf '%s\n' "$*"; }
stage() { say; say "== $*"; }

# check WHAT COMMAND...: runs it to its first error, and shows what it printed: its
# last line where all is well, all of it where it is not.
check() {
	local what=$1 begun=$SECONDS out status
	shift
	set +e
	out=$(
		set -e
		"$@" 2>&1
	)
	status=$?
	set -e
	if ((status == 0)); then
		say "ok    $what ($((SECONDS - begun)) s)"
		[[ -z $out ]] || say "      $(tail -n 1 <<<"$out")"
	else
		failures=$((failures + 1))
		say "FAIL  $what ($((SECONDS - begun)) s)"
		sed 's/^/      /' <<<"$out"
	fi
}

die() { say "$*" >&2; exit 2; }

# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
	local end=$((SECONDS + $1)) out
	shift
	until out=$("$@" 2>&1); do
		((SECONDS < end)) || { say "not within its time: $*"; say "$out"; return 1; }
		sleep 0.5
	done
	say "$out"
}

# not COMMAND...: that it fails is what is wanted.
not() { ! "$@" >/dev/null 2>&1; }

# ---------------------------------------------------------------- the lab

lab() { "$KUBE_LAB/kube.sh" "$@"; }
kc() { kubectl -n "$ns" "$@"; }

prepare() {
	[[ -n ${KUBE_LAB-} ]] || die "KUBE_LAB is not set: the folder of kube.sh, which starts the cluster"
	[[ -x $KUBE_LAB/kube.sh ]] || die "KUBE_LAB=$KUBE_LAB holds no kube.sh"
	local program
	for program in go java jq curl psql readelf; do
		command -v "$program" >/dev/null || die "$program is missing: the programs are built here, and the broker runs on Java"
	done
	work=$(mktemp -d)
	trap cleanup EXIT

	say "building the programs, static, as the Dockerfile does"
	SBOM=off "$root/test/kube/image.sh" "$work/image" >"$work/build.log" 2>&1 || { cat "$work/build.log"; die "the build failed"; }
	(cd "$root" && CGO_ENABLED=0 go build -trimpath -o "$work/" ./test/kube/load ./test/kube/servers ./test/kube/lag)

	mkdir "$work/lab"
	"$work/servers" "$work/lab" >"$work/servers.log" 2>&1 &
	servers=$!
	eventually 120 test -f "$work/lab/ready" || { cat "$work/servers.log"; die "Postgres and Kafka did not start"; }
	. "$work/lab/ports"
	export KAFKA_BOOTSTRAP_SERVERS

	if lab kubectl get --raw /readyz >/dev/null 2>&1; then was_up=yes; else lab up; fi
	eval "$(lab env)"
	programs=()
	for program in writer projector rebuild; do programs+=("$work/image/out/$program=/usr/local/bin/$program"); done
	for program in refold/refold:0.1.0 refold/refold:next; do
		lab image "$program" "${programs[@]}" -- -entrypoint /usr/local/bin/writer -env PATH=/usr/local/bin
	done
	lab image refold/load:1 "$work/load=/load"
	lab reach 5432 "$POSTGRES_PORT"
	lab reach 9092 "$KAFKA_PORT"
	lab reach 9093 "$KAFKA_TLS_PORT"
	lab reach 8090 "$ISSUER_PORT"
	for name in "$ns" secure strangers; do
		kubectl create namespace "$name"
		kubectl label namespace "$name" pod-security.kubernetes.io/enforce=restricted pod-security.kubernetes.io/warn=restricted
	done >/dev/null
	say "Kubernetes $(kubectl version -o json | jq -r .serverVersion.gitVersion), Helm $(helm version --template '{{.Version}}'), refold $("$work/image/out/writer" --version | cut -d' ' -f2)"
}

cleanup() {
	[[ -z ${servers-} ]] || kill "$servers" 2>/dev/null || true
	if [[ -z ${was_up-} ]]; then
		lab down >/dev/null 2>&1 || true
	else
		kubectl delete namespace "$ns" secure strangers --ignore-not-found --timeout=120s >/dev/null 2>&1 || true
	fi
	[[ -z ${servers-} ]] || wait "$servers" 2>/dev/null || true
	rm -rf "$work"
}

# quietly COMMAND...: shows what it printed only where it fails.
quietly() {
	local out
	out=$("$@" 2>&1) || { say "$out"; return 1; }
}

# upgrade ARG...: an upgrade that keeps what was set before.
upgrade() {
	helm upgrade refold "$chart" -n "$ns" --reset-then-reuse-values --wait --timeout 5m "$@" >"$work/upgrade.log" 2>&1 || { cat "$work/upgrade.log"; return 1; }
	grep '^REVISION' "$work/upgrade.log"
}

# api writer|queries PATH [CURL-ARG...]: a request through the Service.
api() {
	local port=8080
	[[ $1 == writer ]] || port=8081
	lab run curl -sS --fail-with-body --max-time 60 "http://refold-$1.$ns.svc.cluster.local:$port$2" "${@:3}"
}

# append STREAM EVENT...: prints the token.
append() {
	local stream=$1
	shift
	api writer "/v1/streams/User/$stream/events" -H 'Content-Type: application/json' -d "{\"events\":[$(IFS=,; echo "$*")]}" | jq -r .token
}
created() { printf '{"type":"UserCreated","data":{"id":"%s","email":"%s@refold.test","isActive":true}}' "$1" "$1"; }

# rows MODEL/KEY TOKEN: the row that contains the token.
row() { api queries "/v1/read-models/$1" -H "Refold-Token: $2" -H "Refold-Wait: 30s"; }

pod() { kc get pods -l "app.kubernetes.io/instance=refold,app.kubernetes.io/component=$1" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
served() { api queries /v1/read-models/rm_users?limit=1 -o /dev/null -D - | sed -n 's/\r$//;s/^Refold-Projection-Version: //Ip'; }

# restricted NAME IMAGE COMMAND...: a pod that a restricted namespace lets in.
restricted() {
	local command
	command=$(printf '%s\n' "${@:3}" | jq -R . | jq -s .)
	jq -n --arg name "$1" --arg image "$2" --argjson command "$command" '{apiVersion: "v1", kind: "Pod", metadata: {name: $name}, spec: {restartPolicy: "Never", automountServiceAccountToken: false,
		securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: "RuntimeDefault"}}, terminationGracePeriodSeconds: 1,
		containers: [{name: "main", image: $image, command: $command, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: ["ALL"]}}}]}}'
}

load_start() { # NAME ARG...: a client in the cluster
	local name=$1
	shift
	restricted "$name" refold/load:1 /load run "$@" | kc apply -f - >/dev/null
	kc wait --for=condition=Ready "pod/$name" --timeout=60s >/dev/null
	eventually 60 eval "kc logs $name | grep -q runs"
}
load_end() { # NAME: what it says; fails where it saw what it should not
	kc exec "$1" -- /load stop
	eventually 180 eval "kc get pod $1 -o jsonpath='{.status.phase}' | grep -qE 'Succeeded|Failed'"
	kc logs "$1"
	[[ $(kc get pod "$1" -o jsonpath='{.status.phase}') == Succeeded ]]
}
load_forget() { kc delete pod "$1" --wait=false --ignore-not-found >/dev/null; }

# ---------------------------------------------------------------- the stages

stage_install() {
	stage "install, with the README's five lines"
	kc create secret generic refold-db --from-literal=uri="postgres://postgres@machine.lab:5432/refold?sslmode=disable" >/dev/null
	check "helm install" quietly helm install refold "$chart" -n "$ns" \
		--set database.existingSecret=refold-db \
		--set kafka.bootstrapServers=machine.lab:9092 \
		--set auth.mode=none \
		--set 'projectors.users.projections={rm_users}'
	check "helm test at once: it appends, waits with the token, reads" helm test refold -n "$ns" --timeout 2m
	check "every pod is ready" kc rollout status deployment -l app.kubernetes.io/instance=refold --timeout=120s
	check "the migration's Job is gone" not kc get job refold-migrate
	check "an append and its row, through the Services" append_and_query
	check "unknown values are refused and named" refused
}
append_and_query() {
	token=$(append ada "$(created ada)" '{"type":"UserLoggedIn","data":{}}')
	row rm_users/ada "$token" | jq -ce 'select(.logins == 1)'
}
refused() {
	local out
	! out=$(upgrade --set writer.replica=3) || return 1
	grep -o "additional properties 'replica' not allowed" <<<"$out"
}

stage_notes() {
	stage "NOTES.txt: its commands run as they stand"
	check "the three next commands" notes refold "$ns"
}
notes() { # RELEASE NAMESPACE
	{
		echo 'set -e; trap "kill \$(jobs -p)" EXIT' # the forwards end with the shell
		helm get notes "$1" -n "$2" | sed -n 's/^  \(helm test\|kubectl .*port-forward\|curl\)/\1/p' | sed '2s/$/\nsleep 3/'
	} >"$work/notes.sh"
	[[ $(wc -l <"$work/notes.sh") == 5 ]]
	bash "$work/notes.sh" >"$work/notes.out" || { cat "$work/notes.out"; return 1; }
	tail -n 1 "$work/notes.out" | jq -ce '.rows[0]'
}

stage_projectors() {
	stage "projectors are entries of a map"
	check "another entry, and an upgrade" upgrade --set 'projectors.stats.projections={user_stats}'
	check "it is a Deployment, and a consumer group that has caught up" stats_fed
	check "the entry taken away" upgrade --set projectors.stats=null
	check "its Deployment and CronJob are gone" eval "not kc get deployment/refold-projector-stats && not kc get cronjob/refold-rebuild-user-stats"
	check "the other one feeds on" append_one grace
}
stats_fed() {
	kc rollout status deployment/refold-projector-stats --timeout=60s
	token=$(append stats-1 "$(created stats-1)")
	row "user_stats?order=key" "$token" | jq -ce '.rows[-1] | select(.created >= 2)'
}
append_one() {
	token=$(append "$1" "$(created "$1")")
	row "rm_users/$1" "$token" | jq -ce "select(.id == \"$1\")"
}

stage_rolling() {
	stage "the release rolled back and forth under load: no failed request, no doubled event"
	check "load" load_start rolling
	check "upgrade to another image" upgrade --set image.tag=next --set projectors.users.replicas=2
	check "helm rollback" helm rollback refold -n "$ns" --wait --timeout 5m
	check "and forth again" upgrade --set image.tag=next
	check "nothing failed, nothing doubled" load_end rolling
	load_forget rolling
}

stage_kill() {
	stage "a pod of each role killed (SIGKILL) under load: every event has one effect"
	check "load that asks again" load_start killing -patient
	local role
	for role in writer queries projector; do check "the $role is killed, and is back" killed "$role"; done
	check "nothing lost, nothing doubled" load_end killing
	load_forget killing
}
killed() {
	local name before
	name=$(pod "$1")
	before=$(kc get pod "$name" -o jsonpath='{.status.containerStatuses[0].restartCount}')
	kill_container "$name"
	eventually 120 eval "[[ \$(kc get pod $name -o jsonpath='{.status.containerStatuses[0].restartCount}') -gt $before ]]"
	kc wait --for=condition=Ready "pod/$name" --timeout=120s
}
kill_container() { # POD: kill -9 of its process
	local id
	id=$(kc get pod "$1" -o jsonpath='{.status.containerStatuses[0].containerID}')
	lab run ctr -n k8s.io tasks kill -s SIGKILL "${id#containerd://}"
}

stage_drain() {
	stage "SIGTERM: the pod drains, ends with 0, and nobody notices"
	check "load" load_start draining
	local role
	for role in writer queries projector; do check "a $role is deleted" drained "$role"; done
	check "nothing failed, nothing doubled" load_end draining
	load_forget draining
	check "every budget lets a node take one pod" eventually 60 eval "kc get pdb -o json | jq -ce '[.items[] | {(.metadata.name): .status.disruptionsAllowed}] | select(length == 3 and all(.[]; all(. == 1))) | add'"
}
drained() { # a finalizer keeps the pod's last state to be looked at
	local name code
	name=$(pod "$1")
	kc patch pod "$name" --type=merge -p '{"metadata":{"finalizers":["refold.test/look"]}}' >/dev/null
	kc delete pod "$name" --wait=false >/dev/null
	eventually 60 eval "kc get pod $name -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}' | grep -q ."
	code=$(kc get pod "$name" -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}')
	kc patch pod "$name" --type=merge -p '{"metadata":{"finalizers":null}}' >/dev/null
	kc rollout status "deployment/$(deployment "$1")" --timeout=120s >/dev/null
	say "exit code $code"
	[[ $code == 0 ]]
}
deployment() { if [[ $1 == projector ]]; then echo refold-projector-users; else echo "refold-$1"; fi; }

stage_rebuild() {
	stage "a rebuild from the CronJob under load: killed once, resumed, promoted, rolled back"
	check "20000 accounts" fill fill 20000
	check "the template is slowed down, so that there is time to kill it" upgrade --set 'rebuild.extraArgs={--rate=500}' --set rebuild.auto=false
	version=$(served)
	check "load" load_start rebuilding
	check "kubectl create job --from=cronjob/refold-rebuild-rm-users r1" kc create job --from=cronjob/refold-rebuild-rm-users r1
	check "its progress in kubectl logs" eventually 60 eval "kc logs job/r1 | jq -ce 'select(.progress.done > 0) | {step, progress}' | tail -1 | grep ."
	check "a second Job fails fast, with exit code 4" second_job
	check "the first one in rebuild status" rebuild_status
	check "in its metrics" rebuild_metrics
	check "half of it is done" eventually 120 eval "done_by r1 | tail -1 | jq -ce 'select(.done * 2 > .total)'"
	check "the pod is killed" kill_job r1
	check "another pod takes over, and the Job completes" job_ends r1 Complete 400
	check "it went on where the killed one was" resumed r1
	check "version $((version + 1)) serves" eval "[[ \$(served) == $((version + 1)) ]]"
	check "rebuild rollback" kc exec deploy/refold-queries -- rebuild rollback rm_users
	check "version $version serves" eval "eventually 30 eval '[[ \$(served) == $version ]]'"
	check "nothing failed, nothing doubled" load_end rebuilding
	load_forget rebuilding
	check "the rows equal the log" kc exec deploy/refold-queries -- projector verify rm_users
	kc delete job r1 r2 --ignore-not-found >/dev/null
	check "the template at full speed again" upgrade --set rebuild.extraArgs=null
}
fill() { # NAME COUNT: accounts NAME-0 and on, two events each
	restricted "$1" refold/load:1 /load fill -prefix "$1" -lines "$2" | kc apply -f - >/dev/null
	eventually 180 eval "kc get pod $1 -o jsonpath='{.status.phase}' | grep -qE 'Succeeded|Failed'"
	kc logs "$1"
	kc delete pod "$1" --wait=false >/dev/null
}
rebuild_status() { kc exec deploy/refold-queries -- rebuild status rm_users | grep -F running; }
rebuild_metrics() {
	local name
	name=$(kc get pods -l job-name=r1 -o jsonpath='{.items[0].metadata.name}')
	kubectl get --raw "/api/v1/namespaces/$ns/pods/$name:9083/proxy/metrics" | grep '^refold_rebuild_progress_ratio'
}
second_job() {
	kc create job --from=cronjob/refold-rebuild-rm-users r2 >/dev/null
	job_ends r2 Failed 60
	kc get pods -l job-name=r2 -o jsonpath='{.items[0].status.containerStatuses[0].state.terminated.exitCode}' | grep -x 4 >/dev/null
	kc logs job/r2 | grep -v '^{' | sed -n 1p
}
done_by() { kc logs "${2-job/$1}" | jq -Rc 'fromjson? | .progress // empty | {done, total}'; } # JOB [POD]
resumed() { # JOB: of two pods the second neither began the load nor counted from zero
	local killed next last first
	killed=$(kc get pods -l "job-name=$1" --field-selector=status.phase=Failed -o jsonpath='{.items[0].metadata.name}')
	next=$(kc get pods -l "job-name=$1" --field-selector=status.phase=Succeeded -o jsonpath='{.items[0].metadata.name}')
	kc logs "$killed" | grep -F 'rebuild goes on' | grep -F '"step":"load"' >/dev/null
	! kc logs "$next" | grep -F 'rebuild goes on' | grep -F '"step":"load"' || return 1
	last=$(done_by "$1" "$killed" | tail -n 1)
	first=$(done_by "$1" "$next" | sed -n 1p)
	say "the killed pod last said $last, the next one first $first"
	jq -ne --argjson last "$last" --argjson first "$first" '$first.done >= $last.done' >/dev/null
}
kill_job() { kill_container "$(kc get pods -l "job-name=$1" --field-selector=status.phase=Running -o jsonpath='{.items[0].metadata.name}')"; }
job_ends() { # JOB CONDITION SECONDS: a Job that ends otherwise is not waited for
	eventually "$3" eval "kc get job $1 -o json | jq -re '.status.conditions[]? | select(.status == \"True\") | .type' | grep -xE 'Complete|Failed'"
	kc get job "$1" -o json | jq -re '.status.conditions[] | select(.status == "True") | .type' | grep -x "$2"
}

stage_definition() {
	stage "contracts by ConfigMap, and a changed definition"
	local files=() file
	for file in "$root"/schemas/events/User/*.avsc; do files+=(--set-file "contracts.events.User.$(basename "$file" | sed 's/\./\\./g')=$file"); done
	check "the contracts from values" upgrade "${files[@]}" --set-file "contracts.projections.users\.yaml=$root/schemas/projections/users.yaml"
	check "they are the same ones: no rebuild is due" eval "kc exec deploy/refold-queries -- rebuild plan rm_users | grep -F 'takes: none'"
	sed 's/^  lastSeen: .*/&\n  changes:       {count: UserEmailChanged}/' "$root/schemas/projections/users.yaml" >"$work/users.yaml"
	hash_of >"$work/before"
	check "a field more" upgrade --set-file "contracts.projections.users\.yaml=$work/users.yaml"
	check "helm says that a rebuild is due" eval "helm get notes refold -n $ns | grep -F 'The definition of rm_users has changed'"
	hash_of >"$work/after"
	check "its projector and the query service were rolled, the writer was not" rolled "$work/before" "$work/after"
	check "rebuild plan says it too" eval "kc exec deploy/refold-queries -- rebuild plan rm_users | grep -E 'changes +backfill'"
	check "asked for (rebuild.auto), it is rebuilt" upgrade --set rebuild.auto=true
	check "rows have the field" eventually 120 eval "api queries /v1/read-models/rm_users/ada | jq -ce 'select(.changes == 0)'"
	kc create configmap user-events --from-file="$root/schemas/events/User" >/dev/null
	kc create configmap definitions --from-file="$work/users.yaml" >/dev/null
	check "the same contracts by ConfigMaps of one's own" upgrade --set contracts.events=null --set contracts.projections=null \
		--set contracts.existing.events.User=user-events --set contracts.existing.projections=definitions
	check "no rebuild is due, and events flow" contracts_hold frances
	lab image acme/refold:1 "${programs[@]}" "$root/schemas/events=/contracts/events" "$work/users.yaml=/contracts/projections/users.yaml" -- -entrypoint /usr/local/bin/writer -env PATH=/usr/local/bin
	check "the same in an image of one's own" upgrade --set image.repository=acme/refold --set-string image.tag=1 --set contracts.path=/contracts \
		--set contracts.existing.events=null --set contracts.existing.projections=null
	check "no rebuild is due, and events flow" contracts_hold hedy
	kc delete configmap user-events definitions >/dev/null
}
contracts_hold() { # STREAM
	kc exec deploy/refold-queries -- rebuild plan rm_users | grep -F 'takes: none'
	append_one "$1"
}
rolled() { # BEFORE AFTER
	{ diff "$1" "$2" || true; } | sed -n 's/^> \(.*\) .*/\1/p' | paste -sd' ' | grep -x 'refold-projector-users refold-queries'
}
hash_of() { kc get deployments -o json | jq -r '.items[] | "\(.metadata.name) \(.spec.template.metadata.annotations["refold.dev/contracts"])"' | sort; }

stage_policy() {
	stage "NetworkPolicy: strangers do not get in, and pods do not get out"
	local writer
	writer=$(kc get pod "$(pod writer)" -o jsonpath='{.status.podIP}')
	restricted stranger refold/load:1 /load idle | kubectl -n strangers apply -f - >/dev/null
	restricted guest refold/load:1 /load idle | kc apply -f - >/dev/null
	restricted inmate refold/load:1 /load idle | jq '.metadata.labels = {"app.kubernetes.io/name": "refold", "app.kubernetes.io/instance": "refold"}' | kc apply -f - >/dev/null
	kubectl -n strangers wait --for=condition=Ready pod/stranger --timeout=60s >/dev/null
	kc wait --for=condition=Ready pod/guest pod/inmate --timeout=60s >/dev/null
	sleep 2 # the lab's policies cover a new pod after up to a second
	check "a pod of the release's namespace reaches the API" reaches "$ns" guest "$writer:8080"
	check "a pod of another namespace does not" shut_out strangers stranger "$writer:8080"
	check "nor the admin port" shut_out strangers stranger "$writer:9080"
	check "what is labelled as refold's reaches Postgres" reaches "$ns" inmate machine.lab:5432
	check "and nothing else: not the machine's other ports" shut_out "$ns" inmate machine.lab:8090
	check "which others reach" reaches strangers stranger machine.lab:8090
	check "who is let in by values gets in" upgrade --set-json 'networkPolicy.apiFrom=[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"strangers"}}}]'
	sleep 2
	writer=$(kc get pod "$(pod writer)" -o jsonpath='{.status.podIP}')
	check "to the API" reaches strangers stranger "$writer:8080"
	check "helm test gets in still" helm test refold -n "$ns" --timeout 2m
	check "and the others are out" shut_out "$ns" guest "$writer:8080"
	check "as before" upgrade --set-json 'networkPolicy.apiFrom=[]'
	kubectl -n strangers delete pod stranger --wait=false >/dev/null
	kc delete pod guest inmate --wait=false >/dev/null
}
reaches() { kubectl -n "$1" exec "$2" -- /load reach "$3"; } # NAMESPACE POD ADDRESS
shut_out() {
	local status=0
	reaches "$@" >/dev/null 2>&1 || status=$?
	[[ $status == 3 ]]
}

stage_hpa() {
	stage "HorizontalPodAutoscaler: the writer follows its load"
	check "autoscaling on" upgrade --set writer.autoscaling.enabled=true --set writer.autoscaling.targetCPU=25 --set writer.autoscaling.maxReplicas=3
	check "load" load_start scaling -streams 24 -pause 1ms
	check "more pods" eventually 120 eval "[[ \$(kc get deployment refold-writer -o jsonpath='{.status.readyReplicas}') -gt 2 ]] && kc get hpa refold-writer --no-headers"
	check "an upgrade leaves the number alone" number_left
	check "nothing failed, nothing doubled" load_end scaling
	load_forget scaling
	check "fewer again" eventually 180 eval "[[ \$(kc get deployment refold-writer -o jsonpath='{.status.replicas}') == 2 ]] && kc get hpa refold-writer --no-headers"
	check "autoscaling off" upgrade --set writer.autoscaling.enabled=false
}
number_left() { # what the HorizontalPodAutoscaler decided stays when Helm rolls the pods
	local before after
	before=$(kc get deployment refold-writer -o jsonpath='{.spec.replicas}')
	quietly upgrade --set writer.podAnnotations.again=yes
	after=$(kc get deployment refold-writer -o jsonpath='{.spec.replicas}')
	say "$before pods before, $after after"
	[[ $before -gt 2 && $after == "$before" ]]
}

stage_lag() {
	stage "the lag that autoscalers read is the one that refold tells"
	check "no lag" eventually 60 eval "[[ \$(lag) == '0 0' ]] && lag"
	check "the projector is frozen, and a history appended" frozen
	check "group refold.rm_users, and /v1/projections" eventually 60 eval "lag | grep -x '10000 10000'"
	check "it goes on, and catches up" thawed
}
lag() { # of the group without members, and of the API
	echo "$("$work/lag" refold.rm_users) $(api queries /v1/projections | jq '[.. | objects | select(.name? == "rm_users") | .versions[] | select(.state == "active") | .lag.events] | add')"
}
frozen() { # freezes its processes, as a busy node would
	freezer pause
	fill history 5000
}
thawed() {
	freezer resume
	eventually 120 eval "[[ \$(lag) == '0 0' ]]"
}
freezer() { # pause|resume
	local id
	for id in $(kc get pods -l refold.dev/projector=users -o jsonpath='{.items[*].status.containerStatuses[0].containerID}'); do
		lab run ctr -n k8s.io tasks "$1" "${id#containerd://}"
	done
}

stage_keda() {
	stage "KEDA: projectors follow the lag"
	if [[ ! -x ${KEDA_BIN-}/operator || ! -x ${KEDA_BIN-}/adapter ]]; then
		say "left out: KEDA_BIN names no folder with KEDA's operator and adapter (test/kube/keda.sh builds them from the module proxy)"
		return
	fi
	. "$here/keda.sh"
	check "KEDA is there" keda_install
	check "autoscaling on, for a projector with little CPU" upgrade --set projectors.users.autoscaling.enabled=true --set projectors.users.autoscaling.maxReplicas=3 \
		--set projectors.users.autoscaling.lagThreshold=6000 --set projectors.users.resources.requests.cpu=10m --set projectors.users.resources.limits.cpu=20m
	check "KEDA takes the ScaledObject" kc wait --for=condition=Ready scaledobject/refold-projector-users --timeout=90s
	check "no lag, one pod" eventually 180 projectors 1
	check "a history is appended" fill scaled 200000
	check "KEDA reads a lag" eventually 60 eval "keda_lag | grep -vx 0"
	check "three pods" eventually 180 projectors 3
	check "with their CPU back they catch up" upgrade --set projectors.users.resources.limits.cpu=null
	check "no lag" eventually 180 eval "[[ \$(lag) == '0 0' ]]"
	check "one pod again" eventually 420 projectors 1
	check "autoscaling off" upgrade --set projectors.users.autoscaling.enabled=false
	check "KEDA is gone" keda_remove
}
projectors() { # COUNT: so many are wanted, and ready
	local now
	now=$(kc get deployment refold-projector-users -o json | jq -r '"\(.spec.replicas) wanted, \(.status.replicas) there, \(.status.readyReplicas // 0) ready"')
	say "$now; $(kc get hpa keda-hpa-refold-projector-users --no-headers)"
	[[ $now == "$1 wanted, $1 there, $1 ready" ]]
}

stage_secure() {
	stage "TLS everywhere: Postgres by CloudNativePG's secrets, Kafka by a service binding with SASL_SSL, APIs by certificate and bearer token"
	local s=$work/lab
	kubectl -n secure create secret generic pg-app --from-literal=uri="postgresql://postgres@machine.lab:5432/secure" --from-literal=username=postgres >/dev/null
	kubectl -n secure create secret generic pg-ca --from-file=ca.crt="$s/ca.crt" >/dev/null
	kubectl -n secure create secret generic kafka-binding --type=servicebinding.io/kafka --from-literal=type=kafka --from-literal=bootstrapServers=machine.lab:9093 \
		--from-literal=securityProtocol=SASL_SSL --from-literal=saslMechanism=PLAIN --from-literal=username=refold --from-file=password="$s/kafka.password" --from-file=ssl.truststore.crt="$s/ca.crt" >/dev/null
	kubectl -n secure create secret generic api-tls --from-file=tls.crt="$s/api.crt" --from-file=tls.key="$s/api.key" --from-file=ca.crt="$s/ca.crt" >/dev/null
	kubectl -n secure create secret generic probe-token --from-file=token="$s/probe.token" >/dev/null
	check "helm install --wait" quietly helm install secure "$chart" -n secure --wait --timeout 5m -f "$here/secure.yaml"
	check "helm test, with certificate and token" helm test secure -n secure --timeout 2m
	check "NOTES.txt: its commands run as they stand" eval "TOKEN=\$(cat '$s/query.token') notes secure secure"
	check "without a token: 401" eval "[[ \$(secure_api none) == 401 ]]"
	check "with a token that may only query: 403" eval "[[ \$(secure_api query.token) == 403 ]]"
	check "in plain text: no answer" eval "! lab run curl -sS --max-time 5 http://secure-refold-writer.secure.svc.cluster.local:8080/v1/categories | grep -F name"
	check "sessions of Postgres are encrypted" eval "psql 'postgres://postgres@127.0.0.1:$POSTGRES_PORT/secure' -Atc \"select count(*) filter (where ssl), count(*) filter (where not ssl) from pg_stat_ssl join pg_stat_activity using (pid) where datname = 'secure' and application_name like 'refold%'\" | grep -E '^[1-9][0-9]*\\|0$'"
	check "uninstalled" helm uninstall secure -n secure --wait
}
secure_api() { # TOKEN-FILE|none: the status of an append
	local header=()
	[[ $1 == none ]] || header=(-H "Authorization: Bearer $(cat "$work/lab/$1")")
	lab run curl -sS -o /dev/null -w '%{http_code}' --cacert "$work/lab/ca.crt" "${header[@]}" -H 'Content-Type: application/json' \
		-d "{\"events\":[$(created mallory)]}" https://secure-refold-writer.secure.svc.cluster.local:8080/v1/streams/User/mallory/events
}

stage_beside() {
	stage "two releases in one namespace, the second with a secret that comes late"
	psql "postgres://postgres@127.0.0.1:$POSTGRES_PORT/postgres" -qc "create database beside"
	check "helm install waits for the secret" late_secret
	check "helm test of the second" helm test beside -n "$ns" --timeout 2m
	check "and of the first" helm test refold -n "$ns" --timeout 2m
	check "each has a log of its own" eval "psql 'postgres://postgres@127.0.0.1:$POSTGRES_PORT/beside' -Atc 'select count(*) from refold.event' | grep -x 1"
	check "the second's schema registry takes the place of the first's own" upgrade --set "schemaRegistry.url=http://beside-fold-writer.$ns.svc.cluster.local:8080/schema-registry"
	check "events flow" append_one mary
	local definitions=$work/users.yaml # of the stage before, if it ran
	[[ -f $definitions ]] || definitions=$root/schemas/projections/users.yaml
	check "pods take their event schemas from it" upgrade --set 'contracts.registry.categories={User}' --set contracts.path=null --set-file "contracts.projections.users\.yaml=$definitions"
	check "no rebuild is due, and events flow" contracts_hold evelyn
	check "the second is uninstalled" helm uninstall beside -n "$ns" --wait
	check "the first goes on, with its schema registry gone" append_one katherine
	kc delete secret beside-db >/dev/null
}
late_secret() {
	quietly helm install beside "$chart" -n "$ns" --wait --timeout 5m --set nameOverride=fold --set prefix=beside --set database.existingSecret=beside-db \
		--set kafka.bootstrapServers=machine.lab:9092 --set auth.mode=none --set 'projectors.users.projections={rm_users}' --set writer.replicas=1 --set queries.replicas=1 &
	eventually 60 eval "kc get pods -l app.kubernetes.io/instance=beside -o jsonpath='{..waiting.reason}' | grep -F CreateContainerConfigError"
	kc create secret generic beside-db --from-literal=uri="postgres://postgres@machine.lab:5432/beside?sslmode=disable" >/dev/null
	wait $!
}

stage_uninstall() {
	stage "uninstall leaves nothing"
	check "helm uninstall" helm uninstall refold -n "$ns" --wait
	check "no object is left but what was there before" eventually 90 nothing_left
	check "what was written stays: the log" eval "psql 'postgres://postgres@127.0.0.1:$POSTGRES_PORT/refold' -Atc 'select count(*) from refold.event' | grep -v '^0$'"
	check "and the topics" eventually 10 eval "'$work/lag' refold.rm_users"
}
nothing_left() { # of any kind, whatever its labels
	local kinds left
	kinds=$(kubectl api-resources --verbs=list --namespaced -o name | grep -v -e events -e metrics.k8s.io | paste -sd,)
	left=$(kc get "$kinds" -o name | sort | paste -sd' ')
	say "$left"
	[[ $left == 'configmap/kube-root-ca.crt secret/refold-db serviceaccount/default' ]]
}

# ---------------------------------------------------------------- everything in order

main() {
	(($#)) || set -- "${all[@]}"
	prepare
	local name
	for name; do
		declare -F "stage_$name" >/dev/null || die "there is no stage $name: ${all[*]}"
		"stage_$name"
	done
	say
	if ((failures)); then say "$failures checks FAILED"; else say "all checks passed"; fi
	((failures == 0))
}

main "$@"
