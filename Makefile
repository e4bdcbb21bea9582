# make chat       set up and talk to the shipped bundle
# make test       set up, then lint, types and tests on the base install
# make test-all   the same with the extras and every test (some open Chromium or tmux); TORCH names the build of torch: where pip would take a CUDA
#                 build of several gigabytes, point PIP_EXTRA_INDEX_URL at an index of CPU builds first

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: help chat setup test test-all lint bundle clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@echo "installing; llama.cpp is compiled the first time, which takes several minutes"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

bundle: setup
	$(BIN)/frcli models pull smollm2-quartet

chat: bundle
	$(BIN)/frcli chat smollm2-quartet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: bundle lint
	$(BIN)/pytest

$(VENV)/.extras: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[train,eval,ray]"
	touch $@

test-all: bundle lint $(VENV)/.extras
	FRCLI_TEST_ALL=1 $(BIN)/pytest

clean:
	rm -rf $(VENV)
