# make demo   a ranked dataset, a model trained on it, and their reports, from nothing (the README's first command)
# make test   the tests (the README's second command); make test-all also those that take minutes
# make tiny   random weights of the paper's nine models, Q-Align and the judges, and their environments: jobs/*-tiny.toml
# make rehearse  jobs/synpic.toml, rankdpo-sdxl, rankdpo-sd3 and evaluate on logical GPUs, with the weights of make tiny
# make check  format, lint, types, rooms
# make docs   the site, in build/docs/index.html
#
# PYTHON chooses the interpreter, TORCH the build of torch, where the newest is not wanted:
#   make install PYTHON=python3.12 TORCH="torch==2.14.1 torchvision==0.29.1"
# OUTPUT is where all that the demo makes goes, ARGS are further options of it: make demo ARGS="--prompts.limit 20"
PYTHON ?= python3
TORCH ?=
OUTPUT ?= demo-output
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread a process: Ray gives each actor one core, and torch would otherwise take all of them in each.
export OMP_NUM_THREADS ?= 1

.PHONY: install test test-all check hooks docs demo tiny rehearse wheel wheel-check clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "rankray needs Python 3.10 to 3.13, $(PYTHON) is %d.%d; choose another: make install PYTHON=python3.12" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; torch alone is several GB)"
	@if [ -n '$(TORCH)' ]; then $(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH); fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# What needs no Ray runs in as many processes as there are cores, then what does on one Ray, which all of it shares.
SPREAD := -n auto --maxprocesses 8 --dist loadfile

test: install
	$(BIN)/python -m pytest tests/unit tests/gpu $(SPREAD)
	$(BIN)/python -m pytest tests/ray
	$(BIN)/python -m pytest tests/chaos

test-all: install
	$(BIN)/python -m pytest -m "not gpu" tests/unit tests/gpu $(SPREAD)
	$(BIN)/python -m pytest -m "not gpu" tests/ray
	$(BIN)/python -m pytest -m "not gpu" tests/chaos

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Once, by whoever commits: format and lint are then checked before each commit.
hooks: install
	git config --local core.hooksPath .githooks

docs: install
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --fresh-env docs build/docs

demo: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/demo.py --output "$(OUTPUT)" $(ARGS)

tiny: install
	$(BIN)/python -m recipes.random_weights ~/rankray/tiny
	@echo "now: ray job submit --working-dir . -- python jobs/synpic.py --config jobs/synpic-tiny.toml"

rehearse: install
	$(BIN)/python -m recipes.random_weights ~/rankray/tiny
	$(BIN)/python scripts/rehearse.py $(ARGS)

wheel: install
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

wheel-check: install
	@.ci/wheel-check

clean:
	rm -rf $(VENV) dist build demo-output .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
