# Everything a person does with this checkout. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO_OUT ?= demo/out

# Most of the time these tests wait: for leases, services that fail, processes that start.
FAULTS := $(BIN)/python -m pytest -n 6 --dist worksteal tests/faults
APART := --ignore tests/faults --ignore tests/soak --ignore tests/browser
SOAK ?= --seconds 600 --objects 10000

# Commands and tests start hundreds of processes, which would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test notebook browser browser-programs check faults mutations soak postgres-test dev lock clean programs test-programs server-programs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

programs:
	@scripts/install_programs.sh

test-programs:
	@scripts/install_programs.sh espeak

server-programs:
	@scripts/install_programs.sh postgresql

browser-programs:
	@scripts/install_programs.sh chromium

demo: $(STAMP) programs  ## install everything and run the main job on the demo media, offline
	$(BIN)/mm demo --out $(DEMO_OUT)

test: $(STAMP) test-programs  ## run the tests, and of the fault suite the part on moto and SQLite
	$(BIN)/python -m pytest -n 2 --dist loadfile $(APART)
	$(FAULTS) -k moto-sqlite

check: $(STAMP)  ## lint, format, types, import contracts, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate -q mm_assets jobs sensors tests scripts
	$(BIN)/python scripts/generate_docs.py --check

faults: $(STAMP) server-programs  ## the faults of docs/guarantees.md by number, on moto and rclone, SQLite and PostgreSQL
	$(FAULTS)

mutations: $(STAMP) test-programs  ## plant protocol bugs in a copy of the code: each must be caught by a test
	$(BIN)/python scripts/mutations.py

soak: $(STAMP) test-programs  ## kill workers at random for ten minutes over 10,000 objects, then compare everything
	PYTHONPATH=tests $(BIN)/python -m soak.run $(SOAK)

postgres-test: $(STAMP) server-programs  ## the tests with the ledger on a real PostgreSQL
	$(BIN)/python -m pytest -n 2 --dist loadfile $(APART) --ledger postgresql

notebook: $(STAMP) programs  ## execute notebooks/search.ipynb on the demo's lake; the copy with pictures is docs/notebook/
	@test -f $(DEMO_OUT)/mm_assets.yaml || $(BIN)/mm demo --out $(DEMO_OUT)
	PYTHONWARNINGS=ignore MM_ASSETS_CONFIG=$(abspath $(DEMO_OUT))/mm_assets.yaml $(BIN)/jupyter-nbconvert --log-level ERROR --execute \
		--NbConvertBase.display_data_priority "['text/html', 'image/jpeg', 'image/png', 'text/plain']" \
		--to markdown --output-dir docs/notebook notebooks/search.ipynb
	@for file in docs/notebook/search_files/*; do grep -q "$$(basename $$file)" docs/notebook/search.md || rm "$$file"; done

browser: $(STAMP) test-programs browser-programs  ## drive the page in headless Chromium; screenshots are in build/browser/
	$(BIN)/python -m pytest tests/browser

dev: $(STAMP)  ## Dagster's UI with the daemon, on the settings in this folder (or of MM_ASSETS_CONFIG)
	@scripts/dev.sh

lock: $(STAMP)  ## write requirements.lock from what is installed
	$(BIN)/python scripts/lock.py

clean:  ## remove the environment, caches and the demo's output
	rm -rf $(VENV) $(DEMO_OUT) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
