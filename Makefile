# make install   a virtual environment with everything
# make demo      learn, forget, audit, report on embedded data (about three minutes)
# make test      the tests (make test-slow: those that take minutes)
# make proofs    every system's published claim as a runnable check, the slow ones too
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test test-slow lint types proofs quick-proofs docs bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/efface demo --out efface-demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

quick-proofs: install
	$(BIN)/efface prove --all --quick --recorded docs/results/proofs.json

proofs: install
	$(BIN)/efface prove --all

bench: install
	$(BIN)/python benchmarks/audit_and_npo.py
	$(BIN)/python benchmarks/contrastive_losses.py
	$(BIN)/python benchmarks/information_gain.py

docs: install
	$(BIN)/efface systems --pages docs

clean:
	rm -rf .venv build dist src/*.egg-info
