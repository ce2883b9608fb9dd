# `make demo` and `make test` need only Python 3.11+ (with venv), git and make; everything else comes from the lock files.
VENV := .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := $(VENV)/bin

.PHONY: demo serve test test-large test-slow check bench tasks lock clean need
.DELETE_ON_ERROR:

demo: $(VENV)/run.stamp  ## Run a whole task, end to end: on the model of your key, else on a recorded conversation
	@$(BIN)/agent-server demo

serve: $(VENV)/run.stamp  ## Run the server on this folder's ./workspace
	@WORKSPACE_DIR=$${WORKSPACE_DIR:-$(CURDIR)/workspace} DATA_DIR=$${DATA_DIR:-$(CURDIR)/.data} $(BIN)/agent-server serve

test: $(VENV)/dev.stamp $(VENV)/node.stamp
	$(BIN)/python -m pytest -q -n 3 --dist loadfile $(ARGS)  # a file to a process: most of a test's time is waiting

test-large: $(VENV)/dev.stamp  ## Snapshots of a workspace of 2 GiB, and many kills in them; takes some minutes and 10 GiB of disk
	SNAPSHOT_MIB=2048 SNAPSHOT_KILLS=50 $(BIN)/python -m pytest -q --timeout 1800 tests/snapshots $(ARGS)

test-slow: $(VENV)/dev.stamp  ## How long the server waits for clients that stop, in full; takes three minutes
	AGENT_SERVER_SLOW=1 $(BIN)/python -m pytest -q tests/test_patience.py $(ARGS)

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/imports.py

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks $(ARGS)

tasks: $(VENV)/dev.stamp  ## Small coding tasks: recorded, or on a model: make tasks ARGS="--provider openrouter --model anthropic/claude-sonnet-4.5"
	$(BIN)/python -m benchmarks.tasks $(ARGS)

lock: $(VENV)/dev.stamp  ## Resolve the dependencies anew and write both lock files, with hashes
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade --extra build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra build --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean:
	rm -rf $(VENV) build dist *.egg-info

need:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: install it, or name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v git >/dev/null || { echo "git is needed: install it (Debian, Ubuntu: apt-get install git)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }

$(BIN)/python: | need
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock requirements-hypeman.lock $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-hypeman.lock
	@touch $@

$(VENV)/node.stamp: tests/node/package-lock.json $(VENV)/dev.stamp
	$(BIN)/python -m tests.nodejs ci
	@touch $@
