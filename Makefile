# The commands behind everything: `make demo`, `make up`, `make test`. `make help` lists them.
# A fresh machine needs Python 3.11 or newer, with venv, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
CLIENTS := .clients
COMPILE_FOR = $(UV) pip compile --quiet --generate-hashes --universal --no-header --python-version
COMPILE = $(COMPILE_FOR) 3.11

# The clients that the tests drive, each in an environment of its own. The older SDKs need an older Python.
CURRENT_CLIENTS := kfp-1.8.22 kfp-server-api-1.8.5 kfp-server-api-0.1.40 kfp-server-api-0.1.37
OLDER_CLIENTS := kfp-1.0.4 kfp-0.5.1 kfp-0.1.38
# Tried, not looked up: a shim on the PATH may have nothing behind it.
OLDER_PYTHON ?= $(shell for each in python3.7 $(HOME)/.pyenv/versions/3.7.*/bin/python3.7; do \
	$$each -c '' 2>/dev/null && echo $$each && break; done)

export HEADRACE_PORT HEADRACE_DATA_DIR

FAULT_TESTS := tests/integration/nervous_system/test_recovery.py tests/contract/engine/test_durability.py \
	tests/system/test_durability.py tests/system/test_stack_lifecycle.py

# Those that strike as often as they are told.
STRIKING_TESTS := tests/integration/nervous_system/test_slots.py tests/integration/nervous_system/test_fault_run.py \
	tests/component/run/test_cluster_faults.py

# How many of each service `make test-replicas` has.
REPLICAS ?= 2

# What a run of all tests leaves for `make coverage`.
EVIDENCE := build/evidence.json

# Tests mostly wait for servers. A file stays together: its tests may share a stack.
TEST_WORKERS ?= 2

.PHONY: help setup setup-dev clients demo up test coverage check format bench chaos lock clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Install Headrace and its embedded servers into .venv

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Headrace needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

setup-dev: $(VENV)/.ready-dev

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.txt
	@touch $@

clients: $(CURRENT_CLIENTS:%=$(CLIENTS)/%/.ready)
ifneq ($(OLDER_PYTHON),)
clients: $(OLDER_CLIENTS:%=$(CLIENTS)/%/.ready)
$(OLDER_CLIENTS:%=$(CLIENTS)/%/.ready): CLIENT_PYTHON := $(OLDER_PYTHON)
else
clients: without-older-clients
endif

.PHONY: without-older-clients
without-older-clients:
	@echo "no Python 3.7 here: the tests of $(OLDER_CLIENTS) are skipped; make OLDER_PYTHON=/path/to/python3.7 clients"

$(CLIENTS)/%/.ready: CLIENT_PYTHON ?= $(BIN)/python
$(CLIENTS)/%/.ready: tests/clients/%.txt $(VENV)/.ready
	@test -x $(@D)/bin/python || $(CLIENT_PYTHON) -m venv --without-pip $(@D)
	@$(UV) pip install --quiet --python $(@D)/bin/python --require-hashes -r $<
	@touch $@

demo: setup ## Run a real pipeline from nothing to its result, then stop
	@$(BIN)/headrace demo

up: setup ## Start everything on this machine until Ctrl-C (HEADRACE_PORT, HEADRACE_DATA_DIR)
	@exec $(BIN)/headrace up

test: setup-dev clients ## Run the whole test suite
	@$(BIN)/pytest -q --numprocesses $(TEST_WORKERS) --dist loadfile --evidence $(EVIDENCE)

.PHONY: test-replicas
test-replicas: setup-dev clients ## Run the tests of the whole system with two replicas of each service (REPLICAS)
	@HEADRACE_TEST_REPLICAS=$(REPLICAS) $(BIN)/pytest -q tests/system

coverage: setup-dev ## Show what the last `make test` has seen of each operation, and how many tests there are of what
	@$(BIN)/python -m tests.coverage $(EVIDENCE)

.PHONY: test-containers
test-containers: setup-dev ## Bring up docker-compose.yml and run a pipeline in it (docker, or root and dockerd)
	@$(BIN)/pytest -q -s -m containers tests/containers

.PHONY: test-kubernetes
test-kubernetes: setup-dev ## Ask a real API server (KUBECONFIG) what tests ask the fake one, and the whole conformance suite of Argo
	@test -n "$(KUBECONFIG)" || { echo "KUBECONFIG has to say which server" >&2; exit 1; }
	@HEADRACE_TEST_KUBECONFIG=$(KUBECONFIG) $(BIN)/pytest -q tests/contract/kubernetes --ignore=tests/contract/kubernetes/test_faults.py
	@# Nobody is told when a connection with TLS is closed at last, which is not always soon enough.
	@HEADRACE_TEST_KUBECONFIG=$(KUBECONFIG) $(BIN)/pytest -q tests/contract/engine -k "[argo" \
		-p no:unraisableexception

check: setup-dev ## Lint, types, the import rules, and what a cluster makes of the manifests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.support.asyncapi
	@$(BIN)/python -m tests.support.manifests

format: setup-dev ## Format the code
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: setup-dev ## Measure against floors taken in the same run; prints a table, writes bench-results.json
	@$(BIN)/python -m tests.bench

chaos: setup-dev ## Break things on purpose: the fault tests
	@HEADRACE_CHAOS_KILLS=$${HEADRACE_CHAOS_KILLS:-60} $(BIN)/pytest -q -s tests/chaos $(STRIKING_TESTS)
	@$(BIN)/pytest -q $(FAULT_TESTS)

lock: ## Write the lock files anew (hashes, no index)
	@$(COMPILE) --extra embedded --extra sandbox pyproject.toml -o requirements.txt
	@$(COMPILE) --extra embedded --extra sandbox --extra tracing --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	@$(COMPILE) --extra sandbox --extra tracing -c requirements.txt pyproject.toml -o infra/docker/requirements.txt
	@for client in $(CURRENT_CLIENTS); do $(COMPILE) tests/clients/$$client.in -o tests/clients/$$client.txt; done
	@for client in $(OLDER_CLIENTS); do \
		$(COMPILE_FOR) 3.7 tests/clients/$$client.in -o tests/clients/$$client.txt; done

clean: ## Remove what the other commands made, except data
	@rm -rf $(VENV) $(CLIENTS) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results.json
