# Every target sets itself up; the interpreter named by PYTHON is the only prerequisite.
#
# make test PYTHON=python3.13 uses a separate environment with the newest NumPy and SciPy and without
# torch. Tests that need torch are skipped there, with this reason.
#
# On a machine with a GPU and no internet access: run `make wheels` elsewhere, copy the folder next to
# the checkout, and run `make gpu WHEELS=wheels`.

PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VERSION := $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")
VENV := $(if $(filter 3.11,$(VERSION)),.venv,.venv-$(VERSION))
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet --retries 10
PINS := $(if $(filter 3.11,$(VERSION)),--constraint .ci/constraints.txt)
# Without torch, modules whose import fails are skipped when doctests are collected.
WITHOUT_TORCH := $(if $(filter 3.11,$(VERSION)),,--doctest-ignore-import-errors)
# What the tests need in addition to the libraries of a machine with a GPU. All of it is small, and none
# of it replaces one of those libraries.
CARRIED := array-api-compat array-api-strict hypothesis sortedcontainers pytest iniconfig pluggy \
	packaging pygments hatchling pathspec trove-classifiers editables
SETUP := pyproject.toml .ci/constraints.txt
PEERS := .venv-peers
PEERS_PIP := $(PEERS)/bin/python -m pip --disable-pip-version-check --quiet --retries 10

# The problems of the demo and of the tests are small. On a busy machine, threads that synchronize with
# each other make them five times slower.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test check coverage docs bench bench-peers gpu wheels wheel-test clean
.DEFAULT_GOAL := test

help: ## Print the targets with one line each.
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/installed ## Run the demo on embedded data; the report goes to matfree-report/.
	$(ONE_THREAD) $(VENV)/bin/matfree demo

# Two processes share the test files.
test: check ## Run the checks, then the whole test suite (the default).
	$(ONE_THREAD) $(RUN) -m pytest $(WITHOUT_TORCH) \
		--numprocesses 2 --dist loadfile

check: $(VENV)/installed ## Run the formatter, the linter, the type checker and the import rules.
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy $(if $(filter 3.11,$(VERSION)),,--exclude adapters/matfree_torch)
	$(RUN) -m mypy tests/typing/calls.py
	$(VENV)/bin/lint-imports

# Subprocesses are measured as well. The report is printed even if a test fails, because tests of time and
# memory may fail under the tracer. Kernels that Numba compiles cannot be traced and count as missed.
coverage: $(VENV)/installed ## Run the tests under coverage; list the lines missed, fail below 95 %.
	$(RUN) -m coverage erase
	-$(ONE_THREAD) $(RUN) -m coverage run -m pytest $(WITHOUT_TORCH) \
		--numprocesses 2 --dist loadfile
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

docs: $(VENV)/documented ## Build the documentation into docs/_build/html; every page is executed.
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/installed ## Compare with hand-written code; the tables go to docs/benchmarks.md.
	$(RUN) tests/benchmarks/run.py $(ONLY)

bench-peers: $(PEERS)/installed ## Compare with other libraries (MATFREE_BENCH=quick: tiny problems).
	$(PEERS)/bin/python tests/benchmarks/run.py peers

# The environment sees the libraries of PYTHON, even if PYTHON itself belongs to a virtual environment.
gpu: ## Run the tests that need a GPU, with the torch, CuPy, NumPy and SciPy of PYTHON.
	$(PYTHON) -m venv --clear .venv-gpu
	$(PYTHON) -c "import sys; print(*[p for p in sys.path if 'site-packages' in p or 'dist-packages' in p], \
		sep='\n')" > $$(echo .venv-gpu/lib/python*/site-packages)/machine.pth
	.venv-gpu/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
		$(if $(WHEELS),--no-index --find-links $(WHEELS)) $(CARRIED)
	.venv-gpu/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
		--no-index --no-build-isolation --editable .
	$(ONE_THREAD) .venv-gpu/bin/python -m pytest -m gpu

wheels: ## Download into wheels/ what `make gpu` needs on a machine without internet access.
	$(PYTHON) -m pip --disable-pip-version-check download --no-deps --only-binary :all: \
		--dest wheels $(CARRIED)

wheel-test: ## Build sdist and wheel; try the wheel on Python 3.11 to 3.13 with its requirements only.
	$(ONE_THREAD) PYTHON=$(PYTHON) .ci/wheel-test

clean: ## Delete the environments and the built documentation.
	rm -rf .venv .venv-* docs/_build

# torch is installed first and pinned, because an unpinned torch brings gigabytes of CUDA libraries.
$(VENV)/installed: $(SETUP)
	$(PYTHON) -m venv $(VENV)
ifeq ($(VERSION),3.11)
	$(PIP) install torch==2.13.0
	$(PIP) install $(PINS) --editable '.[all]'
else
	$(PIP) install --editable '.[test]'
endif
	touch $@

# Other libraries require versions of their own, so they are kept out of the environment of the tests.
# A library that cannot be installed is reported in its row of the table.
$(PEERS)/installed: $(SETUP) tests/benchmarks/peers.txt tests/benchmarks/peers-alone.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS_PIP) install torch==2.13.0
	$(PEERS_PIP) install $(PINS) --editable .
	grep -v '^#' tests/benchmarks/peers.txt | xargs -n 1 $(PEERS_PIP) install $(PINS) || true
	$(PEERS_PIP) install --no-deps --requirement tests/benchmarks/peers-alone.txt || true
	touch $@

$(VENV)/documented: $(VENV)/installed
	$(PIP) install $(PINS) --editable '.[docs]'
	touch $@
