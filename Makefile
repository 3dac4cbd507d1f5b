# Bode: `make run` and `make test` do everything from a clean clone; `make help` lists the rest.
MAKEFLAGS += --no-print-directory
BIN := .venv/bin

ifdef BODE_DATABASE_URL
RUN_LOCK := requirements.lock
else
RUN_LOCK := requirements-embedded.lock
endif
LOCK_INPUT := pyproject.toml .ci/build-requirements.in
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: help run test chaos lint format lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 18

run: .venv/.installed-$(RUN_LOCK) ## everything on this machine, with the demo, in the foreground
	@.ci/see-to-rabbitmq || echo "RabbitMQ: going on without it; events can be published over HTTP only." >&2
	@exec $(BIN)/bode up --demo

test: .venv/.installed-requirements-dev.lock ## every check: lint, types, import contract, tests
	@.ci/see-to-rabbitmq
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

SEEDS ?= 3
SECONDS ?= 120
FIRST ?= 1
RABBITMQ ?= both

chaos: .venv/.installed-requirements-dev.lock ## kill everything and count: SEEDS=20 SECONDS=120 FIRST=1 RABBITMQ=machine|4|both
	@.ci/see-to-rabbitmq
	@$(BIN)/python -m tests.chaos --seeds $(SEEDS) --seconds $(SECONDS) --first $(FIRST) --rabbitmq $(RABBITMQ) --json .chaos/reports.ndjson

lint: .venv/.installed-requirements-dev.lock ## the checks without the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-requirements-dev.lock ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## resolve the dependencies anew (needs uv)
	$(COMPILE) --upgrade $(LOCK_INPUT) --extra embedded --group dev -o requirements-dev.lock
	$(COMPILE) -c requirements-dev.lock $(LOCK_INPUT) --extra embedded -o requirements-embedded.lock
	$(COMPILE) -c requirements-dev.lock $(LOCK_INPUT) -o requirements.lock

clean: ## remove the environment and caches; .bode, with its data, stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find broker subscriptions schemas tests -name __pycache__ -prune -exec rm -rf {} +

# What is installed for one lock file serves for those that it contains, so there is no harm in the order of use.
.venv/.installed-%: % pyproject.toml .ci/environment
	@.ci/environment $*
	@touch $@
