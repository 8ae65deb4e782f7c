# The commands of the house. Each makes the virtual environment that it needs; a second call starts at once.
#
#   make demo        the story on one machine, nothing but Python needed
#   make demo-real   the same with real Unleash, PostgreSQL, Valkey and Prometheus
#   make test        the in-process tests against the built wheel, then the whole suite with real servers
#   make check       format, lint, types, layering
#
# PYTHON=/path/to/python chooses another interpreter than the first suitable one on PATH.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv/bin
WHEEL_VENV := .cache/wheel-venv
export PYTHON
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# What the wheel's own run leaves out: tests of this house itself, which say nothing about the wheel. A test that asks for
# its server only while it runs is not known to need one, so the servers are fetched first here too.
NOT_THE_WHEEL := --ignore=tests/house --ignore=tests/packaging --ignore=tests/services_test

.PHONY: help demo demo-real test suite wheel-test check services environment clean

help:
	@sed -n 's/^#   //p' Makefile

demo:
	@scripts/environment demo
	@$(VENV)/python -m examples.demo

demo-real: services
	@$(VENV)/python -m examples.demo --real

environment:
	@scripts/environment dev

services: environment
	@$(VENV)/python -m tests.services.install

test: wheel-test suite

suite: services
	$(VENV)/pytest

wheel-test: services
	@mkdir -p .cache
	@scripts/environment wheel
	TIDEGATE_FROM=$(WHEEL_VENV) $(WHEEL_VENV)/bin/pytest -q -m "not real_server" $(NOT_THE_WHEEL)

CHECKS := "ruff check ." "ruff format --check ." "mypy" "pyright --pythonpath $(VENV)/python" "lint-imports"

check: environment
	@failed=; \
	for check in $(CHECKS); do \
	  echo "== $$check"; \
	  $(VENV)/$$check || failed="$$failed$${failed:+, }$$check"; \
	done; \
	[ -z "$$failed" ] || { echo "check: FAILED $$failed" >&2; exit 1; }; \
	echo "check: all passed"

clean:
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
