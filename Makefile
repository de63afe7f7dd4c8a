# On a fresh machine: `make quickstart`, `make serve` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart serve test lint types format arrows kinds faithfulness contract install clean

quickstart: $(VENV)/.installed
	$(BIN)/titer run quickstart

# A fine-tuning server with one worker on this machine alone. The first start makes an organisation and prints its key.
DATA ?= data-titer
PORT ?= 8000
SERVE ?=
serve: $(VENV)/.installed-serve
	@mkdir -p $(DATA); chmod 700 $(DATA)
	@[ -e $(DATA)/titer.db ] && [ "$$($(BIN)/titer keys list --data $(DATA) --json)" != "[]" ] || \
		echo "key, shown this once: $$($(BIN)/titer keys create --data $(DATA) --org mine)"
	@$(BIN)/titer serve --data $(DATA) --port $(PORT) $(SERVE)

# Three at a time, since on two cores each waits a third of its time; files kept whole: their models are made once. They begin in the order of tests/conftest.py, the longest first.
# One thread each, since threads that wait for each other spin. Types are checked beside them, in one process that is soon done.
test: lint
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types && exit $$tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks docs/*.py examples
	$(BIN)/ruff format --check src tests benchmarks docs/*.py examples

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests benchmarks docs/*.py examples
	$(BIN)/ruff format src tests benchmarks docs/*.py examples

# The picture of the rooms in docs/architecture.md.
arrows:
	$(PYTHON) docs/arrows.py

# The code of each kind of job, with its version: after a change that `tests/test_kinds.py` names.
kinds: $(VENV)/.installed-dev
	$(BIN)/python docs/kinds.py

# What papers, their released code and titer do, gathered from the cards into docs/faithfulness.md.
faithfulness:
	$(PYTHON) docs/faithfulness.py

# Every method against every rule, into docs/contract.md; a few minutes.
contract: $(VENV)/.installed-dev
	$(BIN)/python docs/contract.py

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version, so that no other requirement draws in another build of it.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP) torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/.installed-serve: $(VENV)/.installed
	$(PIP) -e '.[serve]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml examples/typescript/package-lock.json
	$(PIP) -e '.[dev]'
	if command -v npm > /dev/null; then npm ci --silent --no-audit --no-fund --prefix examples/typescript; fi
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
