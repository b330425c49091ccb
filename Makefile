# Everything happens in this folder: no root, nothing installed elsewhere.  `make` alone says what there is.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12      another Python
#   make test ARGS="-k lock"                         arguments for pytest; likewise for demo and bench

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MINUTES ?= 60
JOBS ?= 1

SOURCES := setup.py pyproject.toml $(wildcard shmem/*.py shmem/*.pyx shmem/*.pxd)
RUN := $(VENV)/bin/python
PIP := TMPDIR="$(abspath $(VENV))/tmp" $(RUN) -m pip --quiet
WHEEL = $(wildcard $(VENV)/wheel/*.whl)

unexport PYTHONPATH PYTHONHOME
export PIP_CACHE_DIR := $(abspath $(VENV))/cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(abspath $(VENV))/matplotlib
.NOTPARALLEL:
.PHONY: help demo test bench fuzz lint wheel build clean

help:
	@echo "make demo    set up, build, run the demo: writes demo-output/hillshade.png"
	@echo "make test    set up, build, run the tests against the installed wheel"
	@echo "make build   set up and build only; then $(RUN) is a Python with shmem"
	@echo "make bench   measure, beside peers"
	@echo "make fuzz    damaged files, led by coverage: MINUTES=60 JOBS=1"
	@echo "make lint    ruff, cython-lint, cython -Wextra"
	@echo "make wheel   a wheel in dist/"
	@echo "make clean   remove everything that the others made"

demo: $(VENV)/.demo
	$(RUN) examples/hillshade.py --output demo-output $(ARGS)

# The folder that pytest starts in has a shmem of its own, the source; with a safe path the installed one is found.
test: $(VENV)/.test
	PYTHONSAFEPATH=1 $(RUN) -m pytest --basetemp="$(VENV)/tmp/pytest" $(ARGS)

build: $(VENV)/.installed

bench:
	$(PYTHON) bench/make_bench.py $(ARGS)

fuzz:
	$(PYTHON) fuzz/run.py --minutes $(MINUTES) --jobs $(JOBS) $(ARGS)

# cython says nothing when it has nothing to say: what it does say fails.
lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint shmem examples bench
	@echo "cython -Wextra shmem/*.pyx"
	@rm -rf $(VENV)/tmp/cython && mkdir -p $(VENV)/tmp/cython
	@$(VENV)/bin/cython -Wextra -o $(VENV)/tmp/cython/ shmem/*.pyx > $(VENV)/tmp/cython.log 2>&1 || { cat $(VENV)/tmp/cython.log; exit 1; }
	@! grep . $(VENV)/tmp/cython.log

wheel: $(VENV)/.wheel
	mkdir -p dist
	cp $(VENV)/wheel/*.whl dist/

clean:
	rm -rf .venv* .fuzz build dist *.egg-info demo-output shmem/*.c shmem/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- stamps: each step is done once, and again when something that it depends on has changed

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "shmem needs CPython 3.11 or newer, and this is " + sys.version.split()[0] + ": say make PYTHON=...")'
	@$(PYTHON) -c 'import os, sys, sysconfig; header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	  sys.exit(None if os.path.exists(header) else "no " + header + ": install the headers of this Python (python3-dev, python3-devel)")'
	@command -v $${CC:-cc} > /dev/null || { echo "no C compiler: install one (gcc, clang), or say CC=..." >&2; exit 1; }
	@echo "making $(VENV)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(VENV)/tmp
	@touch $@

$(VENV)/.wheel: $(VENV)/.made $(SOURCES)
	@echo "building the wheel: a minute or two"
	@rm -rf $(VENV)/wheel build
	@$(PIP) wheel --no-deps --wheel-dir $(VENV)/wheel .
	@rm -rf build shmem.egg-info
	@touch $@

# The copies are for a Python that is started in this folder: it finds the source before what is installed.
$(VENV)/.installed: $(VENV)/.wheel
	@echo "installing the wheel in $(VENV)"
	@$(PIP) install $(WHEEL)
	@$(PIP) install --force-reinstall --no-deps $(WHEEL)
	@rm -f shmem/*.so
	@cp $(VENV)/lib/python*/site-packages/shmem/*.so shmem/
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: $(VENV)/.installed
	@echo "installing what $* needs"
	@$(PIP) install "$(WHEEL)[$*]"
	@touch $@
