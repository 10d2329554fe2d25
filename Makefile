# Everything that a person or a machine does with this repository. `make` alone
# lists the targets. What is missing is installed on the way, saying so.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
RUNSC   := v0.0.0-20260905035102-160fafc42237
DEBIAN  := python3 curl chromium postgresql:/usr/lib/postgresql/*/bin/postgres etcd-server:/usr/bin/etcd iproute2:/usr/bin/ip,/usr/sbin/ip,/sbin/ip strace nodejs:/usr/bin/node,/usr/local/bin/node npm:/usr/bin/npm,/usr/local/bin/npm
FIPS    := v1.0.0 v1.26.0
LINT     = go tool -modfile=$(CURDIR)/tools/go.mod golangci-lint run --config $(CURDIR)/.golangci.yml
SQL      = $(shell go list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./... | grep 'creto.dev/internal/db/dbtest' | cut -d ' ' -f 1 | grep -v /cmd/)
NESTED  := $(patsubst %/go.mod,%,$(wildcard bench/go.mod examples/*/go.mod))

# FUZZTIME and COUNT stretch `make torture`.
FUZZTIME := 1m
COUNT    := 20

# CRETO_TEST_REQUIRE=1 turns tests that skip for want of an engine into failures.
export CRETO_TEST_REQUIRE

# say prints what a step does.
say = @printf '==> %s\n'

# in-nested runs a command in each nested module.
in-nested = @for m in $(NESTED); do printf '    %s\n' "$$m"; (cd $$m; $(1)); done

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## compile bin/creto and the example's binaries
	$(say) 'bin/creto $(VERSION), and bin/soft-passkey, bin/shop-agent, bin/shop-api, bin/shop-model of examples'
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/creto ./cmd/creto
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/soft-passkey ./examples/soft-passkey
	@cd examples/shop-bot; export CGO_ENABLED=0; \
		go build -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/shop-agent ./agent; \
		go build -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/shop-api ./shop; \
		go build -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/shop-model ./model

setup: runsc debian llamacpp ## install what the demo and the tests use

runsc: ## install gVisor's runsc, if it is missing
	$(say) 'gVisor, which isolates agents'
	@scripts/install-runsc $(RUNSC)

debian: ## install Debian packages that tests use, if they are missing
	$(say) 'Debian packages for the tests'
	@scripts/install-debian '$(subst $() $(),' ',$(strip $(DEBIAN)))'

llamacpp: debian ## install llama.cpp's library for the tests into .cache, if it is missing
	$(say) 'llama.cpp, which providers are tested against'
	@scripts/install-llamacpp .cache/llamacpp

demo: build runsc ## the whole path on real input, ending with an offline verification
	$(say) 'creto demo'
	@bin/creto demo --approve=auto

test: setup check ## check, then every test with -race, nested modules, benchmarks once
	$(say) 'tests, with the race detector'
	@CGO_ENABLED=1 go test -race -timeout 15m ./...
	$(say) 'what keeps a database, once more on PostgreSQL'
	@CRETO_TEST_DB=postgres go test -timeout 15m $(SQL)
	$(say) 'benchmarks, once'
	@go test -run '^$$' -bench . -benchtime 1x ./...
	@$(MAKE) fips
	$(say) 'nested modules: build, test, benchmarks once'
	$(call in-nested,go build ./... && go test -bench . -benchtime 1x ./...)

fips: ## test the cryptography with each frozen Go Cryptographic Module, in FIPS 140-3 mode
	$(say) 'FIPS 140-3 mode (docs/fips.md)'
	@for v in $(FIPS); do GOFIPS140=$$v GODEBUG=fips140=on CRETO_TEST_FIPS=$$v go test ./pqc/...; done
	@GODEBUG=fips140=only go test -run '^(TestProvider|TestSelfTest|TestCompositeVector)$$' ./pqc/localpqc

check: fmt vet lint proto tidy ## everything that reads the source without running it

fmt:
	$(say) 'gofmt'
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then printf 'not formatted; run gofmt -w on:\n%s\n' "$$unformatted"; exit 1; fi

vet:
	$(say) 'go vet'
	@go vet ./...
	$(call in-nested,go vet ./...)

lint:
	$(say) 'golangci-lint, pinned in tools/go.mod (compiled on first use: some minutes)'
	@$(LINT) ./...
	$(call in-nested,$(LINT) ./...)

proto:
	$(say) 'protobuf: rules, compatibility, generated code; buf is pinned in tools/proto/go.mod (compiled on first use: a minute)'
	@scripts/check-proto

generate: ## write internal/gen again from proto
	$(say) 'internal/gen from proto'
	@go tool -modfile=tools/proto/go.mod buf generate

tidy:
	$(say) 'go.mod is tidy'
	@scripts/check-tidy
	$(call in-nested,$(CURDIR)/scripts/check-tidy)

torture: setup ## the long form: tests $(COUNT) times over, each fuzz target for $(FUZZTIME)
	$(say) 'tests, $(COUNT) times, shuffled, with the race detector'
	@CRETO_TORTURE=1 CGO_ENABLED=1 go test -race -shuffle on -count $(COUNT) -timeout 4h ./...
	$(say) 'the audit log, killed 200 times'
	@scripts/kill-log 200
	$(say) 'each fuzz target for $(FUZZTIME)'
	@scripts/fuzz $(FUZZTIME)
	$(call in-nested,$(CURDIR)/scripts/fuzz $(FUZZTIME))

bench: ## run every comparison with peers; results in out/bench
	$(say) 'benchmarks of every subject, into out/bench'
	@cd bench; go run .

bench-%: ## run one, as in make bench-gate
	$(say) 'benchmarks of $*, into out/bench/$*.json'
	@cd bench; go run . -subject $*

train-injection: ## make the weights of the prompt-injection detector again from the sets in DATA
	$(say) 'inference/injection/weights.bin from $(or $(DATA),DATA, which is not said)'
	@go run ./inference/injection/train -data '$(DATA)' -out inference/injection/weights.bin

eval-injection: ## recall and false positives of the prompt-injection detector on the sets in DATA
	$(say) 'prompt injection: recall and false positives, cross-validated'
	@go run ./inference/injection/train -eval -data '$(DATA)'

vulncheck: ## look for known vulnerabilities, where the database can be reached
	$(say) 'govulncheck, pinned in tools/go.mod'
	@go tool -modfile=tools/go.mod govulncheck ./...

clean: ## remove what was built
	$(say) 'removing bin, out and .cache'
	@rm -rf bin out .cache

uninstall: ## remove all that make installed, saying what; DATA=yes also removes agents and audit log
	$(say) 'uninstalling'
	@scripts/uninstall $(RUNSC)

.PHONY: train-injection eval-injection help build setup runsc debian llamacpp demo test fips check fmt vet lint proto generate tidy torture bench vulncheck clean uninstall
