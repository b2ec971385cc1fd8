# From an empty checkout: `make demo` writes text, `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# PyPI's torch for Linux brings CUDA with it, several GB; TORCH_INDEX can name torch's own CPU index instead.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints-dev.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PROMPT ?= The old house at the end of the road

.PHONY: demo test lint bench test-gpu bench-gpu sanitize-gpu asan fuzz cuda-all cuda-older cuda-check setup setup-dev clean
.DELETE_ON_ERROR:

setup: $(VENV)/ready
setup-dev: $(VENV)/ready-dev

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: $(PY) pyproject.toml constraints-dev.txt
	$(PY) -c "import torch" 2>/dev/null || $(PIP) torch
	$(PIP) -e '.[build]'
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) -e '.[dev]'
	touch $@

demo: setup
	$(PY) -m nybble generate --max-tokens 128 --prompt "$(PROMPT)"

test: setup-dev
	$(PY) -m pytest -q -m "not gpu"

lint: setup-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

bench: setup-dev
	$(PY) -m nybble bench decode

test-gpu: setup-dev
	$(PY) -m pytest -q -m gpu

bench-gpu: setup-dev
	$(PY) -m nybble bench ops --device cuda

# The op cases under compute-sanitizer, our kernels only; without PyTorch's memory cache, so that a read past an end is seen. racecheck
# looks at all kernels: told to leave some out, it breaks those of cuBLAS that run in clusters.
SANITIZERS ?= memcheck racecheck synccheck
OURS_ONLY = $(if $(filter racecheck,$(1)),,--kernel-name kernel_substring=nybble)
sanitize-gpu: setup-dev $(SANITIZERS:%=sanitize-gpu-%)
sanitize-gpu-%: setup-dev
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --target-processes application-only --launch-timeout 0 --tool $* $(call OURS_ONLY,$*) --error-exitcode 9 \
	  $(PY) -m pytest -q -m gpu tests/ops/test_cases.py --max-elements 100000 -p no:cacheprovider

# The CPU tests with the native code under AddressSanitizer and UBSan. Python itself is not instrumented, so leaks are not counted.
asan: setup-dev
	$(PY) -m nybble build --sanitize address,undefined --output build/asan
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 NYBBLE_LIBRARY=build/asan/libnybble.so \
	$(PY) -m pytest -q -m "not gpu and not slow" -p no:cacheprovider

# Seeded mutants, then coverage-guided ones where atheris is installed (pip install atheris), which is optional.
FUZZ_RUNS ?= 20000
FUZZ_SECONDS ?= 120
fuzz: setup-dev
	$(PY) -m pytest -q tests/fuzz/test_mutated.py
	$(PY) -m tests.fuzz.fuzz_checkpoint $(FUZZ_RUNS) $(FUZZ_SECONDS)

# Every architecture this nvcc knows of the default list, without a GPU.
cuda-all: setup-dev
	NYBBLE_CUDA=on $(PY) -m nybble build --archs all --output build/cuda-all

# Pascal and Volta, which nvcc 13 has dropped: with nvcc 12.
cuda-older: setup-dev
	NYBBLE_CUDA=on $(PY) -m nybble build --archs "6.0 7.0" --output build/cuda-older

# The two architectures that kernels are written for; where one spills registers in a file marked hot, the build fails.
cuda-check: setup-dev
	NYBBLE_CUDA=on $(PY) -m nybble build --archs "8.0 9.0a" --check-spills --output build/cuda-check

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache nybble/_lib
