#!/usr/bin/env bash
# Everything that needs a GPU, in the order in which a failure tells most: build, tests, sanitizers, times.
# bench/gpu_run.sh DIR leaves its logs and JSON in DIR. It wants a CUDA build of torch, nvcc and pytest in
# the Python that PYTHON names, and no network.
set -euo pipefail
out=$(realpath -m "${1:?usage: bench/gpu_run.sh DIR}")
cd "$(dirname "$0")/.."
mkdir -p "$out"
python=${PYTHON:-python3}
tests="$python -m pytest --import-mode=importlib -o addopts= -q"

nvidia-smi > "$out/nvidia-smi.txt"
STRNN_CUDA=1 $python setup.py build_ext --inplace > "$out/build.log" 2>&1
$python -m strnn_kernels.info | tee "$out/info.txt"
$tests tests/cuda_host/test_build.py tests/cuda_host/test_device.py 2>&1 | tee "$out/tests.log"
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 $tests tests/cuda_host/test_device.py \
      -k "matches_reference and float32 and (mask or diamond or lengths)" 2>&1 | tee "$out/$tool.log"
  done
fi
$python -m bench.gpu_time "$out/gpu_time.json" | tee "$out/gpu_time.txt"
if command -v ncu > /dev/null; then
  ncu --set full --kernel-name regex:sweep --launch-count 4 --export "$out/sweep" --force-overwrite \
    $python -m bench.gpu_time "$out/under_ncu.json" > "$out/ncu.log" 2>&1 || tail -3 "$out/ncu.log"
fi
