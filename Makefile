# Set-up, demo, tests. Every target sets up .venv from requirements.txt first, and again only when that file changes.
PYTHON ?= python3
PY := .venv/bin/python
# of the order of the tests; a failing order comes again with make test SEED=the number that make printed
SEED ?= $(shell date +%s)

.PHONY: demo test test-portable test-slow test-gpu test-fuzz lint format wheel docs clean
demo: .venv/ready
	$(PY) run.py demo

test: .venv/tests
	$(PY) -m pytest -q -n auto --randomly-seed=$(SEED)

# The numbers on a processor that knows less than this one: other kernels, other rounding.
PORTABLE ?= tests/golden tests/unit
test-portable: .venv/tests
	ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41 $(PY) -m pytest -q -n auto --randomly-seed=$(SEED) $(PORTABLE)

test-slow: .venv/tests
	$(PY) -m pytest -q -m slow

test-gpu: .venv/tests
	$(PY) -m pytest -q -m gpu

# 10,000 files as strangers may make them, and who reads them; fails on a traceback or a hang.
TIMES ?= 10000
test-fuzz: .venv/tests
	OMP_NUM_THREADS=1 $(PY) benchmarks/faults/strangers.py --times $(TIMES)

lint: .venv/tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright

format: .venv/tests
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.venv/ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

.venv/tests: tests/requirements.txt .venv/ready
	$(PY) -m pip install --quiet --requirement tests/requirements.txt
	touch $@

# A wheel of the three packages, into build/dist.
wheel: .venv/ready
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir build/dist .
	@ls build/dist/*.whl

# The documentation, into build/docs, without network; a broken link fails.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

.venv/docs: docs/requirements.txt .venv/ready
	$(PY) -m pip install --quiet --constraint requirements.txt --requirement docs/requirements.txt
	touch $@

clean:
	rm -rf .venv build runs experts
