# The commands of the project; CI runs `make lint test` through .ci/run. Each target makes what it needs: the virtual environment,
# the build, the installation for development. A second call does only what has changed.

PYTHON ?= python3
# An open range would bring the newest CUDA build of several gigabytes; any release from 2.10 on works (make TORCH=torch==2.11.0 test).
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
CXX_FILES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h)

.PHONY: help demo test lint format bench report info clean

help:
	@echo "make demo    train STRNN on real handwriting, pictures in out/"
	@echo "make test    the tests that CI runs"
	@echo "make lint    ruff, clang-format, import-linter"
	@echo "make bench   the benchmark table (make report: bench/REPORT.md from committed results)"
	@echo "make info    what was built and what can run here"

demo: $(VENV)/.ready
	$(BIN)/python -m strnn_models.demo --out out

test: $(VENV)/.ready
	STRNN_EXPECT_COMPILED=1 $(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/lint-imports

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/.ready
	$(BIN)/python -m bench

report: $(VENV)/.ready
	$(BIN)/python -m bench.report

info: $(VENV)/.ready
	$(BIN)/python -m strnn_kernels.info

$(VENV)/.ready: pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet $(TORCH) numpy pybind11 ninja
	STRNN_CPU=1 $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build out *.egg-info strnn_kernels/*.so
