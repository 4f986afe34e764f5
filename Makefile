# Every target sets up what it needs: a virtual environment in .venv from the locked requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test fast scorecard fuzz bench lint types imports docs check lock clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

venv: $(STAMP)  ## make .venv with everything in it

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked requirements into $(VENV) (once, about a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## watch broken deltas being caught, quarantined and kept out of a chunk
	@$(BIN)/deltaguard demo

test: $(STAMP)  ## all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

fast: $(STAMP)  ## the tests that take seconds
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

scorecard: $(STAMP)  ## break hundreds of deltas, ask Chroma, and score every depth and its rivals (6 minutes)
	@$(BIN)/python -m bench.scorecard

fuzz: $(STAMP)  ## 100,000 broken inputs for the parsers
	@$(BIN)/python -m tests.fuzz

bench: $(STAMP)  ## every cost as a ratio to a named alternative
	@$(BIN)/python -m bench

lint: $(STAMP)  ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	@$(BIN)/mypy

imports: $(STAMP)  ## the one-way order of the rooms
	@$(BIN)/lint-imports

docs: $(STAMP)  ## write the files anew that are made from the code
	@$(BIN)/python -m local.reference

check: lint types imports test  ## everything CI does

lock:  ## resolve the requirements anew (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-package deltaguard -o requirements.lock

clean:  ## remove what make has made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
