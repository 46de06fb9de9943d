# From a fresh clone with Python, make and git: `make demo`, `make test`, `make check`. `make help` lists all.

PYTHON ?= python3
# In how many processes the tests run. Most of them wait for others most of the time.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Stamps, written last, so that an interrupted installation is repeated.
REQUIREMENTS := $(VENV)/.requirements
PACKAGE := $(VENV)/.package
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

# The resolver writes requirements/*.txt and is needed for nothing else; it has an environment of its own.
UV_VERSION := 0.13.9
LOCK_VENV := build/lock
UV := $(LOCK_VENV)/bin/uv
# Existing pins are kept while they satisfy pyproject.toml; `make lock UPGRADE=1` takes the newest releases.
COMPILE := $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(PACKAGE) ## Install the locked requirements and the package into .venv.

# Wheels only here and no build isolation below: nothing that is not locked is fetched or built.
$(REQUIREMENTS): requirements/dev.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --require-hashes --only-binary :all: --requirement $<
	@touch $@

$(PACKAGE): $(REQUIREMENTS) pyproject.toml
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: check
check: venv ## Formatting, lint, types, import contracts, spelling.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

.PHONY: format
format: venv ## Format the code and repair what ruff can repair.
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

.PHONY: test
test: venv ## All tests but the long fault tests, with branch coverage, in JOBS processes (2).
	$(BIN)/python -m pytest -m "not long" --numprocesses=$(JOBS) --dist=worksteal --cov --cov-report=term:skip-covered $(ARGS)

.PHONY: faults
faults: venv ## The fault tests, long ones included: processes are killed, stopped and restarted.
	$(BIN)/python -m pytest -m "faults or long" $(ARGS)

.PHONY: oldest
oldest: venv ## The tests of durable runs with the oldest workflow library that is allowed.
	$(BIN)/python .ci/oldest_library.py $(ARGS)

.PHONY: bench
bench: venv ## Measure; prints a table and writes JSON. BROKER=all (or one, STORE=...) compares queues and stores.
	$(BIN)/python benchmarks/run.py $(if $(BROKER),--broker $(BROKER)) $(if $(STORE),--store $(STORE)) $(ARGS)

.PHONY: bench-against
bench-against: venv ## Compare CPU per task, latency and throughput with another revision: REV=... (main).
	$(BIN)/python benchmarks/run.py --against $(or $(REV),main) $(ARGS)

.PHONY: demo
demo: venv ## Run the research desk: two services, streaming, a session, and a kill -9.
	$(BIN)/python examples/research_desk/demo.py $(ARGS)

.PHONY: lock
lock: $(UV) ## Write the locked requirements anew; UPGRADE=1 takes newer releases.
	$(COMPILE) --output-file requirements/run.txt
	$(COMPILE) --output-file requirements/dev.txt --constraint requirements/run.txt \
		--extra aws --extra demo --extra kafka --extra nats --extra postgresql --extra rabbitmq --extra redis --group dev

$(UV): Makefile
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.PHONY: clean
clean: ## Remove what the other targets have made, .venv included.
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis \
		.mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: sync-client
sync-client: venv ## Generate the client without `await` from the asyncio client.
	$(BIN)/python .ci/sync_client.py

.PHONY: reference
reference: venv ## Write docs/reference/configuration.md from the settings classes.
	$(BIN)/python .ci/settings_reference.py
