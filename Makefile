# The commands of the house. Each makes the virtual environment that it needs; a second call starts at once.
#
#   make demo        the story on one machine, nothing but Python needed
#   make demo-real   the same with real Unleash, PostgreSQL, Valkey and Prometheus
#   make test        every test, with real servers, against the built wheel: what is tested is what ships
#   make suite       the same against the source tree, without building anything
#   make check       format, lint, types, layering
#   make conformance SUITE=folder   the score in the public HTTP caching suite, a checkout of http-tests/cache-tests
#   make bench       what a request costs in one process, against a raw ASGI function and the last recorded table
#   make kill-figures   how soon `tidegate kill` has shut four workers under load, 20 rounds in each of four worlds
#   make chaos       readers and writers on one Valkey, again over a stream, then under Sentinels: connections that die,
#                    links that go silent, failovers that lose purges: was a purge honoured?
#                    CHAOS="--purges 3000 --seed 7 --redis" says how many, which dice, and that it be Redis 7
#
# PYTHON=/path/to/python chooses another interpreter than the first suitable one on PATH.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv/bin
WHEEL_VENV := .cache/wheel-venv
export PYTHON
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo demo-real test suite check bench conformance kill-figures chaos services environment clean

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

test: services
	@mkdir -p .cache
	@scripts/environment wheel
	TIDEGATE_FROM=$(WHEEL_VENV) $(WHEEL_VENV)/bin/pytest

suite: services
	$(VENV)/pytest

kill-figures: services
	@$(VENV)/python -m tests.promises.kills 20

chaos: services
	@$(VENV)/python -m tests.promises.chaos $(CHAOS)

CHECKS := "ruff check ." "ruff format --check ." "mypy" "pyright --pythonpath $(VENV)/python" "lint-imports"

check: environment
	@failed=; \
	for check in $(CHECKS); do \
	  echo "== $$check"; \
	  $(VENV)/$$check || failed="$$failed$${failed:+, }$$check"; \
	done; \
	[ -z "$$failed" ] || { echo "check: FAILED $$failed" >&2; exit 1; }; \
	echo "check: all passed"

bench: environment
	@[ -d .cache/bench ] || $(VENV)/python -m pip install --quiet --target .cache/bench httptools uvloop
	@PYTHONPATH=$(CURDIR)/.cache/bench $(VENV)/python -m tests.bench $(BENCH)

conformance: environment
	@[ -n "$(SUITE)" ] || { echo "conformance: say where the suite is: make conformance SUITE=folder" >&2; exit 2; }
	@[ -d .cache/conformance/httptools ] || $(VENV)/python -m pip install --quiet --target .cache/conformance httptools
	@PYTHONPATH=$(CURDIR)/.cache/conformance $(VENV)/python -m tests.conformance "$(SUITE)" $(CONFORMANCE)

clean:
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
