# Everything runs in a project-local virtual environment; nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench study clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Set up .venv from constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentprint needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## Audit the bundled model and images; prints where the report is
	$(BIN)/latentprint demo

lint: $(INSTALLED)  ## ruff, mypy --strict, import contracts, sqlfluff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint sql

test: lint browser  ## The whole suite, with lint, types and import contracts
	$(BIN)/pytest --numprocesses 2 --dist loadfile

browser:  # the report is opened in a real Chromium; CI has root and Debian, others are told what is missing
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  echo "No Chromium found: the report's browser tests will be skipped. Get it with: apt-get install chromium"

bench: $(INSTALLED)  ## Ratios taken in one run: what the pipeline costs beside the network
	$(BIN)/python -m tests.benchmarks

study: $(INSTALLED)  ## Slow studies: the tables and figures of the README
	$(BIN)/python -m tests.studies

clean:  ## Remove the environment and caches (not your runs)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
