# The two commands of a newcomer are `make demo` and `make test`. The first sets up .venv with what the package itself
# needs, the second adds what the tests need; both in the versions of constraints.txt.
PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
NEWEST := .venv-newest
# Packages are not compiled when they are installed, which takes as long again, but when they are first imported.
export PYTHONDONTWRITEBYTECODE :=
# -qq: errors only. The build backend is held to the lock too: pip up to 25.2 hands it the first variable, later ones the second.
LOCKED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
PIP := $(LOCKED) $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile
COUNT = echo "  $$(ls -d $(VENV)/lib/python*/site-packages/*.dist-info | wc -l) packages in $(VENV)"

.PHONY: help demo test check bench tables lock newest compat sweep clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

$(CORE): pyproject.toml constraints.txt
	@echo "setting up $(VENV) ($$($(PYTHON) --version)): what the package itself needs, about half a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install -qq 'pip>=23'  # Python 3.10.0's own cannot install in place
	@$(PIP) -e .
	@$(COUNT)
	@touch $@

$(DEV): $(CORE)
	@echo "adding what the tests and checks need, about a minute"
	@$(PIP) -e '.[dev]'
	@$(COUNT)
	@touch $@

demo: $(CORE)  ## answer questions about the example images with 10 % of the visual tokens
	@mkdir -p demo
	$(BIN)/adaptprune run --image example:cloth --prompt "What colour is the triangle?" --keep-ratio 0.1 --overlay demo/cloth.png
	$(BIN)/adaptprune run --image example:slate --prompt "What shape is the pink object?" --keep-ratio 0.1 --overlay demo/slate.png
	$(BIN)/adaptprune run --image example:wood --prompt "Is there a cyan circle?" --keep-ratio 0.1 --overlay demo/wood.png

test: $(DEV)  ## pass the tests
	$(BIN)/python -m pytest

check: $(DEV)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(CORE)  ## prefill time, pruned against unpruned
	$(BIN)/adaptprune bench

tables: $(CORE)  ## write the generated tables into README.md and docs
	$(BIN)/python -m adaptprune.tables README.md docs/models.md docs/methods.md

lock:  ## write constraints.txt anew: the newest versions that pyproject.toml's ranges allow
	@echo "resolving for Python 3.10 and later"
	@$(PYTHON) -m tools.lock
	@echo "  $$(grep -c == constraints.txt) lines in constraints.txt"

compat: $(DEV)  ## what depends on transformers, on several releases of it; VERSIONS="5.17.0 ..." chooses, WRITE=1 notes them
	$(BIN)/python -m tools.compat $(VERSIONS) $(if $(WRITE),--write)

sweep: $(DEV)  ## every model type of transformers on a tiny model, against what is expected; WRITE=1 accepts what is found
	$(BIN)/python -m tools.sweep $(if $(WRITE),--write)

newest:  ## the tests beyond the lock, with the newest of everything; TORCH=torch==2.13.0 keeps the small CPU build
	@echo "setting up $(NEWEST) ($$($(PYTHON) --version)): the newest of everything, some minutes"
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check install -qq --no-compile --upgrade pip packaging 'tomli; python_version < "3.11"'
	@$(NEWEST)/bin/python -m tools.newest --torch '$(TORCH)' $(TESTS)

clean:  ## remove all that make has made
	rm -rf $(VENV) $(NEWEST) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
