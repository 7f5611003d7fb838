# What a newcomer needs: Python 3.11 with pip, make and a C compiler. Everything else lands in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv test test-net lint types format coverage demo example-medical example-surveillance example-traffic example-home bench-wire bench-mesh bench-kernel bench-robust bench-learn bench-place bench-shard bench-average bench-simulate hunt explore bench-compress bench-distil fuzz lock clean bench-services

# The lock was made with 3.11; a newer Python is tried only where there is no 3.11.
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
BIN := .venv/bin
READY := .venv/.ready

# Small models on busy cores: two threads wait for each other, and one is 40 times as fast.
export OMP_NUM_THREADS ?= 1

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

venv: $(READY) ## make .venv from requirements.lock (again when the lock, pyproject.toml or the kernel changes)

# libp2p brings trio-typing, whose stub folders shadow the types that trio and outcome ship themselves.
$(READY): requirements.lock pyproject.toml $(wildcard node/kernels/*.[ch])
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one, or name it with make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	rm -rf $(foreach name,trio outcome async_generator,.venv/lib/python3.*/site-packages/$(name)-stubs)
	@touch $@

# Two at once, a file at a time: half of the suite waits for processes, clocks and links. WORKERS=0 runs one by one.
# In the order of tests/conftest.py: xdist would begin with the files of most tests, and end with the longest ones.
WORKERS ?= 2
test: $(READY) lint types ## the whole suite: lint, types, tests
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-net: $(READY) ## real nodes in network namespaces: loss, partitions, moves (Linux, root; SEED=N for other luck)
	$(if $(SEED),SEED=$(SEED)) $(BIN)/pytest -m net -rs tests/net $(ARGS)

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy needs to see the rooms under their import name: .src/lepton is a folder of links to them.
types: $(READY) ## mypy, strict
	@mkdir -p .src/lepton
	@ln -sfn $(foreach name,__init__.py gossip mesh node simulations,../../$(name)) .src/lepton/
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: $(READY) ## the tests with branch coverage, least covered first
	$(BIN)/pytest --cov $(ARGS)

demo: $(READY) ## four nodes on this machine; JSON=FILE writes the figures, ARGS="--model cnn" goes to the demo
	$(BIN)/python -m lepton.node.demo $(if $(JSON),--json $(JSON)) $(ARGS)

example-medical: $(READY) ## hospitals that learn one model in private; ARGS="--quick", "--data FOLDER"
	$(BIN)/python -m lepton.node.examples.medical $(ARGS)

example-surveillance: $(READY) ## cameras that learn a road and raise alarms as a service; ARGS="--quick", "--data FOLDER"
	$(BIN)/python -m lepton.node.examples.surveillance $(ARGS)

example-traffic: $(READY) ## roads that forecast their speeds together and tell of incidents; ARGS as above
	$(BIN)/python -m lepton.node.examples.traffic $(ARGS)

example-home: $(READY) ## small devices that recognise what somebody does, and one that is unplugged; ARGS as above
	$(BIN)/python -m lepton.node.examples.home $(ARGS)

bench-wire: $(READY) ## the wire beside raw TCP, TLS and stock libp2p; JSON=FILE writes the figures
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.wire

bench-average: $(READY) ## rounds of averaging at 2, 4 and 8 processes beside TLS; JSON=FILE writes the figures, ARGS="2x50" other sizes
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.average $(ARGS)

bench-robust: $(READY) ## what bad members do to learning, by policy; JSON=FILE writes the figures
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.robust $(ARGS)

bench-mesh: $(READY) ## how 8 real nodes come together and notice who is gone; JSON=FILE writes the figures, ARGS="join" one part
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.mesh $(ARGS)

bench-place: $(READY) ## placement beside brute force and other splits; JSON=FILE writes the figures
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.place $(ARGS)

bench-shard: $(READY) ## sessions over stages: hops, company, a death in mid-answer; JSON=FILE writes the figures
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.shard $(ARGS)

bench-learn: $(READY) ## how well nodes with skewed data learn; JSON=FILE writes the figures, ARGS="mnist" one part
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.learn $(ARGS)

bench-simulate: $(READY) ## a fleet of learning nodes beside batched products in plain torch; JSON=FILE writes the figures, ARGS="bound" one part
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.simulate $(ARGS)

bench-kernel: $(READY) ## products with packed weights beside torch's; JSON=FILE writes the figures, ARGS="1 16" other batches
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.kernel $(ARGS)

MINUTES ?= 5
hunt: $(READY) ## play simulated faults, one seed after another, until a promise breaks, MINUTES (5); ARGS="--seeds 1..500"
	$(BIN)/lepton-sim hunt --minutes $(MINUTES) $(ARGS)

bench-compress: $(READY) ## what compression costs and gains on trained weights; JSON=FILE writes the figures, ARGS="speed" one part
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.compress $(ARGS)

bench-distil: $(READY) ## what a teacher gives a small model on real data, 10 minutes; JSON=FILE writes the figures, ARGS="few" one part
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.distil $(ARGS)
bench-services: $(READY) ## calls of services while they are updated, scaled and killed; JSON=FILE writes the figures, ARGS="cost" one part
	$(if $(JSON),JSON=$(JSON)) $(BIN)/python -m tests.bench.services $(ARGS)

explore: $(READY) ## property tests with examples that no run has tried, EXAMPLES each (1000); ARGS="tests/gossip" some of them
	EXAMPLES=$(or $(EXAMPLES),1000) $(BIN)/pytest -n $(WORKERS) --hypothesis-profile=explore $(or $(ARGS),$$(grep -rl --include='test_*.py' 'from hypothesis' tests))

FUZZ_S ?= 60
fuzz: $(READY) ## feed every decoder what nobody would send, FUZZ_S seconds each (60)
	for target in tests/fuzz/fuzz_*.py; do echo $$target; \
		$(BIN)/python -m tests.fuzz.$$(basename $$target .py) -max_total_time=$(FUZZ_S) -verbosity=0 -print_final_stats=1; done

# The local part of a version (as in +cpu) names one index's build: without it any index will do. atheris has wheels for
# Linux on x86-64 alone, and building it takes a compiler that few have.
lock: $(READY) ## install what pyproject.toml asks for beyond the lock, then write the lock anew
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed "s/+.*//; s/^atheris==.*/&; sys_platform == 'linux' and platform_machine == 'x86_64'/" > .venv/lock
	mv .venv/lock requirements.lock
	@touch $(READY)

clean: ## remove what tools left behind (.venv stays; the next make builds the kernel again)
	rm -f $(READY) node/kernels/_native.*
	rm -rf .src build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
