# make nano   the whole story on a laptop's CPU       make test   the test suite
# Both start on a fresh machine: the first call makes .venv and installs what is needed.

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DATA_ROOT ?=
ARGS ?=
DATA := $(if $(DATA_ROOT),--data_root $(DATA_ROOT))
SOURCES := pipeline stages eval examples tests

# Prints the interpreter that makes .venv. A name may exist and not run, as pyenv's shims do.
FIND_PYTHON = for name in python3.11 python3.12 python3; do \
	  $$name -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    && echo $$name && exit 0; \
	done; \
	echo "error: found no python3.11 or newer with its venv module; install one" \
	  "(Debian: apt install python3 python3-venv)" >&2; exit 1

.DEFAULT_GOAL := help
.PHONY: help nano gsm8k math test lint format venv peer python clean

help: ## list what can be made
	@sed -nE 's/^([a-z0-9]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
	@echo 'ARGS="..." adds arguments: make nano ARGS="--seed 43 --output_dir runs/nano-43"'

nano: $(INSTALLED) ## made-up sums: SFT, PPO, evaluation; the table in runs/nano/report.md
	@$(PYTHON) -m stages.recipe $(ARGS)

gsm8k: $(INSTALLED) ## the same on GSM8K; DATA_ROOT=DIR reads a local copy, else the Hub
	@$(PYTHON) -m stages.recipe --config configs/gsm8k/recipe.yaml $(DATA) $(ARGS)

math: $(INSTALLED) ## the same on MATH
	@$(PYTHON) -m stages.recipe --config configs/math/recipe.yaml $(DATA) $(ARGS)

# One thread a worker: two workers on two cores would otherwise wait for each other.
test: $(INSTALLED) ## the test suite; slow tests with ARGS="-m slow"
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 $(ARGS)

lint: $(INSTALLED) ## ruff, as the commit hook runs it
	@$(PYTHON) -m ruff check $(SOURCES)
	@$(PYTHON) -m ruff format --check $(SOURCES)

format: $(INSTALLED) ## mend what ruff can mend
	@$(PYTHON) -m ruff check --fix $(SOURCES)
	@$(PYTHON) -m ruff format $(SOURCES)

venv: $(INSTALLED) ## make .venv with the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@python=$$($(FIND_PYTHON)) && $$python -m venv $(VENV)
	@echo "installing into $(VENV), some minutes the first time"
	@$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# TRL dropped its PPOTrainer after 1.12.0; everything else is of the tested versions.
peer: ## make .venv-peer with TRL 1.12.0, the peer of `python -m eval.bench`
	@python=$$($(FIND_PYTHON)) && $$python -m venv .venv-peer
	@sed 's/^trl==.*/trl==1.12.0/' constraints.txt > .venv-peer/constraints.txt
	@.venv-peer/bin/python -m pip install --quiet --constraint .venv-peer/constraints.txt \
	  torch transformers trl accelerate datasets

python:
	@$(FIND_PYTHON)

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -exec rm -rf {} +
