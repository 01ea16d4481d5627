#!/usr/bin/env bash
# One command on a machine with a GPU, under 9 minutes from a bare checkout and without network:
#   bench/gpu_run.sh DIR
# builds what can be built, checks every backend that can run and every pair of them, measures the machine (bench/micro.cu), times
# the benchmark table, then runs the rest of the tests, compute-sanitizer on the smallest case of each kernel, and a profiler.
# DIR gets a log of each stage, check-*.json, pairs.json, micro.json, times.json and summary.json, written as they come: a stage
# that fails or runs out of its time does not stop the others, and makes the exit status 1. What is not installed is said in the
# stage's log. DEVICE=cpu rehearses it without a GPU (its times mean nothing).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bench/gpu_run.sh DIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
shards=${SHARDS:-8}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export STRNN_COMMIT=${STRNN_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$out/triton-cache}
budget=${BUDGET:-525} # seconds of the whole
started=$SECONDS
declare -A status seconds

# The summary so far: a run that is cut short leaves what it has.
summary() {
  {
    echo '{'
    for name in "${!status[@]}"; do
      echo " \"$name\": {\"exit\": ${status[$name]}, \"seconds\": ${seconds[$name]}},"
    done
    echo " \"commit\": \"$STRNN_COMMIT\", \"seconds\": $((SECONDS - started))"
    echo '}'
  } >"$out/summary.json"
}

# stage NAME LIMIT COMMAND..: runs it with a time limit, its output in NAME.log; never longer than what is left of the whole.
stage() {
  local name=$1 limit=$2 begin=$SECONDS left=$((budget - (SECONDS - started)))
  shift 2
  if [ "$left" -lt 5 ]; then
    echo "no time left" >"$out/$name.log"
    status[$name]=124 seconds[$name]=0
  else
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" >"$out/$name.log" 2>&1
    status[$name]=$?
    seconds[$name]=$((SECONDS - begin))
  fi
  echo "$name: exit ${status[$name]}, ${seconds[$name]} s"
  summary
}

checks() {
  local pids=() failed=0
  for ((i = 0; i < shards; i++)); do
    "$python" -m bench.gpu_run check "$out" --device "$device" --shard "$i/$shards" &
    pids+=($!)
  done
  "$python" -m bench.gpu_run pairs "$out" --device "$device" || failed=1
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

# The machine itself; the same source for every architecture.
micro() {
  local nvcc
  nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
  if [ ! -x "$nvcc" ]; then echo "no nvcc"; return 0; fi
  "$nvcc" -O3 -std=c++17 -arch="$1" bench/micro.cu -o "$out/micro" || return 1
  if [ "$device" = cuda ]; then "$out/micro" >"$out/micro.json" || return 1; fi
}

# Counters of the two main kernels, forward and backward.
profile() {
  if ! command -v ncu >/dev/null; then echo "no ncu"; return 0; fi
  ncu --set full --kernel-name 'regex:sweep' --launch-count 8 --target-processes all \
    "$python" -m bench.gpu_run once "$out" --device "$device" --cases SEED T9
}

# What pytest knows beyond the table; a process for each share, since compiling takes most of the time.
unit_tests() {
  "$python" -c 'import pytest' || return 0
  local pids=() failed=0 test_ids="$out/test-ids"
  "$python" -m pytest -o addopts="--import-mode=importlib" --collect-only -q \
    tests/triton tests/cuda_host/test_build.py tests/cuda_host/test_device.py --ignore=tests/triton/test_budget.py |
    grep '::' >"$test_ids"
  for ((i = 0; i < shards; i++)); do
    awk -v i="$i" -v n="$shards" 'NR % n == i' "$test_ids" | tr '\n' '\0' |
      xargs -0 -r "$python" -m pytest -o addopts="--import-mode=importlib" -q -p no:cacheprovider &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

sanitize() {
  local pids=() failed=0
  for tool in memcheck racecheck synccheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m bench.gpu_run small --device "$device" >"$out/sanitize-$tool.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

export -f checks micro profile unit_tests sanitize
export out device python shards
arch=90a
if [ "$device" = cuda ]; then
  # Only this machine's architecture: the others are what CI compiles.
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1)
  [ "$arch" = 9.0 ] && arch=9.0a
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arch} STRNN_CUDA=1
  nvidia-smi >"$out/nvidia-smi.txt"
  arch=${arch/./}
fi
if [ "${BUILD:-1}" = 1 ]; then stage build 180 "$python" setup.py build_ext --inplace; fi
stage info 30 "$python" -m strnn_kernels.info
stage check 100 bash -c checks
stage micro 45 bash -c "micro sm_$arch"
# What is measured comes before what only tests more: no slow test can take its time.
stage time 170 "$python" -m bench.gpu_run time "$out" --device "$device" --seconds 120
if [ "$device" = cuda ]; then
  stage unit_tests 100 bash -c unit_tests
  if command -v compute-sanitizer >/dev/null; then stage sanitize 80 bash -c sanitize; else echo "no compute-sanitizer" >"$out/sanitize.log"; fi
fi
stage profile 60 bash -c profile

summary
cat "$out/summary.json"
for name in "${!status[@]}"; do [ "${status[$name]}" = 0 ] || exit 1; done
