# Each target sets up .venv by itself the first time; only Python 3.11+ is needed beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
THREADS := OMP_NUM_THREADS=1
COMPILED_TESTS = $(wildcard tests/test_engine*.py tests/test_sim*.py tests/test_estimate.py tests/test_polic*.py \
	tests/test_fleet*.py tests/test_machine_code.py)

.PHONY: help setup demo test test-all check docs-check bench compile test-compiled clean

help:
	@echo "make demo        train, deploy, serve and compare policies over a replayed channel (under 90 s)"
	@echo "make test        fast tests (under 8 minutes on 2 cores)"
	@echo "make test-all    every test, the slow ones included"
	@echo "make check       ruff lint and format, mypy --strict on the built wheel"
	@echo "make docs-check  run every command and code block of README.md and docs/"
	@echo "make bench       every benchmark with --quick; full runs: python benchmarks/NAME.py"
	@echo "make compile     engine and simulator as machine code in build/compiled (needs a C compiler; PYTHONPATH=build/compiled)"
	@echo "make clean       remove the virtual environment and build output"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "splitedge needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11, say")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing splitedge into $(VENV) (once; a few minutes)"
	$(PIP) -e '.[sim]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing splitedge and its development tools into $(VENV) (once; a few minutes)"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.peers: $(VENV)/.dev
	-$(PIP) -e '.[peers]'
	@touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.core
	$(BIN)/splitedge demo

test: $(VENV)/.dev
	$(THREADS) $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(VENV)/.dev
	$(THREADS) $(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/wheel build/site
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/wheel .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/site build/wheel/*.whl
	cd build && MYPYPATH=site ../$(BIN)/mypy --config-file ../pyproject.toml -p splitedge

docs-check: $(VENV)/.dev
	$(BIN)/python docs/check.py README.md docs/*.md

compile: $(VENV)/.dev
	rm -rf build/compiled build/wheel-compiled
	SPLITEDGE_COMPILE=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w build/wheel-compiled .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/compiled build/wheel-compiled/*.whl

# What is compiled, by its tests; `pytest` without `python -m`, which would put this folder first.
test-compiled: compile
	PYTHONPATH=build/compiled $(THREADS) $(BIN)/pytest -m "not slow" $(COMPILED_TESTS)

bench: $(VENV)/.peers
	for b in benchmarks/[a-z]*.py; do case $$b in */common.py|*/_*) ;; *) echo "== $$b"; $(BIN)/python $$b --quick || exit 1;; esac; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis out
