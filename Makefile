# Everything happens in this folder: no root, nothing installed elsewhere.  `make` alone says what there is.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12      another Python
#   make test ARGS="-k lock"                         arguments for pytest; likewise for demo, bench and sanitize

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MINUTES ?= 60
JOBS ?= 1

SOURCES := setup.py pyproject.toml $(shell find shmem -name '*.py' -o -name '*.pyx' -o -name '*.pxd')
RUN := $(VENV)/bin/python
PIP := TMPDIR="$(abspath $(VENV))/tmp" $(RUN) -m pip --quiet
WHEEL = $(wildcard $(VENV)/wheel/*.whl)

unexport PYTHONPATH PYTHONHOME
export PIP_CACHE_DIR := $(abspath $(VENV))/cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(abspath $(VENV))/matplotlib
.NOTPARALLEL:
.PHONY: help demo test sanitize bench fuzz lint mutants wheel build clean

help:
	@echo "make demo    set up, build, run the demo: writes demo-output/hillshade.png"
	@echo "make test    set up, build, run the tests against the installed wheel"
	@echo "make sanitize  the tests against a build with address and undefined-behaviour sanitizers, and SHMEM_DEBUG=1"
	@echo "make build   set up and build only; then $(RUN) is a Python with shmem"
	@echo "make bench   measure, beside peers"
	@echo "make fuzz    damaged files, led by coverage: MINUTES=60 JOBS=1"
	@echo "make mutants break each promise of docs/reliability.md once, and see its test fail"
	@echo "make lint    ruff, cython-lint, cython -Wextra"
	@echo "make wheel   a wheel in dist/"
	@echo "make clean   remove everything that the others made"

demo: $(VENV)/.demo
	$(RUN) examples/hillshade.py --output demo-output $(ARGS)

# The folder that pytest starts in has a shmem of its own, the source; with a safe path the installed one is found.
test: $(VENV)/.test
	PYTHONSAFEPATH=1 $(RUN) -m pytest --basetemp="$(VENV)/tmp/pytest" $(ARGS)

build: $(VENV)/.installed

# -- sanitizers: an environment of its own, whose extension is built with gcc's -fsanitize=address,undefined
#
# Python itself is not: so ASan's library is preloaded, here and in all processes that the tests start.  Whatever is found, in whichever process,
# is a file in reports/, and one file there fails the run: what a killed or ignored child says on standard error may be lost.  UBSan's library does
# not know of log_path beside ASan's; so undefined behaviour is made a trap, which ASan reports as ILL, with the line.
#
# detect_leaks=0: CPython and numpy keep thousands of allocations until the end; what the core allocates (a section_t, a path) goes with the section.
# handle_*=2: nobody else may take the signal, as pytest's faulthandler would.  strict_string_checks, detect_stack_use_after_return: all there is.
# Of what lies in a section ASan knows nothing: it is one mapping, and free blocks are not poisoned, for what another process
# allocates would stay poisoned here.  SHMEM_DEBUG=1 watches that.
SANITIZED := $(VENV)-sanitized
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fsanitize-undefined-trap-on-error
REPORTS := $(abspath $(SANITIZED))/reports
ASAN := log_path=$(REPORTS)/asan:detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1
ASAN := $(ASAN):allocator_may_return_null=1:handle_segv=2:handle_sigbus=2:handle_sigill=2:handle_sigfpe=2

sanitize:
	@$(MAKE) --no-print-directory VENV="$(SANITIZED)" COPIES=no CC=gcc SHMEM_CFLAGS="$(SANITIZE)" "$(SANITIZED)/.test"
	@rm -rf "$(REPORTS)" && mkdir -p "$(REPORTS)"
	@status=0; PYTHONSAFEPATH=1 SHMEM_DEBUG=1 ASAN_OPTIONS="$(ASAN)" LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
	  "$(SANITIZED)/bin/python" -m pytest --basetemp="$(SANITIZED)/tmp/pytest" $(ARGS) || status=$$?; \
	for report in "$(REPORTS)"/*; do \
	  if [ -e "$$report" ]; then echo "== $$report"; cat "$$report"; echo "a sanitizer found something: see above"; status=1; fi; \
	done; exit $$status

bench:
	$(PYTHON) bench/make_bench.py $(ARGS)

fuzz:
	$(PYTHON) fuzz/run.py --minutes $(MINUTES) --jobs $(JOBS) $(ARGS)

mutants: $(VENV)/.test
	$(RUN) tests/mutants.py $(ARGS)

# cython says nothing when it has nothing to say: what it does say fails.
lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint shmem examples bench
	@echo "cython -Wextra on every .pyx of shmem"
	@rm -rf $(VENV)/tmp/cython && mkdir -p $(VENV)/tmp/cython
	@for file in $$(find shmem -name '*.pyx'); do \
	  $(VENV)/bin/cython -Wextra -o $(VENV)/tmp/cython/out.c $$file || exit 1; done > $(VENV)/tmp/cython.log 2>&1 || { cat $(VENV)/tmp/cython.log; exit 1; }
	@! grep . $(VENV)/tmp/cython.log

wheel: $(VENV)/.wheel
	mkdir -p dist
	cp $(VENV)/wheel/*.whl dist/

clean:
	rm -rf .venv* .fuzz build dist *.egg-info demo-output .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find shmem -name '*.c' -o -name '*.so' | xargs rm -f
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
COPIES := yes
$(VENV)/.installed: $(VENV)/.wheel
	@echo "installing the wheel in $(VENV)"
	@$(PIP) install $(WHEEL)
	@$(PIP) install --force-reinstall --no-deps $(WHEEL)
	@[ $(COPIES) = no ] || { find shmem -name '*.so' -delete; \
	  (cd $(VENV)/lib/python*/site-packages && find shmem -name '*.so' | tar -cf - -T -) | tar -xf -; }
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: $(VENV)/.installed
	@echo "installing what $* needs"
	@$(PIP) install "$(WHEEL)[$*]"
	@touch $@
