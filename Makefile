# OpenOPU: every command that a clone needs. `make` alone explains them.
#
# Everything runs in a virtual environment of its own, $(VENV), made when it is first needed and brought up to date
# when setup.cfg changes.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PACKAGING := setup.cfg pyproject.toml
PYTEST_OPTIONS ?=
EXTRAS ?= test,docs
TEST_WORKERS ?= 2
# GNU Make 3.81, which macOS comes with, cannot keep the output of parallel jobs apart.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

# Tests start hundreds of processes, which would compile the project anew each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check lint docs kernels bench clean

help: ## Show this list
	@echo "OpenOPU. Commands of a clone (Python 3.11 or later as $(PYTHON)):"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "The virtual environment is $(VENV); 'source $(BIN)/activate' puts opu and dfa on the path."
	@echo "One test by name: make test PYTEST_OPTIONS='-k uri'. Another Python: make test PYTHON=python3.12 VENV=.venv312"

demo: $(VENV)/installed-demo ## Serve a simulated OPU, train over the network, calibrate, measure: openopu-demo/
	$(BIN)/opu demo

test: check ## Run every check: lint, documentation, tests with coverage
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist worksteal --cov --cov-report=term $(PYTEST_OPTIONS)

check: $(VENV)/installed-develop
	@$(MAKE) --no-print-directory --jobs 2 $(SYNC) lint docs kernels

kernels: $(VENV)/installed-develop
	@$(BIN)/python tests/compile_kernels.py

lint: $(VENV)/installed-develop ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-develop ## Build the documentation, warnings are errors: docs/_build/html/index.html
	$(BIN)/sphinx-build -W --keep-going --quiet docs docs/_build/html

bench: $(VENV)/installed-develop ## Measure speed, save benchmark-results/*.json
	mkdir -p benchmark-results
	$(BIN)/python -m pytest benchmarks --benchmark-json=benchmark-results/$$(date -u +%Y%m%dT%H%M%SZ).json

clean: ## Remove what the other commands made, except the virtual environment
	rm -rf build dist docs/_build docs/reference/commands openopu-demo benchmark-results .benchmarks htmlcov
	rm -rf .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find opu dfa_client tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Pip would compile on one core, and the tests of every package.
define install
$(BIN)/python -m pip install --quiet --no-compile --editable '.[$(1)]'
-@$(BIN)/python -m compileall -q -j 2 -x '/tests?/' $(VENV)/lib >/dev/null 2>&1
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: name another one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: $(PACKAGING) | $(BIN)/python
	$(call install,demo)
	@touch $@

$(VENV)/installed-develop: $(PACKAGING) | $(BIN)/python
	$(call install,$(EXTRAS))
	@touch $@
