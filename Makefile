# From a fresh clone with Python, make and git: `make demo`, `make test`, `make check`. `make help` lists all.

PYTHON ?= python3
# In how many processes the tests run. Most of them wait for others most of the time.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Stamps, written last, so that an interrupted installation is repeated.
RUN := $(VENV)/.run
PACKAGE := $(VENV)/.package
DEV := $(VENV)/.dev
# run.txt is complete for the package; demo.txt adds to run.txt, and dev.txt to both.
LOCKS := requirements/run.txt requirements/demo.txt requirements/dev.txt
# The locks are complete, so pip must not resolve: with --require-hashes it fails on some releases newer than a pin.
# Nothing that is not locked is downloaded, and nothing is built but this package. Python compiles what it imports.
PIP := -m pip --quiet --quiet --disable-pip-version-check
INSTALL_LOCKED := $(PIP) install --no-compile --no-deps --require-hashes --only-binary :all:

# The resolver writes the locks and is needed for nothing else; it has an environment of its own.
LOCK_BIN := build/lock/bin
UV := $(LOCK_BIN)/uv
# Existing pins are kept while they satisfy pyproject.toml; `make lock UPGRADE=1` takes the newest releases.
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
# Keep the pins of these locks, and leave out those that hold everywhere (without a marker).
on_top_of = $(1:%=--constraint %) $$(sed -n 's/^\([a-z0-9-]*\)==[^;]*$$/--no-emit-package \1/p' $(1))

# The tests start hundreds of processes, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(DEV) ## Install the package and all locked requirements into .venv.

# A changed lock makes a new environment, so that nothing stays that is no longer locked.
$(RUN): $(LOCKS)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(INSTALL_LOCKED) --requirement requirements/run.txt --requirement requirements/demo.txt
	@touch $@

$(PACKAGE): $(RUN) pyproject.toml
	$(BIN)/python $(PIP) install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

$(DEV): $(PACKAGE)
	$(BIN)/python $(INSTALL_LOCKED) --requirement requirements/dev.txt
	$(BIN)/python -m pip check
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

.PHONY: bench-fan-out
bench-fan-out: venv ## Compare large fan-outs with the workflow library alone.
	$(BIN)/python -m benchmarks.fan_out $(ARGS)

.PHONY: bench-lists
bench-lists: venv ## Compare lists, counts, the inbox and tasks in stores with many and with few ended tasks.
	$(BIN)/python -m benchmarks.read_model $(ARGS)

.PHONY: bench-readers
bench-readers: venv ## Measure how fast streamed events reach one reader, and a thousand.
	$(BIN)/python -m benchmarks.readers $(ARGS)

.PHONY: bench-retention
bench-retention: venv ## Compare how long tasks take to be accepted with and without the removal of old ones.
	$(BIN)/python -m benchmarks.retention $(ARGS)

.PHONY: bench-against
bench-against: venv ## Compare CPU per task, latency and throughput with another revision: REV=... (main).
	$(BIN)/python benchmarks/run.py --against $(or $(REV),main) $(ARGS)

.PHONY: demo
demo: $(PACKAGE) ## Run the research desk: two services, streaming, a session, and a kill -9.
	$(BIN)/python examples/research_desk/demo.py $(ARGS)

.PHONY: lock
lock: $(UV) ## Resolve the requirements and write the locks; UPGRADE=1 takes newer releases.
	$(COMPILE) pyproject.toml --output-file requirements/run.txt
	$(COMPILE) pyproject.toml --output-file requirements/demo.txt --extra demo --group build \
		$(call on_top_of,requirements/run.txt)
	$(COMPILE) pyproject.toml --output-file requirements/dev.txt --all-extras --group build --group dev \
		$(call on_top_of,requirements/run.txt requirements/demo.txt)
	$(COMPILE) --output-file requirements/lock.txt --group lock
	grep -o 'llama-index-workflows>[^"]*' pyproject.toml | \
		$(COMPILE) - --output-file requirements/oldest.txt --no-deps --resolution lowest --upgrade

$(UV): requirements/lock.txt
	$(PYTHON) -m venv --clear $(LOCK_BIN:/bin=)
	$(LOCK_BIN)/python $(INSTALL_LOCKED) --requirement $<
	@touch $@

.PHONY: clean
clean: ## Remove what the other targets have made, .venv included.
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis \
		.mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: sync-client
sync-client: venv ## Generate the client without `await` from the asyncio client.
	$(BIN)/python .ci/sync_client.py

.PHONY: reference
reference: venv ## Write the generated pages of docs.
	$(BIN)/python .ci/reference.py
