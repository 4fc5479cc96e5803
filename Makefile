# make demo and make test each work alone on a fresh machine: they create .venv, install with the constraints, run.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
unexport PYTHONDONTWRITEBYTECODE  # compile each file once, not in every process that tests start
PYTEST := $(BIN)/python -m pytest -n auto
TYPES := $(BIN)/basedpyright --pythonpath $(BIN)/python

.PHONY: help install demo test test-slow test-interpreter lint types format docs aot bench clean

help:
	@echo "make demo              pictures and captions of a simulated brain, in out/demo/brain/report.html; VECA beside a ViT"
	@echo "make test              lint, all fast tests, the Triton kernels in the interpreter"
	@echo "make test-slow         the tests that take minutes"
	@echo "make lint | format     ruff; lint also checks the types"
	@echo "make types             basedpyright"
	@echo "make docs              the documentation as a site, in out/site"
	@echo "make aot               compile the attention kernels for five GPU targets, check the limits"
	@echo "make bench             kernel benchmark on this machine"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt hatchling editables --editable ".[brain,face,bench,dev]"
	touch $@

install: $(INSTALLED)

DEMO := out/demo

# Two processes of one thread each train and draw at the same time.
demo: $(INSTALLED)
	rm -rf $(DEMO)/neuroflow $(DEMO)/unibrain
	@export OMP_NUM_THREADS=1; set -e; \
	( $(BIN)/veca brain train --model unibrain --seed 1 --out $(DEMO)/unibrain --cache $(DEMO)/brain/features \
		&& $(BIN)/veca demo --sizes 256 512 1024 --budgets 16 64 --time-limit 150 ) & \
	$(BIN)/veca brain train --model neuroflow --seed 1 --features veca@64 --out $(DEMO)/neuroflow \
		--cache $(DEMO)/brain/features; \
	wait $$!
	$(BIN)/veca brain evaluate --seed 1 --out $(DEMO)/brain --features veca@64 veca@16 pixels \
		--models $(DEMO)/neuroflow $(DEMO)/unibrain --pictures nearest --resamples 500 --shuffles 5 --curve 100 400

test: lint
	$(PYTEST) -m "not slow and not interpreter"
	TRITON_INTERPRET=1 $(PYTEST) -m "interpreter and not slow" tests/kernels

test-interpreter: $(INSTALLED)
	TRITON_INTERPRET=1 $(PYTEST) -m "interpreter" tests/kernels

test-slow: $(INSTALLED)
	$(PYTEST) -m "slow and not interpreter"
	TRITON_INTERPRET=1 $(PYTEST) -m "slow and interpreter" tests/kernels

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(TYPES)

types: $(INSTALLED)
	$(TYPES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet --site-dir out/site

aot: $(INSTALLED)
	$(BIN)/python -m veca_kernels.aot --check

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.kernels

clean:
	rm -rf .venv out dist build
