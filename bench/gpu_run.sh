#!/usr/bin/env bash
# One command on a machine with a GPU, under 9 minutes from a bare checkout and without network:
#   bench/gpu_run.sh DIR
# builds what can be built, checks every backend that can run, lets compute-sanitizer look at the smallest case of each kernel,
# and times the benchmark table. DIR gets a log of each stage, check-*.json, times.json and summary.json; a stage that fails does
# not stop the others, and makes the exit status 1. DEVICE=cpu rehearses it without a GPU (its times mean nothing).
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
started=$SECONDS
declare -A status seconds

# stage NAME LIMIT COMMAND..: runs it with a time limit, its output in NAME.log.
stage() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  status[$name]=$?
  seconds[$name]=$((SECONDS - begin))
  echo "$name: exit ${status[$name]}, ${seconds[$name]} s"
}

checks() {
  local pids=() failed=0
  for ((i = 0; i < shards; i++)); do
    "$python" -m bench.gpu_run check "$out" --device "$device" --shard "$i/$shards" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
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

export -f checks unit_tests sanitize
export out device python shards
if [ "$device" = cuda ]; then
  # Only this machine's architecture: the others are what CI compiles.
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1)
  [ "$arch" = 9.0 ] && arch=9.0a
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arch} STRNN_CUDA=1
  nvidia-smi >"$out/nvidia-smi.txt"
fi
if [ "${BUILD:-1}" = 1 ]; then stage build 180 "$python" setup.py build_ext --inplace; fi
stage info 60 "$python" -m strnn_kernels.info
stage check 120 bash -c checks
if [ "$device" = cuda ]; then
  stage unit_tests 100 bash -c unit_tests
  if command -v compute-sanitizer >/dev/null; then stage sanitize 80 bash -c sanitize; else echo "no compute-sanitizer" >"$out/sanitize.log"; fi
fi
left=$((520 - (SECONDS - started)))
stage time "$((left > 60 ? left : 60))" "$python" -m bench.gpu_run time "$out" --device "$device" --seconds "$((left > 90 ? left - 60 : 30))"

failed=0
{
  echo '{'
  for name in "${!status[@]}"; do
    echo " \"$name\": {\"exit\": ${status[$name]}, \"seconds\": ${seconds[$name]}},"
    [ "${status[$name]}" = 0 ] || failed=1
  done
  echo " \"commit\": \"$STRNN_COMMIT\", \"seconds\": $((SECONDS - started))"
  echo '}'
} >"$out/summary.json"
for name in "${!status[@]}"; do [ "${status[$name]}" = 0 ] || failed=1; done
cat "$out/summary.json"
exit $failed
