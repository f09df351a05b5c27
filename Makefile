# Everything runs in .venv, set up from nothing by constraints.txt (the versions that were tested).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# The shipped studies that repeat the paper's on CPUs.
TWINS := $(sort $(basename $(notdir $(wildcard src/vitscale/studies/paper/*_cpu.toml))))

LOCK := --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-find-links --constraint constraints.txt

SEVERAL_HOSTS := fig04_05_cpu fig14_cpu fig15_cpu

.PHONY: demo paper-cpu paper-lab test test-cluster lint bench test-gpu generate lock audit picture clean

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(PIP) -e '.[train,dev]'
	touch $@ $(VENV)/.train

demo: $(VENV)/.train          ## run the shipped study `quick` for real, on this machine
	$(BIN)/vitscale run quick

paper-cpu: $(VENV)/.train     ## the paper's studies on CPUs, then one page over all of them; goes on where it was stopped
	for twin in $(TWINS); do $(BIN)/vitscale run paper/$$twin || failed="$$failed $$twin"; done; \
	$(BIN)/vitscale report results/paper && test -z "$$failed"

paper-lab: $(VENV)/.train     ## as root: those of them that need several hosts, on hosts laid out on this machine
	for twin in $(SEVERAL_HOSTS); do $(BIN)/vitscale run paper/$$twin --launcher lab || failed="$$failed $$twin"; done; \
	$(BIN)/vitscale report results/paper && test -z "$$failed"

# What holds measured times against each other has the machine to itself, and is taken once more, from new ranks, where
# it failed: on a machine that others share, one disturbed measurement says nothing.
test: $(VENV)/.dev            ## every test that this machine can run
	$(BIN)/pytest tests/unit tests/golden --numprocesses=logical
	$(BIN)/pytest tests/process tests/cluster tests/browser -m 'not alone' -rs --numprocesses=logical --dist=loadfile
	$(BIN)/pytest tests/process tests/cluster -m alone -rs || $(BIN)/pytest tests/process tests/cluster -m alone -rs --last-failed

test-cluster: $(VENV)/.dev    ## a part of `test`: what needs several hosts, MPI, ssh or SLURM; says why where they are not there
	$(BIN)/pytest tests/cluster -rs

lint: $(VENV)/.dev            ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev           ## the figures of docs/log.md
	$(BIN)/python -m benchmarks

test-gpu: $(VENV)/.dev        ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu

generate: $(VENV)/.dev        ## the files made from code: model and key tables, reference pages, JSON Schema
	$(BIN)/python -m tools

lock: $(VENV)/.dev            ## requirements/*.txt: what was tested, by version and sha256
	$(PIP) pip-tools
	$(BIN)/pip-compile $(LOCK) --output-file requirements/base.txt pyproject.toml
	$(BIN)/pip-compile $(LOCK) --output-file requirements/tools.txt requirements/tools.in

audit: $(VENV)/.dev           ## known weaknesses of the locked packages, where PyPI's list of them can be reached
	$(PIP) pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements/base.txt -r requirements/tools.txt

picture: $(VENV)/.dev         ## README's picture, from the report in results/quick
	$(BIN)/python tools/picture.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
