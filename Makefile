# make train sets everything up, trains the embedded default and shows the result. `make` alone lists the rest.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
# Ranks and clusters wait much: one worker more than cores.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# Bytecode is written also where the environment forbids it, as in many images: each of some hundred processes would compile the package.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help setup train check check-min test test-all lint format bench-optimizers bench-train gpu-bundle lock clean

help:  ## this list
	@echo 'usage: make TARGET [PYTHON=python3.12] [ARGS="..."]'
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */\1|/' \
		| while IFS='|' read -r target text; do printf '  %-17s %s\n' "$$target" "$$text"; done

setup:  ## .venv with the exact versions of requirements/ (at once when it is there already)
	@$(PYTHON) scripts/setup.py

train: setup  ## train BERT-tiny on 2 processes; ARGS="batch.global=512" overrides its config
	$(BIN)/bellwether train configs/bert-tiny.yaml --nproc 2 $(ARGS)

check: lint  ## lint, types, and the tests that start no process; ARGS="-k lamb" goes to pytest
	$(PYTEST) --tier=check $(ARGS)

test: lint  ## what CI runs: every feature once, on real process groups and a real SLURM
	$(PYTEST) --tier=test $(ARGS)

test-all: lint  ## the full matrix: every optimizer, engine and number of processes
	$(PYTEST) --tier=all $(ARGS)

check-min:  ## make check's tests on the lowest declared version of each dependency (downloads several GB)
	PYTHON=$(PYTHON) scripts/check_minimum.sh $(ARGS)

lint: setup  ## ruff and mypy, as CI runs them
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup  ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-optimizers: setup  ## one step of each optimizer, timed beside torch's and others'; ARGS="--json FILE"
	@$(BIN)/python scripts/bench_optimizers.py $(ARGS)

bench-train: setup  ## training beside torch DDP, HF Trainer and accelerate, in 10 minutes; ARGS="--page FILE"
	@$(BIN)/python -m scripts.bench_train $(ARGS)

gpu-bundle: setup  ## the wheels that scripts/gpu_suite.sh needs on a machine without network; ARGS="--python 3.12"
	@$(BIN)/python -m scripts.gpu_suite.bundle $(ARGS)

# One resolution for every Python and platform; what only the CUDA build of torch needs goes to a file of its own.
# Versions that still fit are kept, so the diff shows what was asked for and no more.
lock:  ## resolve requirements/ anew; ARGS=--upgrade, or ARGS="--upgrade-package numpy"
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	cat requirements/lock.txt requirements/cuda.txt > build/lock.txt
	build/uv/bin/uv pip compile --quiet --universal --python-version 3.10 --all-extras --annotation-style line \
		--custom-compile-command 'make lock' --output-file build/lock.txt $(ARGS) pyproject.toml requirements/lock.in
	grep -E  '^(#|cuda-|nvidia-)' build/lock.txt > requirements/cuda.txt
	grep -Ev '^(cuda-|nvidia-)' build/lock.txt > requirements/lock.txt

clean:  ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf .venv .setup.lock .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . \( -path ./runs -o -path ./.git \) -prune -o -type d -name __pycache__ -exec rm -rf {} +
