# Everything a change needs.  Python 3.11 or later with venv, and make, are all that has to be there before.

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 500
ROUNDS ?= 200
PEERS ?= 1
ONLY ?=
SCHEDULES ?= 30
WORKERS ?= 2
BIN := $(VENV)/bin
MADE := $(VENV)/.made
NODE := .make/node
EXACT := errors checksum message channels events config codec segment lane retry seams checkpoint window retention delivery crew \
	handling poison letters backlog relay relaying resending sharing mode_rules answering replies requesting \
	logs/redis_feed logs/redis_replica
# Modules whose every line and branch a test runs: what is wrong in one of them loses messages.

space := $(subst ,, )
comma := ,
INCLUDE := $(subst $(space),$(comma),$(patsubst %,src/lemegeton/%.py,$(strip $(EXACT))))

.PHONY: setup demo test check sim chaos transitions bench wire clean

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
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal --cov --cov-report=
	$(BIN)/coverage report --fail-under=90 --skip-covered --skip-empty --include='src/lemegeton/*'
	$(BIN)/coverage report --fail-under=100 --precision=2 --include='$(INCLUDE)'

sim: $(MADE)
	$(BIN)/python -m lemegeton.testing.simulation --seeds $(SEEDS)
	$(BIN)/python -m lemegeton.testing.simulation --seeds $(SEEDS) --redis
	$(BIN)/python -m lemegeton.testing.simulation --seeds $(SEEDS) --mutants

chaos: $(MADE)
	$(BIN)/python chaos/run.py --rounds $(ROUNDS) --schedules $(SCHEDULES)

transitions: $(MADE)
	$(BIN)/python chaos/transitions.py

bench: $(MADE) $(if $(filter 0,$(PEERS)),,$(VENV)/.peers)
	$(BIN)/python benchmarks/run.py $(if $(filter 0,$(PEERS)),--no-peers) $(if $(ONLY),--only $(ONLY))

$(VENV)/.peers: $(MADE)
	PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[bench]' && touch $@ || echo 'not every peer could be installed: RESULTS.md names what is missing'

# The hub and agent of the original, with Node's own client; fetches that first.
wire: $(MADE) $(NODE)/.made
	NODE_PATH=$(abspath $(NODE))/node_modules $(BIN)/pytest tests/node/node_wire.py

$(NODE)/.made: tests/node/package.json
	mkdir -p $(NODE)
	cp tests/node/package.json $(NODE)/
	cd $(NODE) && npm install --no-audit --no-fund --silent
	touch $@

clean:
	rm -rf $(VENV) .make build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .grimp_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
