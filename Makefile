# One recipe a task; each sets up what it needs by itself (`make help`).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SPARK := $(VENV)/.spark
WORKERS := -n logical --maxprocesses 4 --no-loadscope-reorder # see tests/conftest.py
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all check format bench serve ui lock clean

help: ## list these recipes
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv from the lock file (every other recipe does it by itself)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.lock setuptools wheel pip
	$(BIN)/pip install --quiet --constraint requirements.lock torch
	$(BIN)/pip install --quiet --constraint requirements.lock --no-build-isolation --editable '.[dev]'
	$(BIN)/pip check
	@touch $(READY)

$(SPARK): $(READY)
	$(BIN)/pip install --quiet --constraint requirements.lock --no-build-isolation --editable '.[dev,spark,postgres]'
	@touch $(SPARK)

run: $(READY) ## the whole path on the bundled real data: contracts, features, models, promotion, service, report
	$(BIN)/holdfast run

test: $(SPARK) ## all tests but the slow ones (those of Spark need Java 17, that of PostgreSQL a server)
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(SPARK) ## all tests
	$(BIN)/python -m pytest $(WORKERS) -m "slow or not slow"

check: $(READY) ## format, lint, types, import contracts, lock file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_lock.py

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(SPARK) ## benchmarks against rivals in the same run; table here, list in build/bench.json
	$(BIN)/python -m tests.benchmarks

serve: $(READY) ## serve the packaged champion on http://127.0.0.1:3000, to this machine alone and without keys
	$(BIN)/holdfast serve --no-auth

ui: $(READY) ## MLflow UI on http://127.0.0.1:5000
	$(BIN)/holdfast ui

lock: $(READY) ## write requirements.lock from what .venv holds
	$(BIN)/python tests/check_lock.py --write

clean: ## remove the environment, caches, builds and the state of the sample run
	rm -rf $(VENV) build .holdfast .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
