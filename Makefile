# Every target that needs the environment makes it first. CI calls these targets and nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Two processes; tests that start services keep to one of them, so that no more than two run at once
# (tests/conftest.py). With one core, or with pytest-xdist switched off, there is one process.
TWO := $(if $(findstring no:xdist,$(PYTEST_ADDOPTS)),,$(if $(filter 1,$(shell nproc)),,-n 2 --dist loadgroup))

.PHONY: help setup protos fmt lint types test test-all coverage train bench docs-check check deploy-files lock build secrets up down clean distclean

help: ## list the targets
	@echo "make TARGET [ARGS='...'] [PYTHON=python3.12]"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: $(READY) ## create .venv from the lock and install the project in it; does nothing when up to date

# An environment of another Python than $(PYTHON) is made anew; one that only lags behind the lock is updated.
$(READY): pyproject.toml requirements/run.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(\
	    "adamserve needs Python 3.11 or later, but $(PYTHON) is %d.%d; try: make PYTHON=python3.11 ..." % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot create environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@version() { "$$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || true; }; \
	    [[ "$$(version $(BIN)/python)" == "$$(version $(PYTHON))" ]] || $(PYTHON) -m venv --clear $(VENV)
	@echo "setting up $(VENV) from requirements/dev.txt (two minutes the first time)"
	@$(PIP) install -r requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

protos: $(READY) ## make the stubs in adamserve/v1 anew from proto/
	PYTHON=$(BIN)/python scripts/protos

fmt: $(READY) ## format, and fix what the linter can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: $(READY) ## ruff, formatting, spelling, YAML, protos and their stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/yamllint --strict .
	PYTHON=$(BIN)/python scripts/protos --check

types: $(READY) ## mypy, strict
	$(BIN)/mypy

test: $(READY) ## the test suite, Ray included, without the tests marked slow or gpu; ARGS='-n 0' for one process
	$(BIN)/pytest $(TWO) -m "not slow and not gpu" --durations=10 $(ARGS)

test-all: $(READY) ## every test; those marked gpu skip themselves where there is none
	$(BIN)/pytest $(TWO) --durations=20 $(ARGS)

coverage: $(READY) ## the tests of `make test`, with a report of the lines that they miss
	$(BIN)/pytest $(TWO) -m "not slow and not gpu" --cov --cov-report=term $(ARGS)

train: $(READY) ## train the MLP on scikit-learn's digits: 2 shards, 2 workers; ARGS='--epochs 3' adds options
	$(BIN)/adamserve train mlp --dataset digits --shards 2 --workers 2 --consistency async --optimizer adam $(ARGS)

bench: $(READY) ## run every benchmark; ARGS='--json' for one that takes it
	@for bench in benchmarks/bench_*.py; do echo "== $$bench $(ARGS)"; $(BIN)/python "$$bench" $(ARGS); done

docs-check: $(READY) ## links between the Markdown files, and the make targets that they name
	$(BIN)/python scripts/check_docs.py

check: lint types docs-check test ## what has to pass before a change goes in

lock: ## resolve requirements/*.txt anew around requirements/pins.txt
	PYTHON=$(PYTHON) scripts/lock

deploy-files: $(READY) ## make the alerting rules and dashboards in deploy/ anew
	$(BIN)/python -m adamserve.observe.files

build: $(READY) ## wheel and source archive in dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

secrets: ## make the tokens and the password in deploy/secrets, where they are missing
	scripts/secrets

up: secrets ## start Ray, the service, Prometheus and Grafana with Docker Compose
	docker compose up --build --detach --wait

down: ## stop them; volumes stay
	docker compose down

clean: ## remove caches and build outputs; runs/ and .venv stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find adamserve workers tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
