# Everything here works on a fresh machine with Python 3.11 or newer and make: no compiler, no system packages.
#   make demo        simulate a small session, process it, write demo/report.html
#   make test        the quick tests (make test-slow: the long ones)
#   make docs        the site of the documentation, build/docs/html/index.html
# Variables: PYTHON (interpreter for the venv), VENV, JOBS (pytest workers), DEMO (folder of the demo).

VENV   ?= .venv
JOBS   ?= 2
DEMO   ?= demo
# The first interpreter that starts and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check
# Several workers on a few cores: one thread each, or they fight.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export NUMBA_NUM_THREADS ?= 1

.PHONY: help setup test test-slow docs docs-pictures demo lint format types bench bench-class2d bench-refine wheel constraints clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make setup | lint | format | bench | bench-class2d | bench-refine | wheel | clean"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "dspa needs Python 3.11 or newer; install it or give make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

# The pinned versions first; where a mirror lacks one of them, what pyproject.toml allows.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e . || $(PIP) install -q -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install -q -c constraints.txt -e '.[dev]' || $(PIP) install -q -e '.[dev]'
	@touch $@

setup: $(VENV)/.dev

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow --timeout=1800

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) install -q -c constraints.txt -e '.[docs]' || $(PIP) install -q -e '.[docs]'
	@touch $@

# A warning is an error: a link that leads nowhere, a docstring that does not parse.
docs: $(VENV)/.docs
	$(BIN)/python docs/site/build.py

# The pictures of the guide, made anew by a small session; look at them before you keep them.
docs-pictures: $(VENV)/.dev
	$(BIN)/python docs/site/pictures.py build/docs/session

demo: $(VENV)/.runtime
	$(BIN)/dspa demo $(DEMO)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ONLY)

# 4 GiB of simulated stacks stay in bench-class2d; SCALE=--table varies particles and classes.
bench-class2d: $(VENV)/.dev
	$(BIN)/python -m benchmarks.class2d_scale $(SCALE)

# Half an hour for 64 and 128 px; SCALE="--boxes 64 128 256" takes larger ones.
bench-refine: $(VENV)/.dev
	$(BIN)/python -m benchmarks.refine_scale $(SCALE)

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

# All extras at once, so that each of them can be installed beside the others; nothing is installed.
constraints: | $(BIN)/python
	@mkdir -p build
	$(PIP) install -q --dry-run --ignore-installed --report build/resolved.json '.[cuda,dev,docs]'
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -c "import json; \
	  found = [each['metadata'] for each in json.load(open('build/resolved.json'))['install']]; \
	  print(*sorted((f\"{m['name']}=={m['version']}\" for m in found if m['name'] != 'dspa'), key=str.lower), sep='\n')"; \
	} > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
