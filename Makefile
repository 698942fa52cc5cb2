# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set up all they need in .venv; PYTHON chooses the interpreter.
# `make wheel` puts into dist/ what cluster/ brings to the nodes of a cluster.
# `make bench ARGS="--images 512,4096 --rounds 3"`; see tests/benchmarks/bench.py for the arguments.
PYTHON ?= python3
BIN := .venv/bin
DIST := dist
# Two tests at a time, as much of each is waiting; those of one file share what its fixtures make.
# In the order of the files, which has the long ones of faults/ and cluster/ early.
WORKERS ?= 2
SIDE_BY_SIDE := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo wheel test test-slow test-longest torture lint docs bench clean

demo: .venv/installed
	$(BIN)/ray-embed demo

# `build` would keep modules that are gone, and an old wheel might be taken for the new one.
wheel: .venv/installed
	rm -rf build $(DIST)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(DIST) .
	rm -rf build
	cp constraints.txt $(DIST)

test: .venv/installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: .venv/installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow

# One after the other: Ray's own fake cloud has fixed ports.
test-longest: .venv/installed
	$(BIN)/python -m pytest -m longest

torture: .venv/installed
	$(BIN)/python tests/faults/torture.py $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m ray_embed.cli.docs --check docs/cli.md
	$(BIN)/codespell

docs: .venv/installed
	$(BIN)/python -m ray_embed.cli.docs > docs/cli.md

bench: .venv/installed
	$(BIN)/python tests/benchmarks/bench.py --work .bench $(ARGS)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,lint]"
	touch $@

clean:
	rm -rf .venv .bench build dist runs
