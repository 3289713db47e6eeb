# Everything runs in a project-local virtual environment; nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/tools
LOCK := infra/requirements.lock

.DEFAULT_GOAL := help
.PHONY: help install demo test lint browser bench study lock sbom vulnerabilities clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

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

$(TOOLS):  # for a release; apart, so that they constrain nothing that is installed with the package
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0 pip-audit==2.10.1 || { rm -r $@; exit 1; }

lock: | $(TOOLS)  ## Resolve infra/requirements.lock: what the package needs, with versions and hashes
	$(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --constraint constraints.txt \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --output-file $(LOCK) pyproject.toml >/dev/null

sbom: | $(TOOLS)  ## List what the lock installs as dist/latentprint.cdx.json (CycloneDX)
	mkdir -p dist
	PYTHONWARNINGS=ignore $(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --of JSON --output-file dist/latentprint.cdx.json $(LOCK)

vulnerabilities: | $(TOOLS)  ## Look up what the lock installs among known vulnerabilities; needs PyPI's advisories
	@$(TOOLS)/bin/pip-audit --strict --requirement $(LOCK) --disable-pip --require-hashes --progress-spinner off || \
	  { echo "Not cleared: a vulnerability was found, or a package could not be looked up (the lines above say which)."; exit 1; }

clean:  ## Remove the environment and caches (not your runs)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
