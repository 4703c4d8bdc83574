# One Makefile for people and for CI. Needs python3 (3.10 or newer, with venv), a C++20 compiler and make; the rest comes from PyPI.
PYTHON ?= python3
MODELS ?= demo-output
BIN := .venv/bin
INSTALLED := .venv/installed.stamp
NATIVE := CMakeLists.txt $(wildcard ckks/kernels/*.cpp ckks/kernels/*.h)
SUITES := $(patsubst bench/%.py,%,$(filter-out bench/__init__.py bench/_%.py,$(wildcard bench/*.py)))

.PHONY: demo test check format bench serve clean install

demo: install
	$(BIN)/he-serve demo

test: install
	$(BIN)/python -m pytest -q

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	mkdir -p results
	set -e; for suite in $(SUITES); do $(BIN)/python -m bench.$$suite --json results/$$suite.json; done

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
