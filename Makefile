# weft: `make help` lists the targets. Everything that is needed and not in Go's module
# cache (Envoy, the reference CNI plugins, iptables for its tests) is put into bin/.
SHELL       := /bin/bash
export CGO_ENABLED := 0
PROGRAMS    := weft weftd weft-cni weft-node
CNI_PLUGINS := main/bridge main/ptp main/loopback ipam/host-local meta/bandwidth meta/portmap
CNI_MODULE  := github.com/containernetworking/plugins/plugins
GOBUILD     := go build -trimpath -ldflags "-s -w"
FUZZTIME    ?= 60s

.PHONY: help build images demo test e2e kind kubernetes lint bench golden fuzz clean tools FORCE
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(PROGRAMS:%=bin/%) bin/samples bin/testapp ## the programs, in bin/

demo: build bin/envoy bin/cni/portmap ## Bookinfo through real sidecars on this machine (root); KEEP=1 leaves it running
	@go run ./e2e/demo $(if $(KEEP),--keep)

images: ## the image of the mesh, without Docker: bin/images/weft.tar (this platform), weft-oci.tar (amd64 and arm64); VERSION=1.2.3 PUSH=REF
	@go run ./deploy/images/build $(if $(VERSION),--version $(VERSION)) $(if $(PUSH),--push $(PUSH))

# The scenarios run last and alone: they count and time what users see.
test: build tools ## all tests (root: kernel rules, network namespaces, real Envoys)
	go test -timeout 20m $$(go list ./... | grep -v '/e2e$$')
	go test -timeout 20m ./e2e

e2e: ## the same scenarios on real clusters: kind's where Docker is, else native nodes that it builds and runs (root); ARGS="--only e2e-137 --run TestS07"
	@go run ./e2e/kubernetes/suite $(ARGS)

kubernetes: ## build Kubernetes, containerd, network plugins, for make e2e and the tests that need a real API server
	@go run ./e2e/kubernetes/cluster build

kind: build images ## a kind cluster (Docker) with the mesh's image in it; then: weft install
	kind create cluster --name weft --config deploy/kind.yaml
	kind load image-archive --name weft bin/images/weft.tar

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go') | tee /dev/stderr)" || { echo "run gofmt -w on these" >&2; exit 1; }
	go vet ./...
	go tool staticcheck ./...

bench: build tools ## what things cost, beside the goals
	go test -run '^$$' -bench . -benchmem ./bench/... ./xds

golden: ## rewrite the goldens under testdata/ from what the code does now
	go test ./redirect ./webhook ./envoy/... ./deploy -update

# By default Go spends a minute on making each input that it finds interesting shorter: all of FUZZTIME.
fuzz: ## each fuzz target for FUZZTIME (60s)
	@for pkg in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
	  for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | sed 's/func //'); do \
	    echo "== $$pkg $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$pkg || exit 1; \
	  done; done

clean: ## remove bin/
	rm -rf bin

tools: bin/envoy bin/cni/portmap bin/netfilter/complete ## what tests and the demo run beside our programs

# go build decides what is stale.
$(PROGRAMS:%=bin/%): FORCE
	@$(GOBUILD) -o $@ ./cmd/$(@F)

bin/testapp: FORCE
	@$(GOBUILD) -o $@ ./e2e/testapp

bin/samples: FORCE
	@mkdir -p $@ && $(GOBUILD) -o $@ ./samples/...

bin/envoy:
	@e2e/kit/fetch-envoy.sh $@

bin/cni/portmap: go.mod
	@mkdir -p bin/cni && $(GOBUILD) -o bin/cni/ $(CNI_PLUGINS:%=$(CNI_MODULE)/%) && touch $@

bin/netfilter/complete:
	@e2e/kit/fetch-netfilter.sh bin/netfilter
