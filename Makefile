# Run "make help" for the list.

# The distribution's Go may be older than what go.mod names; it then fetches the exact one.
export GOTOOLCHAIN := auto
# Nothing in the released binary needs C.
export CGO_ENABLED := 0

DATA_DIR ?= /var/lib/pinnace
KERNELS  := $(DATA_DIR)/kernels
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
INIT     := cmd/pinnace/initbin/files/pinnace-init
HOLDER   := cmd/pinnace/initbin/files/pinnace-holder
TOOL     := go tool -modfile=tools/go.mod
PKGS     ?= ./...
# One package after the other: emulated guests that compete for two cores run into time-outs.
TIMEOUT  ?= 45m

# What the tests with real VMs need to know. Some make mount namespaces, which takes a mount at "/".
E2E      := scripts/with-own-root.sh env PINNACE_E2E=1 PINNACE_KERNELS=$(KERNELS) PINNACE_BIN=$(CURDIR)/bin/pinnace \
	PINNACE_FSCK_EROFS=$(DATA_DIR)/erofs-utils/fsck.erofs

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-18s %s\n", $$1, $$2 }'

.PHONY: build
build: deps-build bin/pinnace ## build bin/pinnace, one static file with the guest's init in it

.PHONY: bin/pinnace
bin/pinnace: $(INIT) $(HOLDER)
	go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/pinnace ./cmd/pinnace

.PHONY: $(INIT)
$(INIT):
	go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $(INIT) ./cmd/pinnace-init

.PHONY: $(HOLDER)
$(HOLDER):
	go build -trimpath -buildvcs=false -ldflags '-s -w' -o $(HOLDER) ./cmd/pinnace-holder

.PHONY: demo
demo: deps-demo kernel build ## show the whole path on this machine, as root; KEEP=1 leaves it running
	@examples/demo.sh

.PHONY: test
test: deps-test kernel erofs-utils build ## all tests, with real VMs: unit, script and end-to-end (as root)
	$(E2E) go test -count=1 -p 1 -timeout $(TIMEOUT) $(PKGS)

.PHONY: e2e
e2e: deps-test kernel build ## the end-to-end tests only
	$(E2E) go test -count=1 -v -timeout $(TIMEOUT) ./test/e2e/...

.PHONY: race
race: ## the tests that need no root, under the race detector
	CGO_ENABLED=1 go test -race $(PKGS)

.PHONY: lint
lint: deps-build ## formatting, linters (pinned in tools/go.mod), the API description
	$(TOOL) golangci-lint fmt --diff
	$(TOOL) golangci-lint run
	$(TOOL) buf lint
	$(TOOL) buf breaking --against $(RELEASED_API)

# What clients and servers out there speak: the two may be one version apart.
RELEASED_API := proto/released.binpb
.PHONY: released-api
released-api: ## at a release: note the API as what later ones must not break
	$(TOOL) buf build --exclude-source-info -o $(RELEASED_API)

.PHONY: fmt
fmt: ## format the code
	$(TOOL) golangci-lint fmt
	$(TOOL) buf format -w

.PHONY: generate
generate: ## write what is generated: API code and its description, the manifest's reference page
	$(TOOL) buf generate
	go generate ./...

.PHONY: check-generated
check-generated: ## fail when what is generated is not what is committed
	@before=$$(git status --porcelain -- internal docs); $(MAKE) -s generate; \
	after=$$(git status --porcelain -- internal docs); \
	if [ "$$before" != "$$after" ]; then \
		echo "generated files differ from what is committed; run: make generate" >&2; git status --short -- internal docs >&2; exit 1; fi

.PHONY: bench
bench: build ## benchmarks; those with a gate fail when it is not met
	PINNACE_BIN=$(CURDIR)/bin/pinnace go test -run '^$$' -bench . -benchmem $(PKGS)

.PHONY: bench-control
bench-control: ## the control plane against the disk's own rate in the same run; fails where a gate is not met
	@mkdir -p bin
	@PINNACE_BENCH_CONTROL=1 go test -count=1 -p 1 -v -timeout 30m -run 'TestBench(Control|Scheduler|Agents)$$' ./internal/eventlog/sqlite ./internal/server > bin/bench-control.out 2>&1; \
	status=$$?; grep -vE '^ *(=== |--- |PASS$$|FAIL$$|ok )|_test.go:[0-9]+: .*, the gate is ' bin/bench-control.out; exit $$status

ROUNDS ?= 5
.PHONY: bench-proxy
bench-proxy: ## the proxy against HAProxy, with one core each for them and for the load; fails below the gates
	@scripts/deps.sh bench
	go test -c -o bin/proxy.test ./internal/proxy
	cd internal/proxy && taskset -c 0 env PINNACE_BENCH_PROXY=1 ROUNDS=$(ROUNDS) ../../bin/proxy.test -test.run 'TestAgainstHAProxy$$' -test.v -test.timeout 30m

BOOTS ?= 10
.PHONY: bench-vm
bench-vm: deps-test kernel build ## what a microVM costs, to a boot with an init that does nothing; fails below the gates
	$(E2E) PINNACE_BENCH_VM=1 PINNACE_BENCH_BOOTS=$(BOOTS) go test -v -count=1 -timeout 60m -run 'TestBenchVM$$|TestBenchAdopt$$' ./test/e2e

FLOOD ?= 60
.PHONY: bench-hostile
bench-hostile: deps-test kernel build ## a guest floods the host for FLOOD seconds; fails when the agent grows or a neighbour suffers
	$(E2E) PINNACE_BENCH_HOSTILE=$(FLOOD) go test -v -count=1 -timeout 30m -run 'TestHostileGuest$$' ./test/e2e

BENCH_DIR ?= /var/tmp/pinnace-bench
.PHONY: bench-images
bench-images: ## pull a 400 MB image by Pinnace and by other tools, in turn, and compare (as root)
	scripts/deps.sh bench
	bench/images/peers.sh $(BENCH_DIR)
	bench/images/trees.sh $(BENCH_DIR)/trees
	CGO_ENABLED=0 go build -trimpath -o $(BENCH_DIR)/bench-images ./bench/images
	go test -run '^$$' -bench 'Decode' -benchtime 10x ./internal/inflate
	go test -run '^$$' -bench 'Merge' -benchtime 20x ./internal/image
	$(BENCH_DIR)/bench-images -dir $(BENCH_DIR) -rounds $(ROUNDS)

FUZZTIME     ?= 30s
DIFFERENTIAL ?= 1000000
.PHONY: fuzz
fuzz: ## every fuzz test for FUZZTIME each, DIFFERENTIAL generated manifests, every evil redirect
	@for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' internal cmd); do \
		for name in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' $$f); do \
			echo "== $$name ($$(dirname $$f))"; go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) ./$$(dirname $$f) || exit 1; \
		done; done
	PINNACE_MATRIX=all go test -run 'TestEvilRedirects$$' ./internal/registry
	PINNACE_DIFFERENTIAL=$(DIFFERENTIAL) go test -timeout 0 -run 'TestDifferential$$' ./internal/manifest ./internal/server

.PHONY: workloads
workloads: deps-test kernel build ## run Debian's servers and databases as microVMs, and have each ended in its own way (as root)
	@scripts/deps.sh workloads
	$(E2E) PINNACE_WORKLOADS=1 go test -count=1 -v -timeout 60m -run 'TestWorkloads|TestDatabases|TestDebianImages' ./test/e2e

N      ?= 10
KILLS  ?= 500
CYCLES ?= 300
.PHONY: torture
torture: deps-test kernel build ## the tests that kill things, N times over, KILLS kills of a pull, CYCLES starts and stops
	PINNACE_IMAGE_KILLS=$(KILLS) go test -count=1 -timeout 0 -v -run 'Kill|Step|Shared' ./internal/image ./cmd/pinnace
	$(E2E) go test -count=$(N) -timeout 0 -run 'Kill|Crash' -skip 'TestKillAgent|TestKillServer' $(PKGS)
	$(E2E) PINNACE_KILLS=$(N) go test -count=1 -timeout 0 -run TestKillAgent -v ./internal/agent ./test/e2e
	$(E2E) PINNACE_CYCLES=$(CYCLES) go test -count=1 -timeout 0 -run TestCycles -v ./test/e2e
	PINNACE_SERVER_KILLS=$(N) go test -count=1 -timeout 0 -v -run 'TestKillServer$$|TestKillServerAtPoints$$|TestFailOver$$' ./internal/server
	$(E2E) PINNACE_TORTURE=1 go test -count=1 -timeout 0 -v -run 'KillAtPoints|TestTamper$$|TestFight|TestSyncError' ./internal/eventlog/...

.PHONY: bare
bare: ## make demo and make test in a bare Debian (as root; needs debootstrap)
	test/bare.sh

.PHONY: kernel
kernel: ## unpack Debian's cloud kernel, the default, into DATA_DIR/kernels, installing nothing
	scripts/get-kernel.sh $(DATA_DIR)

.PHONY: kernel-built
kernel-built: ## build a guest kernel that boots in half the time from Debian's source; "pinnace kernel use" chooses it
	@scripts/deps.sh kernel
	scripts/build-kernel.sh $(DATA_DIR)

.PHONY: erofs-utils
erofs-utils: ## unpack a new fsck.erofs into DATA_DIR/erofs-utils, installing nothing
	scripts/get-erofs-utils.sh $(DATA_DIR)

LAYOUT ?= bench/images/layout
.PHONY: compare-image
compare-image: deps-test kernel build ## compare an image, LAYOUT=directory[ TAG=name], with umoci and with what a guest sees (as root)
	PINNACE_LAYOUT=$(abspath $(LAYOUT)) PINNACE_LAYOUT_TAG=$(TAG) $(E2E) go test -count=1 -v -timeout $(TIMEOUT) -run 'TestImageEqualsUmoci|TestGuestSeesTheTree/image' ./internal/image ./internal/vm/vmtest

.PHONY: deps-build deps-demo deps-test
deps-build deps-demo deps-test:
	@scripts/deps.sh $(patsubst deps-%,%,$@)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin $(INIT) $(HOLDER)
