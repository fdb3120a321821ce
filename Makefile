# Two commands do everything on a machine with Python and make: `make demo` and `make test`.
# The virtual environment is made and filled on first use; constraints.txt pins what goes in.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow lint format docs clean

help:
	@echo 'make demo       train an SRE-ResNet and its plain twin on embedded images, compare them under rotation'
	@echo '                (on 2 cores about a minute, the first time 1.5 more for the installation)'
	@echo 'make test       the default test suite'
	@echo 'make test-slow  the tests marked slow'
	@echo 'make lint       formatting, lint, types and the order of imports, as CI checks them'
	@echo 'make format     apply the formatting'
	@echo 'make docs       the documentation as web pages, in build/docs'
	@echo 'make clean      remove the virtual environment and caches'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/isoconv demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . build/docs
	@echo '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">isoconv</a>' > build/docs/index.html
	@echo 'open build/docs/index.html'

clean:
	rm -rf $(VENV) build/docs .pytest_cache .mypy_cache .ruff_cache .hypothesis
