# Every target sets itself up: an interpreter in PYTHON is all that must be there.
#
#   make demo     the main job on an embedded default; the report goes to matfree-report/
#   make test     checks, then the whole test suite
#   make check    formatter, linter, types, import rules
#   make docs     the documentation site, every page executed, into docs/_build/html
#   make gpu      the tests that need a GPU, with the torch, CuPy, NumPy and SciPy of PYTHON
#   make bench    ratios against hand-written code and other libraries, into docs/benchmarks.md
#   make bench-peers   the same work by other libraries, in an environment of their own;
#                 with MATFREE_BENCH=quick on tiny problems
#
# make test PYTHON=python3.13 uses an environment of its own, the newest NumPy and SciPy, and
# no torch: what needs torch is skipped and says so.
#
# For a machine with a GPU and no internet: `make wheels` elsewhere, carry the folder there with the
# checkout, and `make gpu WHEELS=wheels`.

PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VERSION := $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")
VENV := $(if $(filter 3.11,$(VERSION)),.venv,.venv-$(VERSION))
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet --retries 10
PINS := $(if $(filter 3.11,$(VERSION)),--constraint .ci/constraints.txt)
# Where torch is left out, modules that import it are skipped and say so.
WITHOUT_TORCH := $(if $(filter 3.11,$(VERSION)),,--doctest-ignore-import-errors)
# What the tests need beside the libraries that a machine with a GPU has: small, and no library of
# theirs among it.
CARRIED := array-api-compat array-api-strict hypothesis sortedcontainers pytest iniconfig pluggy \
	packaging pygments hatchling pathspec trove-classifiers editables
SETUP := pyproject.toml .ci/constraints.txt
PEERS := .venv-peers
PEERS_PIP := $(PEERS)/bin/python -m pip --disable-pip-version-check --quiet --retries 10

.PHONY: demo test check docs bench bench-peers gpu wheels clean
.DEFAULT_GOAL := test

# The problems of the demo and the tests are small, and threads that wait for each other take five
# times as long on a machine that is not idle.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

demo: $(VENV)/installed
	$(ONE_THREAD) $(VENV)/bin/matfree demo

# Two processes share the files out.
test: check
	$(ONE_THREAD) $(RUN) -m pytest $(WITHOUT_TORCH) \
		--numprocesses 2 --dist loadfile

check: $(VENV)/installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy $(if $(filter 3.11,$(VERSION)),,--exclude adapters/matfree_torch)
	$(VENV)/bin/lint-imports

docs: $(VENV)/documented
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/installed
	$(RUN) tests/benchmarks/run.py $(ONLY)

bench-peers: $(PEERS)/installed
	$(PEERS)/bin/python tests/benchmarks/run.py peers

# The machine's own libraries are seen, also where PYTHON belongs to an environment of its own.
gpu:
	$(PYTHON) -m venv --clear .venv-gpu
	$(PYTHON) -c "import sys; print(*[p for p in sys.path if 'site-packages' in p or 'dist-packages' in p], \
		sep='\n')" > $$(echo .venv-gpu/lib/python*/site-packages)/machine.pth
	.venv-gpu/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
		$(if $(WHEELS),--no-index --find-links $(WHEELS)) $(CARRIED)
	.venv-gpu/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
		--no-index --no-build-isolation --editable .
	$(ONE_THREAD) .venv-gpu/bin/python -m pytest -m gpu

wheels:
	$(PYTHON) -m pip --disable-pip-version-check download --no-deps --only-binary :all: \
		--dest wheels $(CARRIED)

clean:
	rm -rf .venv .venv-* docs/_build

# An unpinned torch brings gigabytes of CUDA libraries, so it is installed first, by itself.
$(VENV)/installed: $(SETUP)
	$(PYTHON) -m venv $(VENV)
ifeq ($(VERSION),3.11)
	$(PIP) install torch==2.13.0
	$(PIP) install $(PINS) --editable '.[all]'
else
	$(PIP) install --editable '.[test]'
endif
	touch $@

# Other libraries ask for versions of their own: they stay out of the environment of the tests.
# One that cannot be installed leaves a row that says so.
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
