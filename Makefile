# Reelmesh: every target is one command on a fresh machine with Python 3.11+ and make.
#   make demo     install, start a two-region mesh, make one video, stop the mesh
#   make test     install, run all tests
#   make check    lint, types, import contracts, protos, file sizes
#   make chaos    faults of every kind on a whole mesh; MINUTES=30 SEED=1
#   make bench    the benchmarks' tables (nginx from your system's packages, if it is there;
#                 LiteLLM's proxy is installed into your cache folder, some 750 MB)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test chaos check lint types contracts protos protos-check fmt lock bench eval-demo clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -7

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Reelmesh needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Two stamps: the demo needs no test tools.
$(VENV)/.local: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Reelmesh into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable '.[local]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing Reelmesh and its test tools into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.local

demo: $(VENV)/.local
	$(BIN)/reelmesh demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint types contracts protos-check
	$(BIN)/python tools/check_sizes.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

contracts: $(VENV)/.test
	PYTHONPATH=proto $(BIN)/lint-imports

protos-check: $(VENV)/.test
	$(BIN)/buf lint
	$(BIN)/python tools/gen_protos.py --check

protos: $(VENV)/.test
	$(BIN)/python tools/gen_protos.py

fmt: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.test
	$(BIN)/python tools/lock.py

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.gateway
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.edge
	$(BIN)/python -m benchmarks.overload

# Faults of every kind on a whole mesh for MINUTES; see tests/chaos/README.md.
MINUTES ?= 30
SEED ?= 1
chaos: $(VENV)/.test
	CHAOS_MINUTES=$(MINUTES) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest tests/chaos -s

# The demo model's figures over 200 held-out prompts; some ten minutes on two cores.
eval-demo: $(VENV)/.test
	$(BIN)/python -m tools.demo_model.train eval --state out/demo-eval --out node_agent/models/demo

clean:
	rm -rf $(VENV) .models mesh-state out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
