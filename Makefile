# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set up all they need in .venv; PYTHON chooses the interpreter.
# `make wheel` puts into dist/ what cluster/ brings to the nodes of a cluster.
# `make bench ARGS="--images 512,4096 --rounds 3"`; see tests/benchmarks/bench.py for the arguments.
PYTHON ?= python3
BIN := .venv/bin
DIST := dist

.PHONY: demo wheel test test-slow test-longest torture lint bench clean

demo: .venv/installed
	$(BIN)/ray-embed demo

# `build` would keep modules that are gone, and an old wheel might be taken for the new one.
wheel: .venv/installed
	rm -rf build $(DIST)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(DIST) .
	rm -rf build
	cp constraints.txt $(DIST)

test: .venv/installed
	$(BIN)/python -m pytest

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

test-longest: .venv/installed
	$(BIN)/python -m pytest -m longest

torture: .venv/installed
	$(BIN)/python tests/faults/torture.py $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python tests/benchmarks/bench.py --work .bench $(ARGS)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,lint]"
	touch $@

clean:
	rm -rf .venv .bench build dist runs
