# The commands behind everything: `make demo`, `make up`, `make test`. `make help` lists them.
# A fresh machine needs Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
CLIENTS := .clients
KFP := $(CLIENTS)/kfp-1.8.22
COMPILE = $(UV) pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-header --no-emit-index-url
SERVER_API := $(CLIENTS)/kfp-server-api-1.8.5

export HEADRACE_PORT HEADRACE_DATA_DIR

.PHONY: help setup setup-dev clients demo up test check format bench chaos lock clean

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

clients: $(KFP)/.ready $(SERVER_API)/.ready

$(CLIENTS)/%/.ready: tests/clients/%.txt $(VENV)/.ready
	@test -x $(@D)/bin/python || $(BIN)/python -m venv --without-pip $(@D)
	@$(UV) pip install --quiet --python $(@D)/bin/python --require-hashes -r $<
	@touch $@

demo: setup ## Run a real pipeline from nothing to its result, then stop
	@$(BIN)/headrace demo

up: setup ## Start everything on this machine until Ctrl-C (HEADRACE_PORT, HEADRACE_DATA_DIR)
	@exec $(BIN)/headrace up

test: setup-dev clients ## Run the whole test suite
	@$(BIN)/pytest -q -m "not chaos"

.PHONY: test-containers
test-containers: setup-dev ## Bring up docker-compose.yml and run a pipeline in it (docker, or root and dockerd)
	@$(BIN)/pytest -q -s -m containers tests/containers

check: setup-dev ## Lint, types and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup-dev ## Format the code
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: setup-dev ## Measure against floors taken in the same run; prints a table, writes bench-results.json
	@$(BIN)/python -m tests.bench

chaos: setup-dev ## Break things on purpose: the fault tests
	@$(BIN)/pytest -q -m chaos

lock: ## Write the lock files anew (hashes, no index)
	@$(COMPILE) --extra embedded --extra sandbox pyproject.toml -o requirements.txt
	@$(COMPILE) --extra embedded --extra sandbox --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	@$(COMPILE) --extra sandbox -c requirements.txt pyproject.toml -o infra/docker/requirements.txt
	@for client in $(notdir $(KFP)) $(notdir $(SERVER_API)); do \
		$(COMPILE) tests/clients/$$client.in -o tests/clients/$$client.txt; done

clean: ## Remove what the other commands made, except data
	@rm -rf $(VENV) $(CLIENTS) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results.json
