# One Makefile for people and for CI. Needs python3 (3.10 or newer, with venv), a C++20 compiler and make; the rest comes from PyPI.
PYTHON ?= python3
MODELS ?= demo-output
BIN := .venv/bin
INSTALLED := .venv/installed.stamp
NATIVE := CMakeLists.txt $(wildcard ckks/kernels/*.cpp ckks/kernels/*.h)
SUITES := $(patsubst bench/%.py,%,$(filter-out bench/__init__.py bench/gpu.py bench/_%.py,$(wildcard bench/*.py)))
# A second environment on Python 3.10, the only one that OpenFHE's wheel works on: clients with its keys, its evaluator, the benchmarks.
OPENFHE := build/openfhe-venv
OPENFHE_VERSION := 1.6.1.0.22.4

.PHONY: demo test check format bench bench-gpu openfhe sanitize serve clean install

demo: install
	$(BIN)/he-serve demo

# Two processes, a file of tests in one of them: what a file sets up is made once.
test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	mkdir -p results
	set -e; for suite in $(SUITES); do $(BIN)/python -m bench.$$suite --json results/$$suite.json; done

openfhe: $(OPENFHE)/installed.stamp

$(OPENFHE)/installed.stamp: pyproject.toml $(NATIVE)
	@test -x $(OPENFHE)/bin/python || test -n "$(HE_SERVE_PYTHON310)" || { echo "set HE_SERVE_PYTHON310 to a Python 3.10" >&2; exit 1; }
	test -x $(OPENFHE)/bin/python || $(HE_SERVE_PYTHON310) -m venv $(OPENFHE)
	$(OPENFHE)/bin/python -m pip install --quiet --editable '.[openfhe]' 'openfhe==$(OPENFHE_VERSION)' hypothesis pytest pytest-timeout
	touch $@

# The kernels under AddressSanitizer and UBSan: an environment of its own that borrows the packages of the usual one; run outside the
# checkout, which would shadow the instrumented build.
SANITIZED := build/sanitized
sanitize: install
	test -x $(SANITIZED)/bin/python || $(PYTHON) -m venv $(SANITIZED)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	    "$$($(SANITIZED)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth"
	$(SANITIZED)/bin/python -m pip install --quiet --no-deps --force-reinstall \
	    --config-settings=cmake.define.SANITIZE=ON --config-settings=build-dir=build/sanitized-tree .
	cd $(SANITIZED) && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	    bin/python -m pytest -q --rootdir=$(CURDIR) -p no:cacheprovider $(CURDIR)/tests/test_backends.py $(CURDIR)/tests/test_backends_calls.py \
	    $(CURDIR)/tests/test_backends_matrix.py $(CURDIR)/tests/test_kernel_bounds.py -k "$(SMALL_SETS)"
SMALL_SETS := not large_ring and not triples and not quadruples and not nine_products and not 50_bits and not 40_and_60 and not widest

# Measures the GPU backend where there is a GPU, and predicts it elsewhere.
bench-gpu: install
	$(BIN)/python -m bench.gpu

serve: install
	$(BIN)/he-serve serve --models $(MODELS)

install: $(INSTALLED)

# An editable install: Python files are used from the checkout; the extension is rebuilt when its sources change.
$(INSTALLED): pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
