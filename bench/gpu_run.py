"""The Python half of `gpu_run.sh`: checks and times every available backend on one GPU, as JSON.

    python -m bench.gpu_run check DIR [--shard I/N]   the conformance table, against float64
    python -m bench.gpu_run small                     the smallest case of each kernel
    python -m bench.gpu_run time DIR                  inference and training step

Time is kernel time: each call is captured in a CUDA graph, replays are timed by events,
contestants in turn, medians over rounds. What cannot be captured (packed sequences) is timed
without a graph and says so. `--device cpu` rehearses the script: its times mean nothing, and the
JSON says that too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

import strnn_kernels as sk
from bench.contestants import Backend, Contestant, NnRNN, WavefrontPeer
from bench.peers.wavefront import Wavefront
from bench.roofline import work
from strnn_kernels.testing import BENCHMARKS, CONFORMANCE, Case, Expected, find
from strnn_kernels.topology import Topology

SCHEMA = 1
ROUNDS, SAMPLE_SECONDS = 11, 5e-3
BF16 = torch.bfloat16

#: The sizes that the targets name. Smooth activations where drawing inputs away from the kinks of a
#: ReLU would take longer than the measurement.
TARGETS = (
    Case("SEED", "spatial_rnn", partial(Topology.montage, "seed-62"), B=288, C=5, H=30),
    Case("SEED K", "spatial_rnn", partial(Topology.montage, "seed-62"), B=288, C=5, H=30, K=10),
    Case(
        "image", "spatial_rnn", partial(Topology.grid, 32, 32), B=64, C=128, H=128,
        activation="tanh", dtype=BF16,
    ),
    Case(
        "T512", "temporal_rnn", partial(Topology.chain, 512), B=64, C=128, H=128,
        activation="tanh",
    ),
    Case(
        "T512 bf16", "temporal_rnn", partial(Topology.chain, 512), B=64, C=128, H=128,
        activation="tanh", dtype=BF16,
    ),
    Case(
        "T512 lengths", "temporal_rnn", partial(Topology.chain, 512), B=64, C=128, H=128,
        activation="tanh", has_lengths=True,
    ),
    Case("T9", "temporal_rnn", partial(Topology.chain, 9), B=32, C=30, H=30, activation="tanh"),
)  # fmt: skip
#: The smallest call that reaches each kernel.
SMALL = ("corner-1x5-b1-h1", "chain-wide", "diamond", "gated-diamond", "project", "chain-lengths-k")
#: What a rehearsal without a GPU runs.
REHEARSAL = ("chain-t9", "chain-lengths", "corner-3x4-h30")


def main(arguments: list[str] | None = None) -> int:
    """0 if everything that ran was right."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_run", description=__doc__)
    parser.add_argument("what", choices=("check", "small", "time"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shard", default="0/1", help="I/N: cases I, I + N, ..")
    parser.add_argument(
        "--cases", nargs="*", help="names; default: the benchmark table and the targets"
    )
    parser.add_argument("--seconds", type=float, default=150, help="no case starts after this long")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    names = [n for n, b in sk.backends().items() if b is None and n != "reference"]
    names = [n for n in names if n != "cpu" or device.type == "cpu"]
    if not names:
        print(f"no backend can run: {sk.backends()}")
        return 1
    if options.what == "small":
        return small(names, device)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "check":
        part, parts = map(int, options.shard.split("/"))
        rows = check(names, device, CONFORMANCE[part::parts])
        path = options.folder / f"check-{part}.json"
    else:
        rows = time_all(names, device, chosen(options.cases, device), options.seconds)
        path = options.folder / "times.json"
    result = {"schema": SCHEMA, "about": about(device), "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [r for r in rows if r["status"] not in ("ok", "absent")]
    for row in wrong:
        print(f"{row['case']} {row['who']}: {row['status']}")
    return int(bool(wrong))


def about(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    found: dict[str, Any] = {
        "commit": os.environ.get("STRNN_COMMIT", "unknown"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": sk.backends(),
        "is_rehearsal": device.type != "cuda",
    }
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if device.type == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ]
        try:
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            found["driver"] = done.stdout.strip()
        except FileNotFoundError:
            found["driver"] = None
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_bytes"] = properties.total_memory
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
        found["peaks"] = peaks(device)
    return found


def peaks(device: torch.device) -> dict[str, float]:
    """Measured rates: copied bytes (read and written), and products of large matrices."""

    def rate(amount: float, call: Callable[[], Any]) -> float:
        call()
        return amount / median(timed(call, 20, device) for _ in range(5))

    source = torch.empty(1 << 28, device=device)
    target = torch.empty_like(source)
    found = {"copy_gbs": rate(2 * source.nbytes, lambda: target.copy_(source)) / 1e9}
    for dtype in (torch.float32, BF16):
        a = torch.randn(4096, 4096, device=device, dtype=dtype)
        name = f"gemm_{str(dtype).removeprefix('torch.')}_tflops"
        found[name] = rate(2 * 4096**3, lambda a=a: a @ a) / 1e12
    return found


def check(names: list[str], device: torch.device, cases) -> list[dict[str, Any]]:
    """Every case on every backend, output and gradients, against the reference."""
    rows = []
    for case in cases:
        inputs = case.inputs()
        expected = Expected.of(case, inputs)
        there = {name: value.to(device) for name, value in inputs.items()}
        for name in names:
            try:
                with sk.use_backend(name):
                    found = case.results(sk, there)
                    with torch.no_grad():
                        alone = case.run(sk, there)
                expected.check({n: v.cpu() for n, v in found.items()}, name)
                expected.check({"output": alone.cpu()}, f"{name}, no gradient")
                status = "ok"
            except (AssertionError, RuntimeError, ValueError, TypeError) as error:
                status = f"wrong: {error}"[:2000]
            rows.append({"case": case.name, "who": name, "status": status})
    return rows


def small(names: list[str], device: torch.device) -> int:
    """Forward and backward of a small case of each kernel; a sanitizer looks on."""
    for case in map(find, SMALL):
        inputs = {name: value.to(device) for name, value in case.inputs().items()}
        for name in names:
            with sk.use_backend(name):
                case.results(sk, inputs)
                with torch.no_grad():
                    case.run(sk, inputs)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("small cases ran:", *names)
    return 0


def chosen(names: list[str] | None, device: torch.device) -> list[Case]:
    """Cases by name; the targets first, since time may run out."""
    known = {case.name: case for case in (*TARGETS, *BENCHMARKS, *CONFORMANCE)}
    if names is None:
        names = [c.name for c in (*TARGETS, *BENCHMARKS)] if device.type == "cuda" else REHEARSAL
    return [known[name] for name in names]


def time_all(names, device, cases, seconds: float) -> list[dict[str, Any]]:
    """All contestants of all cases; what is wrong is not timed."""
    # Exact float32 everywhere: cuDNN's recurrent layers would use TF32 otherwise.
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    deadline, rows = time.monotonic() + seconds, []
    for case in cases:
        contestants: list[Contestant] = [
            *(Backend(name) for name in names),
            WavefrontPeer(),
            NnRNN(),
        ]
        if case.name == "SEED":
            contestants.append(WavefrontPeer("wavefront compiled", is_compiled=True))
        if time.monotonic() > deadline:
            rows += [_row(case, c, "out of time") for c in contestants]
            continue
        rows += time_case(case, contestants, device)
        print(
            case.name,
            *(f"{r['who']}: {r.get('us')}" for r in rows if r["case"] == case.name),
            flush=True,
        )
    return rows


def _row(case: Case, contestant: Contestant, status: str) -> dict[str, Any]:
    return {"case": case.name, "who": contestant.name, "status": status}


def time_case(
    case: Case, contestants: list[Contestant], device: torch.device
) -> list[dict[str, Any]]:
    """Microseconds of each contestant in each mode, with the counts that a floor needs."""
    inputs = {name: value.to(device) for name, value in case.inputs().items()}
    expected = Expected.of(case, inputs, oracle=OnDevice(Wavefront(), device))
    dy = case.output_gradient(expected.same_dtype["output"])
    rows, tasks = [], {}
    for contestant in contestants:
        reason = contestant.refusal(case)
        if reason:
            rows.append(_row(case, contestant, "absent") | {"reason": reason})
            continue
        row = _row(case, contestant, "ok")
        try:
            given = dict(inputs)
            if "lengths" in given and isinstance(contestant, NnRNN):
                given["lengths"] = given["lengths"].cpu()  # where packing wants them
            runner = contestant.prepare(case, given, dy)
            with device, runner.around():
                verify(expected, runner, contestant.name)
                modes = captured(runner, device)
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            rows.append(row | {"status": f"wrong: {error}"[:2000]})
            continue
        tasks[contestant.name] = (row, modes)
        rows.append(row)
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for who, (_, modes) in tasks.items():
            for mode, (call, _) in modes.items():
                samples.setdefault((who, mode), []).append(timed_sample(call, device))
    for who, (row, modes) in tasks.items():
        row["is_graph"] = {mode: is_graph for mode, (_, is_graph) in modes.items()}
        row["us"] = {mode: round(median(samples[who, mode]) * 1e6, 3) for mode in modes}
        row["quartiles_us"] = {
            mode: [round(q * 1e6, 3) for q in quantiles(samples[who, mode], n=4)[::2]]
            for mode in modes
        }
    counts = {
        mode: work(case, {n: v.cpu() for n, v in inputs.items()}, mode)
        for mode in ("inference", "training")
    }
    for row in rows:
        row["work"] = {mode: dataclasses.asdict(count) for mode, count in counts.items()}
        row["levels"] = case.topology.num_levels
    return rows


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """A module whose functions make their small tables on a device, as the peers need it."""

    module: Any
    device: torch.device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.device:
                return function(*args, **kwargs)

        return call


def verify(expected: Expected, runner: Any, who: str) -> None:
    """The numbers, before the time."""
    with torch.no_grad():
        output = runner.output(runner.forward())
    found: Mapping[str, Tensor] = runner.gradients(runner.step())
    expected.check(
        {"output": output, **{n: g for n, g in found.items() if n in expected.exact}}, who
    )


def captured(runner: Any, device: torch.device) -> dict[str, tuple[Callable[[], Any], bool]]:
    """Each mode as something to call, and whether that replays a graph.

    "inference" keeps nothing for gradients, "step" is a forward and a backward pass.
    """

    def inference() -> Any:
        with torch.no_grad():
            return runner.forward()

    calls = {"inference": inference, "step": runner.step}
    if device.type != "cuda":
        return {mode: (call, False) for mode, call in calls.items()}
    return {mode: as_graph(call) for mode, call in calls.items()}


def as_graph(call: Callable[[], Any]) -> tuple[Callable[[], Any], bool]:
    """Replay of the call's graph; the call itself if it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, False
    return graph.replay, True


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Mean seconds of a call: by events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e-3 / repeats


def timed_sample(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, repeated until a sample is long enough for the clock."""
    once = timed(call, 1, device)
    return timed(call, max(1, min(1000, int(SAMPLE_SECONDS / max(once, 1e-6)))), device)


if __name__ == "__main__":
    sys.exit(main())
