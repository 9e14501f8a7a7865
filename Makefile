# make demo: see it work.  make test: run the tests.  make help: list all targets.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for p in $$PYTHON python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# flyteidl declares support up to Python 3.13 only; its generated code works on 3.14 too.
UNBOUND = $(shell $(BIN)/python -c 'import sys; print("--ignore-requires-python" if sys.version_info >= (3, 14) else "")')
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(UNBOUND)
TESTS ?= tests
WORKERS ?= 4
export BROKER KAFKA_BOOTSTRAP_SERVERS DATABASE_URL

.PHONY: help demo test test-lowest test-newest check audit test-broker test-faults bench bench-smoke docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## a simulated day, with a local inbox you can open (DEMO_ARGS=--once exits at the end)
	@$(BIN)/dispatcher demo $(DEMO_ARGS)

test: $(VENV)/.test ## every test that this machine can run
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not faults" $(TESTS) $(PYTEST_ARGS)

test-lowest: .cache/lowest/.test ## make test with the lowest versions that pyproject.toml allows
test-newest: .cache/newest/.test ## make test with the newest versions that pyproject.toml allows
test-lowest test-newest: test-%:
	.cache/$*/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not faults" $(TESTS) $(PYTEST_ARGS)

check: $(VENV)/.test ## format, lint, types, import contracts, container files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

audit: $(VENV)/.test ## secrets in committed files; known vulnerabilities of the pinned packages, if advisories are reachable
	$(BIN)/python .ci/audit

test-broker: $(VENV)/.test ## the broker tests with Apache Kafka (make test may use a lighter broker)
	BROKER=apache $(BIN)/python -m pytest -m "broker and not faults" tests $(PYTEST_ARGS)

test-faults: $(VENV)/.test ## the fault tests: kills, restarts, outages, a storm, a night and a soak test, half an hour in all
	BROKER=apache $(BIN)/python -m pytest -m faults tests/faults $(PYTEST_ARGS)

bench: $(VENV)/.test ## all benchmarks, about 25 minutes on a quiet machine (ONLY="mail start" for some, AGAINST=REVISION)
	$(BIN)/python -m bench $(addprefix --only ,$(ONLY)) $(addprefix --against ,$(AGAINST)) $(BENCH_ARGS)

bench-smoke: $(VENV)/.test ## a short run that only tests that the benchmarks work
	$(BIN)/python -m bench --smoke $(addprefix --only ,$(ONLY)) $(BENCH_ARGS)

docs: $(VENV)/.test ## build the documentation site in .cache/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lock: $(VENV)/.test ## compile requirements/*.txt again
	.ci/lock

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) .cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found: set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python requirements/demo.txt requirements/build.txt pyproject.toml
	$(PIP) --require-hashes -r requirements/demo.txt -r requirements/build.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python requirements/test.txt pyproject.toml
	$(PIP) --require-hashes -r requirements/test.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.demo

.cache/%/.test: $(VENV)/.test requirements/test.txt pyproject.toml
	$(BIN)/python -m venv --clear .cache/$*
	$(BIN)/python .ci/versions $* > .cache/$*/requirements.txt
	.cache/$*/bin/python -m pip install --quiet --disable-pip-version-check $(UNBOUND) -r .cache/$*/requirements.txt -e .
	@touch $@
