# Set-up, demo, tests. Every target sets up .venv from requirements.txt first, and again only when that file changes.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test test-slow test-gpu lint format clean
demo: .venv/ready
	$(PY) run.py demo

test: .venv/tests
	$(PY) -m pytest -q -n auto

test-slow: .venv/tests
	$(PY) -m pytest -q -m slow

test-gpu: .venv/tests
	$(PY) -m pytest -q -m gpu

lint: .venv/tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright

format: .venv/ready
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.venv/ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

.venv/tests: tests/requirements.txt .venv/ready
	$(PY) -m pip install --quiet --requirement tests/requirements.txt
	touch $@

clean:
	rm -rf .venv runs experts
