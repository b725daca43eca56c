# The two commands of the README, and the linters. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV ?= .venv
SEED ?= 1
BIN = $(VENV)/bin

.PHONY: verify test test-all lint clean

verify: $(VENV)/installed
	@$(BIN)/python -m verify run --seed $(SEED)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n auto

# What costs minutes besides, and pages older than what they speak of.
test-all: $(VENV)/installed-test
	$(BIN)/python -m pytest -n auto --costly --durations=20 -W error::verify.report.stamp.StalePage

lint: $(VENV)/installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt verify/entry.py
	@.ci/install $(VENV) "torch, jax and this package (some minutes; 1.3 GB, or 6 GB with a CUDA build of torch)" .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@.ci/install $(VENV) "the test tools (a minute, 0.3 GB)" '.[test]'
	@touch $@

$(VENV)/installed-lint: $(VENV)/installed
	@.ci/install $(VENV) "the linters (half a minute, 0.1 GB)" '.[lint]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
