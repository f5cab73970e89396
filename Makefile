# Every target sets up what it needs: Python 3.11 or newer, pip and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo serve test check fix bench bench-gpu lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the environment in .venv, from the lock file

$(READY): requirements.lock requirements-cuda.lock pyproject.toml tools/setup.sh
	sh tools/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: setup  ## draw the README's picture
	@mkdir -p output
	$(BIN)/zturbo generate "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses." \
	    --size 1440x512 --seed 7 --output output/t-rex.png

serve: setup  ## answer POST /v1/images/generations on this computer, until stopped
	$(BIN)/zturbo serve

test: setup  ## all tests; those that need a GPU are skipped where there is none
	$(BIN)/python -m pytest

check: setup  ## format, lint, types, import rules, generated docs; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/docs

fix: setup  ## format, repair what the linter can, write the generated docs
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python docs/generate.py

bench: setup  ## this engine beside diffusers in one run; writes bench/results/
	$(BIN)/python -m bench.engine

bench-gpu:  ## parity in bf16 and full-size speed on a CUDA machine, with the Python at hand and no network
	$(PYTHON) -m bench.gpu

lock: setup  ## resolve the dependencies anew into the two lock files
	$(BIN)/python -m pip install --quiet "uv>=0.8"
	$(BIN)/python tools/lock.py

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
