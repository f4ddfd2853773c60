# The two commands of a newcomer are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench tables clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## answer questions about the example images with 10 % of the visual tokens
	@mkdir -p demo
	$(BIN)/adaptprune run --image example:cloth --prompt "What colour is the triangle?" --keep-ratio 0.1 --overlay demo/cloth.png
	$(BIN)/adaptprune run --image example:slate --prompt "What shape is the pink object?" --keep-ratio 0.1 --overlay demo/slate.png
	$(BIN)/adaptprune run --image example:wood --prompt "Is there a cyan circle?" --keep-ratio 0.1 --overlay demo/wood.png

test: $(STAMP)  ## set up and pass the tests
	$(BIN)/python -m pytest

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## prefill time, pruned against unpruned
	$(BIN)/adaptprune bench

tables: $(STAMP)  ## write the generated tables into the README
	$(BIN)/python -m adaptprune.tables README.md

clean:
	rm -rf $(VENV) build dist *.egg-info
