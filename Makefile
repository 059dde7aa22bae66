# Slipstream: every command a user needs. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# The Python on which every test has passed, else the one on which most have; and one for the unit tests that need no torch.
PYTHON ?= $(shell requirements/find_python.sh 3.11 3.12)
LIGHT_PYTHON ?= $(shell requirements/find_python.sh 3.12 3.13)
LIGHT_VENV := .venv-light
VENV := .venv
RUN := $(VENV)/bin/python
# What is installed stays: `make setup-gpu` leaves a stamp of its own, and every command takes that environment as it is.
KIND := $(if $(wildcard $(VENV)/.installed-gpu),gpu,cpu)
STAMP := $(VENV)/.installed-$(KIND)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup setup-gpu setup-te quickstart mock test lint types layers unit unit-light user-namespaces clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(VENV)/.installed-%: requirements/setup.sh requirements/%.txt requirements/torch.txt $(wildcard compat/environment/*.py)
	@requirements/setup.sh $* "$(PYTHON)" "$(VENV)"

setup: $(STAMP)  ## set up .venv for a machine without a GPU (idempotent)

setup-gpu: $(VENV)/.installed-gpu  ## set up .venv for a CUDA machine (SGLang's own pins)

setup-te: setup-gpu  ## build TransformerEngine for it (needs nvcc and cuDNN's headers; some ten minutes)
	@requirements/transformer_engine.sh "$(VENV)"

quickstart: $(STAMP)  ## train a tiny Qwen3 by async GRPO on two CPU cores, a few minutes
	$(RUN) train_async.py --config quickstart

mock: $(STAMP)  ## the whole pipeline with simulated engines and learner, seconds
	$(RUN) train_async.py --mock --num-rollout 50 --async-buffer-size 2

lint: $(STAMP)  ## ruff: style and common mistakes
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: $(STAMP)  ## mypy
	$(VENV)/bin/mypy

layers: $(STAMP)  ## import-linter: who may import whom
	$(VENV)/bin/lint-imports

unit: $(STAMP)  ## the tests that start no real engine or learner
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not alone" tests

unit-light:  ## the unit tests that need no torch, on Python 3.12 or 3.13, if one is here
	@python="$(LIGHT_PYTHON)"; \
	if [ -z "$$python" ]; then echo "unit-light: skipped, no Python 3.12 or 3.13 runs here (or say LIGHT_PYTHON=/path/to/python3.12)"; exit 0; fi; \
	requirements/light.sh "$$python" $(LIGHT_VENV) && \
	$(LIGHT_VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not alone" \
		@tests/light.txt

test: lint types layers  ## everything: style, types, layers and all tests
	@status=0; \
	echo "== tests side by side"; $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not alone" tests || status=1; \
	echo "== tests alone"; $(RUN) -m pytest -m alone tests || status=1; \
	exit $$status

user-namespaces:  ## let the sandbox be built on Ubuntu 24.04 (asks for sudo; until the next boot)
	@sudo sysctl -q -w kernel.apparmor_restrict_unprivileged_userns=0

clean:  ## remove caches and made models (not .venv*, not runs/)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache models
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
