.DEFAULT_GOAL := help
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
BIN := .venv/bin
T ?= tests
# All tests run in two processes: half of them wait for the engine most of the time.
AT_ONCE = $(if $(filter tests,$(T)),--numprocesses 2 --dist loadscope --no-loadscope-reorder)
BENCH_OUTPUT = $(if $(MARKDOWN),--markdown $(MARKDOWN)) $(if $(JSON),--json $(JSON))

.PHONY: help run test compatibility check format bench bench-peers bench-catalog storm lock clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

run: .venv/.runtime ## Set up what is missing and serve on 127.0.0.1:8080
	@exec $(BIN)/sandgate serve --setup

test: .venv/.development ## Run all tests, those on real Docker included (T=path for some)
	$(BIN)/sandgate images build
	$(BIN)/pytest $(AT_ONCE) --durations 20 $(T)

compatibility: .venv/.development ## Run E2B's SDKs and command line against Sandgate; write docs/compatibility.md
	$(BIN)/sandgate images build
	$(BIN)/python -m tests.e2e.compatibility

check: .venv/.development ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=sandbox_images/gateway:sandbox_images/workspace:sandbox_images/egress $(BIN)/lint-imports

format: .venv/.development ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.development ## Measure Sandgate beside the engine's own floor, in one run (MARKDOWN=file, JSON=file, ARGS=…)
	$(BIN)/sandgate images build
	$(BIN)/python -m tests.bench $(BENCH_OUTPUT) $(ARGS)

bench-peers: .venv/.development ## Measure Sandgate beside other gateways, on the same server (the same options)
	$(BIN)/sandgate images build
	$(BIN)/python -m tests.bench.peers $(BENCH_OUTPUT) $(ARGS)

bench-catalog: .venv/.development ## Measure a new team's first create with every server of the catalog (the same options)
	$(BIN)/sandgate images build
	$(BIN)/python -m tests.bench.catalog $(BENCH_OUTPUT) $(ARGS)

storm: .venv/.development ## Run the load tests at full size, on a machine of their own
	$(BIN)/sandgate images build
	$(BIN)/pytest tests/load --storm -s --timeout 1800

lock: .venv/.development ## Resolve the dependencies anew
	$(BIN)/uv pip compile -q pyproject.toml --group dev --upgrade --generate-hashes --universal --python-version 3.11 --no-header -o requirements-dev.lock
	$(BIN)/uv pip compile -q pyproject.toml --generate-hashes --universal --python-version 3.11 --no-header -c requirements-dev.lock -o requirements.lock

clean: ## Remove the environment
	rm -rf .venv

.venv/.runtime: requirements.lock pyproject.toml
	@echo "Making the Python environment in .venv …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Install Python 3.11 or later with its venv module (Debian: apt-get install python3-venv)."; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

.venv/.development: requirements-dev.lock .venv/.runtime
	@echo "Adding what development needs …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@
