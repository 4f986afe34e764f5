# Every target sets up what it needs: a virtual environment in .venv from the locked requirements.
PYTHON ?= python3
NPM ?= npm
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NODE_STAMP := node_modules/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo offline package test test-all fast scorecard fuzz bench zoo lint types imports docs check lock zoolock clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

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

offline: $(STAMP) $(NODE_STAMP)  ## the whole stack on this machine, until Ctrl-C (needs Node.js)
	@exec $(BIN)/python -m devtools.stack.offline

package: $(STAMP) $(NODE_STAMP)  ## the CloudFormation template in .serverless, checked; needs no credentials
	@SLS_TELEMETRY_DISABLED=1 node_modules/.bin/serverless package
	@$(BIN)/cfn-lint .serverless/cloudformation-template-update-stack.json

$(NODE_STAMP): package-lock.json
	@command -v $(NPM) > /dev/null || { echo "Node.js 20.19, 22.13, 24 or newer is needed, with npm"; exit 1; }
	@echo "Installing the locked packages of Node.js into node_modules (once, half a minute) ..."
	@$(NPM) ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

test: $(STAMP) $(if $(shell command -v $(NPM)),$(NODE_STAMP))  ## all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

fast: $(STAMP)  ## the tests that take seconds
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(STAMP) $(if $(shell command -v $(NPM)),$(NODE_STAMP))  ## every case of every enumeration
	@DELTAGUARD_TEST_SWEEP=all $(BIN)/python -m pytest -n 2 --dist loadfile

scorecard: $(STAMP)  ## break hundreds of deltas, ours and the zoo's, ask Chroma, and score every depth and its rivals (10 minutes)
	@$(BIN)/python -m bench.score.scorecard

fuzz: $(STAMP)  ## 100,000 broken inputs for the parsers
	@$(BIN)/python -m tests.support.fuzz

# The nightly form: make zoo COUNT=2000 SEED=$$(date +%s)
COUNT ?= 200
SEED ?= 0

zoo: $(STAMP)  ## directories by real clients of 14 releases of Chroma, judged against the newest (10 minutes)
	@$(BIN)/python -m devtools.zoo --count $(COUNT) --seed $(SEED)

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
	@$(BIN)/python -m devtools.reference.files

check: lint types imports test  ## everything CI does

# What the image leaves out of Chroma's requirements: they embed text or serve HTTP, which nothing of ours asks for.
LEFT_OUT := hf-xet huggingface-hub kubernetes onnxruntime tokenizers uvloop

lock:  ## resolve the requirements anew (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-package deltaguard -o requirements.lock
	uv pip compile pyproject.toml --extra chroma --constraint requirements.lock --python-version 3.13 --python-platform x86_64-manylinux_2_34 --generate-hashes --no-header --no-annotate --no-emit-index-url $(foreach name,deltaguard $(LEFT_OUT),--no-emit-package $(name)) -o deploy/requirements.lock

zoolock: $(STAMP)  ## resolve the requirements of the zoo's releases anew (needs uv)
	@$(BIN)/python -m devtools.zoo.lock

clean:  ## remove what make has made
	rm -rf $(VENV) node_modules .serverless .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
