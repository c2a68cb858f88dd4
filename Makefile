PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install test test-slow lint format

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with the package (editable) and its development tools; done by the others when needed

# Touched last: an install that was interrupted starts again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 (this is $$($(PYTHON) --version 2>&1))" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

test: $(INSTALLED) ## unit tests, under 3 minutes on 2 cores
	$(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED) ## the slow tests: training, several processes, the built package
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(INSTALLED) ## style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
