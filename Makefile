# Two commands on a fresh machine: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A change in any of these asks for a new install; plain Python files don't (the install is editable).
INPUTS := pyproject.toml constraints-cpu.txt CMakeLists.txt $(wildcard src/lmlab/native/*)
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test campaign lint bench clean compiler
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/lmlab run demo

# One thread a process: on a busy machine two OpenMP threads wait for each other. Tests of threads set their own.
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# What takes too long for every change: hundreds of kills, large searches.
campaign: $(VENV)/installed-test
	$(PIP) install -c constraints-cpu.txt -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m campaign tests/campaign

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmlab needs Python >= 3.11, and \"$(PYTHON)\" is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed. On Debian or Ubuntu: apt-get install python3-venv python3-dev"; exit 1; }

compiler:
	@for c in "$$CXX" c++ g++ clang++; do [ -n "$$c" ] && command -v $$c >/dev/null 2>&1 && exit 0; done; \
	echo "lmlab needs a C++17 compiler and found none. Install one and run the same command again:"; \
	echo "  Debian, Ubuntu:  apt-get install g++"; \
	echo "  Fedora:          dnf install gcc-c++"; \
	echo "  macOS:           xcode-select --install"; \
	exit 1

$(VENV)/installed: $(INPUTS) | $(BIN)/python compiler
	@echo "Installing lmlab into $(VENV) (the first time takes some minutes, mostly torch) ..."
	$(PIP) install -c constraints-cpu.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "Installing what the tests need ..."
	$(PIP) install -c constraints-cpu.txt -e '.[test,hf,bench,mixture,parquet,track]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
