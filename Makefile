# A newcomer needs two of these: `make serve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: serve test test-slow check format clean help

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

serve: $(INSTALLED)  ## create the environment, install, serve the embedded model
	$(BIN)/tiller serve $(ARGS)

test: $(INSTALLED)  ## the whole suite but the slow tests
	$(BIN)/python -m pytest -q $(ARGS)

test-slow: $(INSTALLED)  ## soak, kill and fuzz tests
	$(BIN)/python -m pytest -q -m slow --timeout 1800 $(ARGS)

check: $(INSTALLED)  ## lint, format and strict types, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
