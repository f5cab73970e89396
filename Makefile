# Every target sets up what it needs: Python 3.11 to 3.14 with venv, pip and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PLACE := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))

# A checkout that was moved, or whose Python has gone, is set up anew.
ifneq ($(shell $(BIN)/python -c "" 2>/dev/null && grep -qs "[^a-zA-Z0-9_./-]$(PLACE)/" $(BIN)/pip && echo whole),whole)
$(shell rm -f $(READY))
endif

.PHONY: help setup demo serve test fuzz screenshots check fix bench bench-load bench-server bench-gpu lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the environment in .venv, from the lock file

$(READY): requirements.lock requirements-cuda.lock pyproject.toml tools/setup.sh
	sh tools/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: setup  ## start the server, send the published example, save its picture, stop
	$(BIN)/python tools/demo.py output/t-rex.png

serve: setup  ## answer POST /v1/images/generations on this computer, until stopped
	$(BIN)/zturbo serve

test: setup  ## all tests; those that need a GPU are skipped where there is none
	$(BIN)/python -m pytest

screenshots: setup  ## the playground's pictures in docs/images, taken in a real browser with nano
	$(BIN)/python -m tools.screenshots

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

fuzz: setup  ## thousands of requests out of both OpenAPI documents; FUZZ_EXAMPLES says how many of each kind
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-300} $(BIN)/python -m pytest -q -s tests/api/test_fuzz.py

bench: setup  ## the levels on this CPU: beside diffusers, waterfall, quality, 6B blocks; some ten minutes
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.quality
	$(BIN)/python -m bench.blocks

bench-load: setup  ## mixed requests at once beside the same one by one; a minute or two
	$(BIN)/python -m bench.load

bench-server: setup  ## requests a second and latency of the server, with keys, records and files; writes bench/results/
	$(BIN)/python -m bench.server

bench-gpu:  ## parity and full-size speed on a CUDA machine, with the Python at hand and no network; PARTS="--part denoise"
	$(PYTHON) -m bench.gpu $(PARTS)

lock: setup  ## resolve the dependencies anew into the two lock files
	$(BIN)/python -m pip install --quiet "uv>=0.8"
	$(BIN)/python tools/lock.py

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
