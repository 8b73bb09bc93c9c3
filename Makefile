# make demo   three optimizers on real text, and which is better: a report in about three minutes after the install
# make test   the tests, by two processes (JOBS=8: by eight). FAST=1: without those that take seconds, for while you write
# make check  lint, format, types, import rules
# make dist   wheel and source archive in dist/
# make docs   the documentation, into build/site; warnings are errors. make docs-serve shows it while you write
# make gpu    what has to be known on a GPU, in eight minutes: docs/how-to/gpu.md. It installs nothing: an installed torch is enough, no network.
#             OUT=folder  MINUTES=8  PARTS="train step"  TINY=1 (does the pack run? on a CPU, tiny sizes)

PYTHON ?= python3
JOBS ?= 2
OUT ?= gpu-results
MINUTES ?= 8
PARTS ?=
TINY ?=
FAST ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLIENTS := $(VENV)/.clients
DOCS := $(VENV)/.docs

.PHONY: demo test check dist docs docs-serve gpu clean

demo: $(INSTALLED)
	$(BIN)/muonlab sweep experiments/quickstart.toml

test: $(CLIENTS)
	$(BIN)/pytest -n $(JOBS) --dist $(if $(FAST),worksteal -m "not slow",loadfile)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --livereload --watch src --watch docs

# By the hatchling that is installed: nothing is fetched. The wheel is made from the source archive, as pip would.
dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --out $(OUT) --minutes $(MINUTES) \
	  $(if $(PARTS),--only $(PARTS)) $(if $(TINY),--tiny)

# The stamp is written last: an install that broke off is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  f"muonlab needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}: try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

# The documentation alone: a few small packages.
$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,docs]'
	@touch $(DOCS)

# What only tests need: the frameworks of tests/clients, TensorBoard, the libraries of the Hugging Face hub, what builds the
# documentation, and Triton, whose interpreter runs the kernels. Half of the install.
# timm and torchvision go into a folder of their own, without what they need, which is here: torchvision's wheel is built for CUDA and
# does not import beside a CPU build of torch, and transformers, which imports it where it finds it, would not either. One test reads
# them: tests/unit/zoo/vision.py.
$(CLIENTS): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,docs,clients,hf,kernels]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt --no-deps --upgrade --target $(VENV)/vision \
	  torchvision timm
	@touch $(CLIENTS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
