# Two commands are enough: `make paper` and `make test`. Each sets up .venv by itself the first time.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup paper check test long attack lab docs export clean

# The first interpreter that is new enough; name another with PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Further words for pip when it installs torch, such as an index of CPU builds.
TORCH_ARGS ?=
PROFILE ?= quick
# Words for the attacks, such as --part 0/4 for a quarter of them or --only kill.
ATTACK ?=
BIN := .venv/bin
# Threads that wait for others sleep; spinning ones make two processes on two cores many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# An environment does not survive being moved: its marker names the place it was made for.
MOVED := $(shell test ! -f $(READY) || test "$$(cat $(READY))" = "$(CURDIR)" || rm -rf .venv)

help:  ## list the targets
	@echo "make paper is the main job, make test proves that it works here. Targets:"
	@grep -hE '^[a-z]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-7s %s\n", $$1, $$2}'
	@echo "Options: PYTHON=python3.12, PROFILE=quick, TORCH_ARGS='words for pip install torch', ATTACK='--part 0/4'"

setup: $(READY)  ## create .venv and install everything (the other targets do it when needed)

# Marked ready only at the end, so that an interrupted set-up goes on with the same command.
$(READY): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "no Python 3.11 or newer was found: install one, or name it with make PYTHON=/path/to/python3"; exit 2; }
	@echo "setting up .venv with $$($(PYTHON) --version): a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@echo "installing torch" && $(PIP) $(TORCH_ARGS) torch
	@echo "installing the rest" && $(PIP) --editable '.[rerun,docs,dev]'
	@echo "$(CURDIR)" > $@

paper: $(READY)  ## rerun the paper (PROFILE=quick) into reports/
	@$(BIN)/localdpo paper --profile $(PROFILE)

PYTEST := $(BIN)/pytest -q -n 2 --durations 15

check: $(READY)  ## lint, notebooks in step with the package, pins, and all short tests
	@$(PYTEST) --dist worksteal -m 'not slow and not long'

test: check  ## make check, then every notebook and the slow tests
	@$(BIN)/nbdev_test --n_workers 2 --skip_folder_re '^[_.]|^(miniature|benchmarks|rerun)$$'
	@$(PYTEST) --dist worksteal -m 'slow and not long'

long: $(READY)  ## the long tests: the shipped models, a killed paper, dozens of killed builders and runs
	@$(PYTEST) --dist loadgroup -m long

attack: $(READY)  ## kills, damages and bad input by the hundred; stopped, it goes on; the table is in reports/attacks
	@$(BIN)/python tests/attack $(ATTACK)

lab: $(READY)  ## open JupyterLab, with hooks that keep notebooks clean
	@$(BIN)/python -m localdpo.dev hooks
	@$(BIN)/jupyter lab nbs

docs: $(READY)  ## build the documentation, offline, into _docs/html
	@$(BIN)/python -m localdpo.dev.site

export: $(READY)  ## notebooks -> package and README.md, then clean the notebooks
	@$(BIN)/ruff format nbs && $(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/python -m localdpo.dev readme

clean:  ## remove what can be made again (.venv too), but not reports/
	@rm -rf .venv _docs _proc build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
