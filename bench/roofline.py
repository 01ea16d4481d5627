"""The floor under a case: arithmetic, bytes and serial chain, over the measured machine.

Floating-point operations are those that cannot be left out: a node without predecessors has no
recurrent product, a masked node none at all, an exact zero of the projection none. Bytes are each
input once and each output once; a training step also writes and reads the saved states once and
reads x twice. What a call must leave behind is counted too: the output, and in training the states
and every gradient; memory above that is what an implementation adds. The serial chain is one state
after the other: per level the depth of the adder tree of a dot product of length H, and the
activation, each one FMA latency. The largest of the three times is the floor.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from strnn_kernels.notation import gates, saved
from strnn_kernels.testing import NOT_DIFFERENTIABLE, Case

# 12 accumulators: more than latency x ports of any current core, and they fit the registers of AVX2
# and AVX-512.
FMA_SOURCE = r"""
#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float vec __attribute__((vector_size(4 * WIDTH)));
#define ALL(OP) OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11)
#define DECLARE(i) vec a##i = m + i;
#define KEEP(i) __asm__ volatile("" : "+x"(a##i));
#define STEP(i) a##i = a##i * m + c;
#define SUM(i) + a##i
extern "C" int lanes() { return WIDTH; }
extern "C" float throughput(long n, float scale) {
  vec m = {}, c = {};
  m += scale; c += 1e-6f;
  ALL(DECLARE)
  for (long i = 0; i < n; ++i) { ALL(STEP) ALL(KEEP) }
  vec s = m ALL(SUM);
  return s[0];
}
extern "C" float latency(long n, float scale) {
  vec m = {}, c = {};
  m += scale; c += 1e-6f;
  DECLARE(0)
  for (long i = 0; i < n; ++i) { STEP(0) KEEP(0) }
  return a0[0];
}
"""
NUM_ACCUMULATORS = 12
COPY_BYTES = (256 << 10, 4 << 20, 256 << 20)


@dataclass(frozen=True)
class Peaks:
    """What one core and the memory were measured to do."""

    fma_gflops: float  # one core, float32
    sgemm_gflops: (
        float  # one core, torch.mm of two 1024 x 1024 matrices: what a library makes of it
    )
    fma_how: str
    fma_latency_ns: float
    copy_gbs: Mapping[
        int, Mapping[int, float]
    ]  # threads -> working set in bytes -> bytes read + written per ns

    def bandwidth(self, num_bytes: float, threads: int) -> float:
        """GB/s for a working set: the rate of the smallest measured one that holds it."""
        rates = self.copy_gbs[threads]
        return next(
            (rates[size] for size in COPY_BYTES if num_bytes <= size), rates[COPY_BYTES[-1]]
        )

    def as_json(self) -> dict[str, object]:
        """For the result file."""
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What a case needs at least."""

    flops: float
    num_bytes: float
    chain: float  # dependent FMA latencies
    held_bytes: float  # what is left behind: outputs, saved states, gradients
    product_flops: float = 0.0  # of the products with w_ih, w_hh, their gradients, and s = G h

    def floor(self, peaks: Peaks, threads: int) -> tuple[float, str]:
        """The floor in seconds, and which of the three it is."""
        times = {
            "arithmetic": self.flops / (peaks.fma_gflops * threads * 1e9),
            "bytes": self.num_bytes / (peaks.bandwidth(self.num_bytes, threads) * 1e9),
            "chain": self.chain * peaks.fma_latency_ns * 1e-9,
        }
        which = max(times, key=lambda name: times[name])
        return times[which], which


def work(case: Case, inputs: Mapping[str, Tensor], mode: str) -> Work:
    """The least work of `mode` ("inference" or "training") on these inputs."""
    B, N, D, C, H, K = case.B, case.N, case.D, case.C, case.H, case.K
    topology, training = case.topology, mode == "training"
    live = case.live(inputs)
    num_pred = torch.tensor(
        [[len(topology.predecessors(d, n)) for n in range(N)] for d in range(D)]
    )
    nodes = live.sum(dtype=torch.float64).item()
    products = (live.double() @ (num_pred > 0).double().T).sum().item()
    if case.has_h0:
        products = D * nodes
    elif case.has_lengths:
        products = D * (nodes - B)  # both ends of a sequence lie inside its length
    adds = (live.double() @ (num_pred - 1).clamp(min=0).double().T).sum().item() * H

    weight = inputs.get("projection", inputs.get("weight"))
    kept = 0.0 if not K else (weight != 0).double().mean().item()
    project = D * nodes * 2 * K * H * kept
    G = gates(case.code)
    recurrent = products * 2 * H * G * H
    enter = D * nodes * 2 * C * G * H
    sweeps = case.op != "sparse_projection"
    flops = project if not sweeps else enter + recurrent + adds + project
    if training:
        flops += 2 * project + (2 * recurrent + adds + 2 * enter if sweeps else 0)

    size = case.dtype.itemsize
    tensors = {n: t.numel() * size for n, t in inputs.items() if n not in NOT_DIFFERENTIABLE}
    states = B * N * D * H * size
    output = B * D * K * H * size if K else states
    num_bytes = sum(tensors.values()) + output
    if training:
        num_bytes += 2 * sum(tensors.values()) + output + states + (states if K and sweeps else 0)
        num_bytes += 2 * states * saved(case.code)
    chain = topology.num_levels * (math.ceil(math.log2(H + 1)) + 1) if sweeps else 0
    held = output
    if training:
        held += sum(tensors.values()) + (states if K and sweeps else 0)
        held += states * saved(case.code)
    in_products = (recurrent + enter) * (3 if training else 1) + project if sweeps else 0.0
    return Work(flops, num_bytes, chain * (2 if training else 1), held, in_products)


def measure_peaks(threads: list[int]) -> Peaks:
    """FMA peak and latency of one core, copy bandwidth for each number of threads."""
    sgemm = _sgemm()
    gflops, latency, how = _fma_loop() or (sgemm, 1.5, "sgemm (no compiler found; latency assumed)")
    before = torch.get_num_threads()
    copies = {}
    try:
        for count in threads:
            torch.set_num_threads(count)
            copies[count] = {size: _copy(size) for size in COPY_BYTES}
    finally:
        torch.set_num_threads(before)
    return Peaks(gflops, sgemm, how, latency, copies)


def _best(call: object, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _fma_loop() -> tuple[float, float, str] | None:
    """(GFLOP/s, latency in ns, how) of FMAs in registers; None without a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "fma.cpp", Path(folder) / "fma.so"
        source.write_text(FMA_SOURCE)
        command = [compiler, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        built = subprocess.run(
            [*command, str(source), "-o", str(library)], capture_output=True, check=False
        )
        if built.returncode:
            return None
        code = ctypes.CDLL(str(library))
        for name in ("throughput", "latency"):
            getattr(code, name).argtypes = [ctypes.c_long, ctypes.c_float]
            getattr(code, name).restype = ctypes.c_float
        n = 200_000  # under a millisecond: the best of many fits between other programs
        seconds = _best(lambda: code.throughput(n, 0.999), 300)
        flops = 2.0 * n * NUM_ACCUMULATORS * code.lanes()
        return (
            flops / seconds / 1e9,
            _best(lambda: code.latency(n, 0.999), 300) / n * 1e9,
            "loop of FMAs in registers",
        )


def _sgemm() -> float:
    """GFLOP/s of one core in a large product of the library that torch brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        n = 1024
        a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        seconds = _best(lambda: torch.mm(a, b, out=out))
    finally:
        torch.set_num_threads(before)
    return 2.0 * n**3 / seconds / 1e9


def _copy(num_bytes: int) -> float:
    """GB/s of a copy whose source and destination together are `num_bytes`."""
    source = torch.ones(num_bytes // 8)
    target = torch.zeros_like(source)
    calls = max(1, (64 << 20) // num_bytes)

    def run() -> None:
        for _ in range(calls):
            target.copy_(source)

    run()
    seconds = [_best(run, 1) for _ in range(5)]
    return num_bytes * calls / median(seconds) / 1e9
