# make help lists the commands. Everything lives in .venv; only Python 3.11 or newer and make are needed.

.DEFAULT_GOAL := help
SHELL := /bin/sh

PORT ?= 3000
# Processes that run the tests beside each other. More than two wait for the exporter, whose tests stay in one.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Commands run as modules: the first line of a script names its interpreter, and quotes in that path break it.
RUN := $(BIN)/python -m

# The first interpreter that is new enough; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export BENTOML_DO_NOT_TRACK := true
# Every installation is held to the versions that were tested together, build back ends included (by the variable).
# Relative, because pip splits the variable at spaces.
INSTALL := PIP_CONSTRAINT=constraints.txt $(RUN) pip install --quiet --quiet --constraint constraints.txt

# Scripts and editable installs hold absolute paths: a checkout that was moved gets a new environment.
HERE := $(shell pwd | cksum | cut -d ' ' -f 1)
CREATED := $(VENV)/.created-$(HERE)
SERVE := $(VENV)/.serve
DEVELOP := $(VENV)/.develop

.PHONY: help
help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: serve
serve: $(SERVE)  ## Set up what serving needs (no torch) and serve the shipped model; PORT=3000
	@exec $(RUN) ptsa_serve serve --port $(PORT)

.PHONY: setup
setup: $(DEVELOP)  ## Install everything for development into .venv

.PHONY: test
test: $(DEVELOP)  ## Format, lint, types, import arrows, tests; WORKERS=0: in one process
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) pyright --pythonpath $(BIN)/python
	$(BIN)/python -c "from importlinter.cli import lint_imports_command; lint_imports_command()"
	$(RUN) pytest -n $(WORKERS)

.PHONY: format
format: $(DEVELOP)  ## Rewrite the sources the way `make test` wants them
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

.PHONY: test-slow
test-slow: $(DEVELOP)  ## Tests that take minutes or need the data sets
	$(RUN) pytest -m slow

.PHONY: test-browser
test-browser: $(DEVELOP)  ## Tests of the page in Chromium
	$(RUN) pytest -m browser

.PHONY: test-gpu
test-gpu: $(DEVELOP)  ## Tests that need an NVIDIA GPU
	$(RUN) pytest -m gpu

.PHONY: gpu-check
gpu-check: $(DEVELOP)  ## All that an NVIDIA GPU can tell of the shipped model: maps and speed of every engine, into one JSON
	$(RUN) benchmarks gpu --out runs/gpu-check/gpu-check.json

.PHONY: bento
bento: $(DEVELOP)  ## Build the deployable bento from bentofile.yaml
	$(RUN) bentoml build

.PHONY: wheel
wheel: $(DEVELOP)  ## Build the wheel into dist/
	$(RUN) hatchling build -t wheel

.PHONY: clean
clean:  ## Remove the environment and everything built
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(CREATED):
	@[ -n "$(PYTHON)" ] || { echo "ptsa-serve needs Python 3.11 or newer; found" \
		"$$(python3 --version 2>&1 || echo none). Install one, or say where: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ptsa-serve needs Python 3.11 or" \
		"newer; $(PYTHON) is $$("$(PYTHON)" --version 2>&1 | head -n 1). Say where a newer one is: make PYTHON=/path/to/python3" \
		>&2; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# Newer sources of the list of packages make a stamp stale; unchanged ones cost nothing.
$(SERVE): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing what serving needs (about a minute)"
	@$(INSTALL) --editable '.[cpu,openvino]'
	@touch $@

$(DEVELOP): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing what development needs (several minutes, torch is large)"
	@$(INSTALL) --editable '.[cpu,openvino,tensorrt-rtx,train,dev]'
	@touch $@ $(SERVE)
