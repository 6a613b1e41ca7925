# Everything a change needs.  Python 3.11 or later with venv, and make, are all that has to be there before.

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 500
ROUNDS ?= 200
BIN := $(VENV)/bin
MADE := $(VENV)/.made
EXACT := errors message channels events config codec segment lane retry seams checkpoint window retention delivery \
	handling relay
# Modules whose every line and branch a test runs: what is wrong in one of them loses messages.

space := $(subst ,, )
comma := ,
INCLUDE := $(subst $(space),$(comma),$(patsubst %,src/lemegeton/%.py,$(strip $(EXACT))))

.PHONY: setup demo test check sim chaos bench clean

setup: $(MADE)

$(MADE): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[dev]'
	touch $@

demo: $(MADE)
	$(BIN)/lemegeton demo

check: $(MADE)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(MADE)
	$(BIN)/coverage erase
	$(BIN)/pytest --cov --cov-report=
	$(BIN)/coverage report --fail-under=90 --skip-covered --skip-empty --include='src/lemegeton/*'
	$(BIN)/coverage report --fail-under=100 --precision=2 --include='$(INCLUDE)'

sim: $(MADE)
	$(BIN)/python -m lemegeton.testing.simulation --seeds $(SEEDS)
	$(BIN)/python -m lemegeton.testing.simulation --seeds $(SEEDS) --mutants

chaos: $(MADE)
	$(BIN)/python chaos/run.py --rounds $(ROUNDS)

bench: $(MADE)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .grimp_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
