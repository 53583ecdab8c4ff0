# `make run` on a fresh machine: needs make, and Python 3.11 or later with its venv module.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet

RUNTIME := $(VENV)/.runtime
BROWSER := $(VENV)/.browser
NETWORK := $(VENV)/.network
COMPILERS := $(VENV)/.compilers
QEMU := $(VENV)/.qemu
DEV := $(VENV)/.dev
WORKERS ?= logical
# A file's tests stay together; tests/conftest.py says which files come first, and not their number of tests.
SHARED := --dist loadfile --no-loadscope-reorder
CORE_FLOOR ?= 85
EXPLORE_FLOOR ?= 94

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: run serve test test-long cover selftests qemu-test linux-test hyperlight-test compose-test wheel-test clients-test check bench soak lock openapi screenshots clean help fuzz

run: $(RUNTIME) ## install what is needed and run the demo
	$(BIN)/kickstand demo $(ARGS)

serve: $(RUNTIME) ## install what is needed and run the server
	$(BIN)/kickstand serve $(ARGS)

test: $(DEV) $(BROWSER) ## install what is needed and run all tests, on all cores (WORKERS=0: in one process)
	$(BIN)/python -m pytest -q -n $(WORKERS) $(SHARED) $(ARGS)

test-long: $(DEV) $(BROWSER) ## the same with more seeds, variants and engines, where a test has a long form
	KICKSTAND_LONG=1 $(BIN)/python -m pytest -q -n $(WORKERS) $(SHARED) $(ARGS)

selftests: $(DEV) ## build the kernel's own KVM selftests into a cache folder and run them under exec (minutes)
	$(BIN)/python -m pytest -q tests/exec/selftests.py $(ARGS)

qemu-test: $(DEV) $(QEMU) ## boot QEMU's machines under exec: SeaBIOS, U-Boot, UEFI, memtest86+, every irqchip, up to 4 CPUs (minutes)
	$(BIN)/python -m pytest -q -n $(WORKERS) tests/qemu/machines.py tests/qemu/test_race.py $(ARGS)

linux-test: $(DEV) $(QEMU) ## boot Debian's kernel under QEMU and exec, to its first userspace line; kick it on its way (minutes)
	$(BIN)/python -m pytest -q tests/qemu/linux.py $(ARGS)

hyperlight-test: $(DEV) ## run Hyperlight's Python and JavaScript guests under exec, from PyPI's wheels
	$(BIN)/python -m pytest -q tests/exec/hyperlight.py $(ARGS)

compose-test: $(DEV) $(NETWORK) ## build the container image, run the Compose demo with its cluster, and check it
	$(BIN)/python -m pytest -q tests/packaging/compose.py $(ARGS)

wheel-test: $(DEV) ## build the wheel, install it alone in a clean environment, and use it
	$(BIN)/python -m pytest -q tests/packaging/wheel.py $(ARGS)

clients-test: $(DEV) $(COMPILERS) ## make clients from the schema with others' generators, and use them and the written ones
	$(BIN)/python -m pytest -q tests/clients/generated.py tests/docs/test_examples.py -k 'not explorer' $(ARGS)

check: $(DEV) ## format, lint, types (the dashboard's too), import contracts, tests, OpenAPI drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m tests.dashboard.tools
	$(BIN)/python -m pytest -q -n $(WORKERS) $(SHARED)
	$(BIN)/python -m kickstand openapi | diff -u openapi.json - || { echo 'The API changed: run "make openapi".' >&2; exit 1; }

cover: $(DEV) ## branch coverage of core and explore from the tests that are about them, with a floor for each (minutes)
	$(BIN)/python -m pytest -q -n $(WORKERS) $(SHARED) --cov=kickstand.core --cov-branch --cov-fail-under=$(CORE_FLOOR) tests/core tests/conformance tests/runtime
	$(BIN)/python -m pytest -q -n $(WORKERS) $(SHARED) --cov=kickstand.explore --cov-branch --cov-fail-under=$(EXPLORE_FLOOR) tests/explore tests/api/routes/test_explorations.py

bench: $(DEV) ## run every benchmark and print one table (ARGS=--json: for machines)
	@$(BIN)/python benchmarks/run.py $(ARGS)

soak: $(DEV) ## ten minutes of mixed traffic: memory, descriptors and latency stay level (ARGS="--minutes 60")
	$(BIN)/python benchmarks/soak.py --mixed $(ARGS)

fuzz: $(DEV) ## feed everything that parses with made-up input (SECONDS=60)
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(ARGS)

openapi: $(RUNTIME) ## write openapi.json
	$(BIN)/python -m kickstand openapi > openapi.json

screenshots: $(DEV) $(BROWSER) ## take the dashboard's pictures again
	$(BIN)/python -m tests.browser.pictures docs/img

# Keeps the locked versions that still fit; ARGS=--upgrade takes the newest.
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-strip-extras --custom-compile-command "make lock"

lock: $(DEV) ## make the lock files again from pyproject.toml
	$(BIN)/$(LOCK) --group build $(ARGS) --output-file requirements.lock
	$(BIN)/$(LOCK) --group dev --extra cluster $(ARGS) --constraints requirements.lock --output-file requirements-dev.lock
	$(BIN)/$(LOCK) --group build --extra cluster $(ARGS) --constraints requirements-dev.lock --output-file requirements-cluster.lock

clean: ## remove the virtual environment and everything that tools leave behind
	rm -rf $(VENV) build dist htmlcov .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The first of these that is Python 3.11 or later; PYTHON=... on the command line decides alone.
ifeq ($(origin PYTHON),file)
CANDIDATES := $(PYTHON) python3.14 python3.13 python3.12 python3.11
else
CANDIDATES := $(PYTHON)
endif

$(BIN)/python:
	@for python in $(CANDIDATES); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		"$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || { \
			echo "$$python has no ensurepip: install its venv package (Debian and Ubuntu: python3-venv)." >&2; exit 1; }; \
		echo "Creating $(VENV) with $$("$$python" --version)"; \
		exec "$$python" -m venv $(VENV); \
	done; \
	echo "Kickstand needs Python 3.11 or later; tried: $(CANDIDATES). Use make PYTHON=/path/to/python3." >&2; exit 1

# What is imported is kickstand, a link to app/. A checkout made where git knows no links has a text file in its place.
LINK := @[ -d kickstand ] || { rm -f kickstand && ln -s app kickstand; }

# Every package comes from a lock with hashes; the project itself is installed last, in place.
$(RUNTIME): requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements.lock
	$(LINK)
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements-dev.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements-dev.lock
	$(LINK)
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@ $(RUNTIME)

# The dashboard's tests want a real browser; without one they skip and say why.
$(BROWSER): $(DEV)
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "Installing chromium for the dashboard's tests"; \
		{ apt-get update -q && apt-get install -qy --no-install-recommends chromium; } >/dev/null 2>&1 \
			|| echo "chromium could not be installed: the dashboard's tests will be skipped." >&2; \
	else echo "No chromium found: the dashboard's tests will be skipped." >&2; fi
	@touch $@

# The clients in Go and Rust are compiled; without a compiler their tests skip and say so.
$(COMPILERS): $(DEV)
	@if command -v go >/dev/null 2>&1 && command -v rustc >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "Installing compilers for the clients in Go and Rust"; \
		{ apt-get update -q && apt-get install -qy --no-install-recommends golang-go rustc; } >/dev/null 2>&1 \
			|| echo "Compilers could not be installed: the clients that need one will be skipped." >&2; \
	else echo "No compilers for Go and Rust found: those clients will be skipped." >&2; fi
	@touch $@

# Where podman stands in for Docker, its networks are made with iptables, which its package only suggests.
$(NETWORK): $(DEV)
	@if ! command -v podman >/dev/null 2>&1 || PATH="$$PATH:/usr/sbin" command -v iptables >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "Installing iptables for podman's networks"; \
		{ apt-get update -q && apt-get install -qy --no-install-recommends iptables; } >/dev/null 2>&1 \
			|| echo "iptables could not be installed: podman cannot make networks." >&2; \
	else echo "podman is here, but not iptables: it cannot make networks." >&2; fi
	@touch $@

# QEMU and its firmware, for the tests that boot it; without them they skip and say why.
$(QEMU): $(DEV)
	@if command -v qemu-system-x86_64 >/dev/null 2>&1 && [ -e /usr/share/seabios/bios-microvm.bin ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "Installing qemu-system-x86 and seabios"; \
		{ apt-get update -q && apt-get install -qy --no-install-recommends qemu-system-x86 seabios; } >/dev/null 2>&1 \
			|| echo "QEMU could not be installed: its tests will be skipped." >&2; \
	else echo "No qemu-system-x86_64 found: its tests will be skipped." >&2; fi
	@touch $@
