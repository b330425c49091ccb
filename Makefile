# Everything happens in this folder: no root, nothing installed elsewhere.  `make` alone lists the targets.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12      another Python
#   make test ARGS="-k lock"                         arguments for pytest; likewise for demo, bench, sanitize, mutants, packages
#   make build DEBUG=1                               keep debug information

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
MINUTES ?= 60
SECONDS ?= 150
JOBS ?= 1
DEBUG ?= 0

SOURCES := setup.py pyproject.toml MANIFEST.in $(shell find shmem -name '*.py' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name py.typed)
RUN := $(VENV)/bin/python
PIP := TMPDIR="$(abspath $(VENV))/tmp" $(RUN) -m pip --quiet
WHEEL = $(wildcard $(VENV)/wheel/*.whl)

unexport PYTHONPATH PYTHONHOME
export PIP_CACHE_DIR := $(abspath $(VENV))/cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(abspath $(VENV))/matplotlib
export SHMEM_DEBUG_INFO := $(DEBUG)
.NOTPARALLEL:
.PHONY: help demo test sanitize chaos bench fuzz lint mutants wheel sdist packages release build clean ci ci-full

help:
	@echo "make demo      set up, build, run the demo: writes demo-output/hillshade.png"
	@echo "make test      set up, build, run the tests against the installed wheel"
	@echo "make build     set up and build only; then $(RUN) is a Python with shmem; DEBUG=1 keeps debug information"
	@echo "make bench     measure, beside peers"
	@echo "make lint      ruff, cython-lint, cython -Wextra, mypy, pyright, stubtest, and the direction of imports"
	@echo "make sanitize  the tests against a build with address and undefined-behaviour sanitizers, and SHMEM_DEBUG=1"
	@echo "make chaos     kill storms on a build that delays atomic operations at random: SECONDS=150 for each of four"
	@echo "make fuzz      damaged files, led by coverage: MINUTES=60 JOBS=1"
	@echo "make mutants   break each promise of docs/reliability.md once, and see its test fail"
	@echo "make wheel     a wheel in dist/"
	@echo "make sdist     a source distribution in dist/"
	@echo "make packages  both, checked, and tried on each Python, in new Debian roots, and on Arm in an emulator; ARGS=--quick for less"
	@echo "make release   is everything ready for a release?  version, changelog, citation, tags"
	@echo "make ci        what continuous integration runs"
	@echo "make ci-full   the same, and what takes hours: every mutant, the full crashtest, kill storms, fuzzing"
	@echo "make clean     remove everything that the others made"

demo: $(VENV)/.demo
	$(RUN) examples/hillshade.py --output demo-output $(ARGS)

# This folder contains the source package, shmem/.  With a safe path, pytest finds the installed one.
test: $(VENV)/.test
	PYTHONSAFEPATH=1 $(RUN) -m pytest --basetemp="$(VENV)/tmp/pytest" $(ARGS)

build: $(VENV)/.installed

# -- sanitizers: an environment of its own, whose extensions are built with gcc's -fsanitize=address,undefined
#
# The interpreter is not instrumented, so ASan's library is preloaded, here and in all processes that the tests start.  Each finding, in whichever
# process, is a file in reports/, and one file there fails the run: the standard error of a killed or ignored child may be lost.  UBSan's library
# ignores log_path when it runs beside ASan's; undefined behaviour is therefore made a trap, which ASan reports as ILL with the line.
#
# detect_leaks=0: CPython and numpy keep thousands of allocations until the end; what the core allocates (a section_t, a path) goes with the section.
# handle_*=2: the program, such as pytest's faulthandler, must not replace the handler.  strict_string_checks, detect_stack_use_after_return: on.
# ASan knows nothing about the inside of a section: it is one mapping, and free blocks are not poisoned, because a block that another process
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

# -- chaos: an environment of its own, whose extensions yield or sleep before one in 400 atomic operations, at random (`shmem/_atomics.pxd`)
#
# Four kill storms of SECONDS each: a file and an anonymous section, with and without SHMEM_DEBUG=1.
CHAOS := $(VENV)-chaos

chaos:
	@$(MAKE) --no-print-directory VENV="$(CHAOS)" COPIES=no SHMEM_CFLAGS="-O1 -DSHMEM_CHAOS=400" "$(CHAOS)/.installed"
	@$(CHAOS)/bin/python -P -c "from shmem._base.debug import DELAYED_ONE_IN; assert DELAYED_ONE_IN == 400"
	@for debug in 0 1; do for section in "" "--anonymous --index next_fit"; do \
	  echo "== SHMEM_DEBUG=$$debug killstorm $$section"; \
	  SHMEM_DEBUG=$$debug "$(CHAOS)/bin/python" -P -m shmem killstorm --seconds $(SECONDS) $$section $(ARGS) || exit 1; \
	done; done

bench:
	$(PYTHON) bench/make_bench.py $(ARGS)

fuzz:
	$(PYTHON) fuzz/run.py --minutes $(MINUTES) --jobs $(JOBS) $(ARGS)

mutants: $(VENV)/.test
	$(RUN) tests/mutants.py $(ARGS)

# cython prints nothing unless it warns; any output fails.
lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint shmem examples bench
	$(RUN) tests/layers.py
	@echo "stubtest, mypy and pyright: stubs, examples, README, tour"
	$(RUN) tools/check_types.py
	@echo "cython -Wextra on every .pyx of shmem"
	@rm -rf $(VENV)/tmp/cython && mkdir -p $(VENV)/tmp/cython
	@find shmem -name '*.pyx' | xargs -n 1 -P 2 sh -c \
	  '$(VENV)/bin/cython -Wextra -o "$(VENV)/tmp/cython/$$(echo "$$0" | tr / .).c" "$$0"' > $(VENV)/tmp/cython.log 2>&1 || { cat $(VENV)/tmp/cython.log; exit 1; }
	@! grep . $(VENV)/tmp/cython.log

wheel: $(VENV)/.wheel
	mkdir -p dist
	cp $(VENV)/wheel/*.whl dist/

sdist:
	@$(PYTHON) tools/packages.py sdist

# What is published: built, checked, and installed and tried wherever users have it.  tools/packages.py says what it does.
packages:
	@$(PYTHON) tools/packages.py $(ARGS)

release:
	$(PYTHON) tools/release.py

ci:
	.ci/run

# All packages, all tests on CPython 3.14 and under sanitizers, ten minutes of chaos, every mutant, the crashtest of all operations, ten minutes of kill storm on a file and on
# an anonymous section, a quarter of an hour of fuzzing.
ci-full: ci $(VENV)/.test
	$(MAKE) --no-print-directory packages
	$(MAKE) --no-print-directory test PYTHON="$$($(PYTHON) tools/debian.py 3.14)" VENV=$(VENV)-3.14
	$(MAKE) --no-print-directory sanitize
	$(MAKE) --no-print-directory chaos
	$(MAKE) --no-print-directory mutants
	$(RUN) -P -m shmem crashtest
	$(RUN) -P -m shmem killstorm --seconds 600
	$(RUN) -P -m shmem killstorm --seconds 600 --anonymous --index next_fit
	$(RUN) -P -m shmem fuzz --steps 100000
	$(MAKE) --no-print-directory fuzz MINUTES=15

clean:
	rm -rf .venv* .fuzz build dist *.egg-info demo-output .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find shmem \( -name '*.c' -o -name '*.so' \) -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- stamps: each step is done once, and again when something that it depends on has changed

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "shmem needs CPython 3.11 or newer, and this is " + sys.version.split()[0] + ": use make PYTHON=...")'
	@$(PYTHON) -c 'import os, sys, sysconfig; header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	  sys.exit(None if os.path.exists(header) else header + " not found: install the headers of this Python (python3-dev, python3-devel)")'
	@command -v $${CC:-cc} > /dev/null || { echo "C compiler not found: install gcc or clang, or set CC=..." >&2; exit 1; }
	@echo "making $(VENV)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(VENV)/tmp
	@touch $@

# One file that changes when DEBUG does, so that the wheel is then built anew.
$(VENV)/.debug: FORCE
	@mkdir -p $(VENV)
	@[ "$$(cat $@ 2>/dev/null)" = "$(DEBUG)" ] || echo "$(DEBUG)" > $@
FORCE:

$(VENV)/.wheel: $(VENV)/.made $(VENV)/.debug $(SOURCES)
	@echo "building the wheel: a minute or two"
	@rm -rf $(VENV)/wheel build
	@$(PIP) wheel --no-deps --wheel-dir $(VENV)/wheel .
	@rm -rf build shmem.egg-info
	@touch $@

# The copies are for a Python that is started in this folder: it finds the source package before the installed one.
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
