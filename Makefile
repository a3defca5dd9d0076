# refold: `make run` to try it, `make test` to prove it.

# golangci-lint comes from the module proxy as a program of its own, so that its
# dependencies stay out of go.mod. The first build takes two minutes.
LINT_VERSION := v2.15.0
BIN          := $(CURDIR)/.cache/bin
LINT         := $(BIN)/golangci-lint-$(LINT_VERSION)

SHELL := bash

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PROGRAMS := $(wildcard writer projector rebuild)

# Packages in which goroutines share memory: their tests run with the race
# detector, which costs several times the CPU, the others without.
RACE := $(addprefix ./,$(wildcard pkg/postgres pkg/registry pkg/kafka pkg/eventstore pkg/aggregate pkg/relay pkg/readmodel pkg/engine pkg/query pkg/api pkg/reaction pkg/service))

# All packages share one Postgres and one Kafka, which are started for the run
# unless DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS name others. Suites that break
# their servers start their own. More packages at a time than there are cores
# make tests with deadlines fail.
SERVERS    := go run ./pkg/devstack/run
PARALLEL   ?= 2
TEST_FLAGS ?= -count=1 -timeout=20m

.DEFAULT_GOAL := build
.PHONY: build run test suites check generate lint bench torture rounds chart kube clean

## build: compile the programs into bin/
build:
	@mkdir -p bin
	go build -trimpath -ldflags "-X github.com/refoldhq/refold/pkg/service.version=$(VERSION)" -o bin/ $(addprefix ./,$(PROGRAMS))

## run: the whole platform in one process, for trying it out (ARGS="--data-dir .cache/dev")
run:
	@mkdir -p bin
	@go build -o bin/writer ./writer
	@exec bin/writer dev $(ARGS)

## test: everything, on real servers
test:
	$(SERVERS) $(MAKE) --no-print-directory suites

# The suites under test/ start many processes, so one of them at a time. All run,
# whatever became of those before.
suites:
	@status=0; \
	go test -race -p $(PARALLEL) $(TEST_FLAGS) $(RACE) || status=1; \
	go test -p $(PARALLEL) $(TEST_FLAGS) $$(go list $(patsubst %,./%/...,$(wildcard pkg writer projector rebuild schemas)) | grep -vFx "$$(go list $(RACE))") || status=1; \
	go test -p 1 $(TEST_FLAGS) ./test/... || status=1; \
	(cd test/chart && go test $(TEST_FLAGS) ./...) || status=1; \
	exit $$status

## check: format, vet, linters, import order, contracts
check: lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go run ./writer lint --schemas schemas
	go run ./writer lint --schemas test/githistory
	go run ./test/e2e/ledger/writing lint
	go run ./projector test
	go run ./test/e2e/ledger/projecting test
	go run ./writer schema go User --schemas schemas --package user --out schemas/user/events.go --check
	go run ./test/e2e/ledger/writing schema go --package ledger --out test/e2e/ledger/events.go --check
	go mod verify >/dev/null

## generate: write the Go structs of the contracts (after a change of events/)
generate:
	go run ./writer schema go User --schemas schemas --package user --out schemas/user/events.go
	go run ./test/e2e/ledger/writing schema go --package ledger --out test/e2e/ledger/events.go

lint: $(LINT)
	$(LINT) run ./...

$(LINT):
	@mkdir -p $(BIN)
	GOBIN=$(BIN) GOFLAGS= go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	@mv $(BIN)/golangci-lint $(LINT)

## bench: measure beside limits and peers, into test/bench/RESULTS.md (an hour; ARGS="-only append,query" for some of it)
bench:
	cd test/bench && go run . $(ARGS)

## torture: faults at random under load for DURATION, then 200 graceful stops, on three brokers and servers of its own
DURATION ?= 10m
torture:
	REFOLD_TORTURE=$(DURATION) REFOLD_BROKERS=3 REFOLD_STOPS=100 go test -count=1 -timeout=0 -v ./test/torture/ $(ARGS)

## rounds: append and read with the token ROUNDS times on two replicas, while partitions move and versions flip
ROUNDS ?= 10000
rounds:
	REFOLD_ROUNDS=$(ROUNDS) go test -count=1 -timeout=0 -v -run TestReadYourWritesOnTwoReplicas ./pkg/query

## chart: make the chart's README and schema from its values, and its golden renders
chart:
	cd test/chart && go run . && go test -run Golden . -update

## kube: prove the chart on the cluster that $$KUBE_LAB/kube.sh starts (ARGS names stages; all of them are kept in last-run.txt)
kube:
	@mkdir -p .cache
	@test/kube/run.sh $(ARGS) | tee .cache/kube.txt; status=$${PIPESTATUS[0]}; $(if $(ARGS),,cp .cache/kube.txt test/kube/last-run.txt;) exit $$status

## clean: remove what was built
clean:
	rm -rf bin .cache
