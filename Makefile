# Every target sets up its own virtual environment on first use and reuses it
# until setup.cfg, pyproject.toml or the constraints change.
#
#   make demo                      four methods on embedded data
#   make test                      lint, types, tests, doctests, README example
#   make test PYTHON=python3.12    the same with another interpreter
#   make unit WORKERS=0            tests in this process, for a debugger

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
DOCS_STAMP := $(VENV)/.installed-docs
CONSTRAINTS := requirements/constraints.txt
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all lint types unit docs format bench clean distclean

help:
	@echo "make demo     four methods on embedded data, with reports"
	@echo "make test     lint + types + unit, what CI runs"
	@echo "make test-all the same, and the slow tests"
	@echo "make lint     ruff check and ruff format --check"
	@echo "make types    mypy on the package"
	@echo "make unit     pytest: tests, doctests, README example (PYTEST_ARGS=...)"
	@echo "make docs     the documentation, docs/_build/index.html (installs its own extra)"
	@echo "make bench    every benchmark under benchmarks/"
	@echo "make format   apply ruff's fixes and formatting"
	@echo "make clean    remove caches and build products; distclean also $(VENV)"

setup: $(STAMP)

# The second way of making the environment is for systems whose Python comes
# without ensurepip but with pip.
$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "$(PYTHON) is missing or older than Python 3.10;" \
	         "name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	    || $(PYTHON) -m venv --clear $(VENV) \
	    || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	         && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --quiet --upgrade -c $(CONSTRAINTS) pip setuptools
	@echo "Installing into $(VENV): about 6 GB on Linux, a few minutes."
	$(BIN)/python -W ignore -m pip install --quiet --prefer-binary --no-compile \
	    -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

# pip would compile all of 20,000 modules, which takes half of its time. A quarter is
# ever imported.
$(COMPILED): $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -W ignore -c \
	    'import avalanche.training, open_clip, transformers, pytest, xdist'
	@touch $@

demo: $(STAMP)
	$(BIN)/python experiments/tic_emoji.py --preset demo

test: $(STAMP)
	@if $(MAKE) --no-print-directory -j 2 lint types $(COMPILED) \
	    && $(MAKE) --no-print-directory unit; then \
	    echo "make test: PASSED (lint, types, tests, doctests, README example)"; \
	else \
	    echo "make test: FAILED, see the first error above" >&2; exit 1; \
	fi

test-all:
	@$(MAKE) --no-print-directory test PYTEST_ARGS="-m 'not network' $(PYTEST_ARGS)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(COMPILED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "docs/_build/index.html"

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@test -n "$(BENCHMARKS)" || { echo "no files under benchmarks/" >&2; exit 1; }
	@failed=0; for file in $(BENCHMARKS); do \
	    echo "== $$file"; $(BIN)/python $$file || failed=1; done; exit $$failed

clean:
	rm -rf build dist docs/_build docs/api docs/support.rst docs/scores.inc *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
