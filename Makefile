# Every target works alone on a fresh clone with Python 3.11.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup check test mutants demo bench clean

setup: .venv/.base
.venv/.base: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Zamenis needs Python 3.11; name yours: make PYTHON=python3"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (PyTorch takes a minute) ..."
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.base
	@$(PIP) -e ".[dev,ray,tensorboard,molecules]"
	@touch $@

demo: .venv/.base
	$(BIN)/zamenis-simulate

test: .venv/.dev
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 --maxschedchunk=1

mutants: .venv/.dev
	$(BIN)/python benchmarks/mutants.py $(MUTANTS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev
	@for file in engine aggregate secagg secure_round dicom flamby logistic metalearning costs deploy; do $(BIN)/python benchmarks/$$file.py $(BENCH) || exit 1; done

clean:
	rm -rf .venv mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis
