# Every target sets up what it needs: a virtual environment per interpreter, made once.
# Choose another interpreter with: make test PYTHON=python3.13

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help run test check format bench bench-% clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUN_READY) ## Index this project's docs and source and answer questions about them
	$(BIN)/poolwire demo

test: $(DEV_READY) ## Run the test suite (ARGS="-k name" to choose)
	$(BIN)/python -m pytest -n $${WORKERS:-2} --dist loadfile $(ARGS)

check: $(DEV_READY) ## Lint, format, types, layers, and that only the pools make connections
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/poolwire migrate check app
	$(BIN)/python -m pytest -q tests/test_rule_one.py

format: $(DEV_READY) ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_READY) ## Run every benchmark against its targets (one of them: make bench-zmq)
	@for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench $(ARGS) || exit 1; done

bench-%: $(DEV_READY)
	$(BIN)/python benchmarks/bench_$*.py $(ARGS)

clean: ## Remove everything the other targets made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .poolwire/index* build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Its last file: a venv whose making was interrupted has a python, and no pip.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo 'poolwire needs Python 3.11 to 3.13, and $(PYTHON) is $(or $(VERSION),not found); choose one: make $(MAKECMDGOALS) PYTHON=python3.11' >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): $(BIN)/pip pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(DEV_READY): $(BIN)/pip pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(RUN_READY)
