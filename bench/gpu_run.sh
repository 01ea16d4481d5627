#!/usr/bin/env bash
# One command on a machine with a GPU, under 9 minutes from a bare checkout and without network:
#   bench/gpu_run.sh DIR
# builds what can be built, checks every backend that can run and every pair of them, measures the machine (bench/micro.cu), times
# the benchmark table, then runs the rest of the tests, compute-sanitizer on the smallest case of each kernel, and a profiler.
# DIR gets times.json and micro.json (what was measured), summary.json (how each stage went: ok, absent where a tool is not
# installed, failed or out of time) and results.tgz (all of it, with the logs and the rest of the JSON), written as they come: a
# stage that fails or runs out of its time does not stop the others, and makes the exit status 1. DEVICE=cpu rehearses it without
# a GPU (its times mean nothing).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
out=${1:?usage: bench/gpu_run.sh DIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
logs=$scratch/logs
mkdir "$logs"
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
shards=${SHARDS:-8}
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export STRNN_COMMIT=${STRNN_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton-cache}
budget=${BUDGET:-525} # seconds of the whole
started=$SECONDS
declare -A status seconds

# What there is so far: a run that is cut short leaves it.
save() {
  {
    echo '{'
    for name in "${!status[@]}"; do
      echo " \"$name\": {\"status\": \"${status[$name]}\", \"seconds\": ${seconds[$name]}},"
    done
    echo " \"commit\": \"$STRNN_COMMIT\", \"seconds\": $((SECONDS - started))"
    echo '}'
  } >"$out/summary.json"
  (cd "$out" && tar czf "$scratch/results.tgz" ./*.json -C "$scratch" logs) && mv "$scratch/results.tgz" "$out/"
}

# stage NAME LIMIT COMMAND..: runs it with a time limit, its output in NAME.log; never longer than what is left of the whole.
stage() {
  local name=$1 limit=$2 begin=$SECONDS left=$((budget - (SECONDS - started))) code=124
  shift 2
  if [ "$left" -lt 5 ]; then
    echo "no time left" >"$logs/$name.log"
  else
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" >"$logs/$name.log" 2>&1
    code=$?
  fi
  case $code in
    0) status[$name]=ok ;;
    77) status[$name]=absent ;;
    124 | 137) status[$name]="out of time" ;;
    *) status[$name]="failed, exit $code" ;;
  esac
  seconds[$name]=$((SECONDS - begin))
  echo "$name: ${status[$name]}, ${seconds[$name]} s"
  [ "$code" = 0 ] || tail -n 15 "$logs/$name.log"
  save
}

# absent WHAT: ends a stage that cannot run here.
absent() {
  echo "$1 is not installed"
  exit 77
}

# Waits for processes; fails if any did.
all_of() {
  local failed=0
  for pid in "$@"; do wait "$pid" || failed=1; done
  return $failed
}

# A process for each backend: what one of them does to the device is not held against another.
checks() {
  local pids=()
  export OMP_NUM_THREADS=1 # there are more processes than cores
  for backend in $backends; do
    for ((i = 0; i < shards; i++)); do
      "$python" -m bench.gpu_run check "$logs" --device "$device" --backends "$backend" --shard "$i/$shards" &
      pids+=($!)
    done
  done
  "$python" -m bench.gpu_run pairs "$logs" --device "$device" &
  all_of "${pids[@]}" $!
}

# The machine itself; the same source for every architecture.
micro() {
  command -v nvcc >/dev/null || absent nvcc
  nvcc -O3 -std=c++17 -arch="$1" bench/micro.cu -o "$scratch/micro" || return 1
  [ "$device" = cuda ] || return 0
  "$scratch/micro" >"$scratch/micro.json" && mv "$scratch/micro.json" "$out/"
}

# Counters of the two main kernels, forward and backward, at whatever clock the machine has.
profile() {
  command -v ncu >/dev/null || absent ncu
  ncu --set full --clock-control none --kernel-name 'regex:sweep' --launch-count 8 --target-processes all \
    "$python" -m bench.gpu_run once --device "$device" --cases SEED T9
}

# What pytest knows beyond the table; a process for each share, since compiling takes most of the time.
unit_tests() {
  "$python" -c 'import pytest' || absent pytest
  export OMP_NUM_THREADS=1
  local pids=() pytest=("$python" -m pytest -o "addopts=--import-mode=importlib" -p no:cacheprovider)
  "${pytest[@]}" --collect-only -q tests/triton tests/cuda/test_build.py tests/cuda/test_device.py \
    --ignore=tests/triton/test_budget.py >"$logs/collected.txt" || { cat "$logs/collected.txt" && return 1; }
  grep '^tests/.*::' "$logs/collected.txt" >"$logs/test-ids.txt" || { echo "no tests" && return 1; }
  for ((i = 0; i < shards; i++)); do
    awk -v i="$i" -v n="$shards" 'NR % n == i' "$logs/test-ids.txt" | tr '\n' '\0' |
      xargs -0 -r "${pytest[@]}" -v >"$logs/unit_tests-$i.log" 2>&1 &
    pids+=($!)
  done
  all_of "${pids[@]}"
}

# One backend after the other, that of CUDA first: with two compilers under these tools neither might end.
sanitize() {
  command -v compute-sanitizer >/dev/null || absent compute-sanitizer
  local failed=0 pids
  for backend in $backends; do
    pids=()
    for tool in memcheck racecheck synccheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m bench.gpu_run small \
        --device "$device" --backends "$backend" >"$logs/sanitize-$backend-$tool.log" 2>&1 &
      pids+=($!)
    done
    all_of "${pids[@]}" || failed=1
  done
  return $failed
}

export -f absent all_of checks micro profile unit_tests sanitize
export out scratch logs device python shards backends=cpu
arch=90a
if [ "$device" = cuda ]; then
  backends="cuda triton"
  # Only this machine's architecture: the others are what CI compiles.
  arch=$(nvidia-smi --id=0 --query-gpu=compute_cap --format=csv,noheader 2>&1)
  if ! [[ $arch =~ ^[0-9]+\.[0-9]+$ ]]; then
    echo "gpu_run.sh: nvidia-smi must give the architecture of a GPU, such as 9.0; got: $arch" >&2
    exit 2
  fi
  [ "$arch" = 9.0 ] && arch=9.0a
  export TORCH_CUDA_ARCH_LIST=$arch STRNN_CUDA=1
  arch=${arch/./}
  nvidia-smi >"$logs/nvidia-smi.txt"
fi
if [ "${BUILD:-1}" = 1 ]; then stage build 180 "$python" setup.py build_ext --inplace; fi
stage info 30 "$python" -m strnn_kernels.info
stage check 100 bash -c checks
stage micro 45 bash -c "micro sm_$arch"
# What is measured comes before what only tests more: no slow test can take its time.
stage time 170 "$python" -m bench.gpu_run time "$out" --device "$device" --seconds 120
if [ "$device" = cuda ]; then
  stage unit_tests 100 bash -c unit_tests
  stage sanitize 80 bash -c sanitize
fi
stage profile 60 bash -c profile

cat "$out/summary.json"
for name in "${!status[@]}"; do [[ ${status[$name]} =~ ^(ok|absent)$ ]] || exit 1; done
