"""The Python half of `gpu_run.sh`: checks and times every available backend on one GPU, as JSON.

    python -m bench.gpu_run check DIR [--shard I/N]   the conformance table, against float64
    python -m bench.gpu_run pairs DIR                 every backend's backward after every forward
    python -m bench.gpu_run small                     a small case of each kernel, for a sanitizer
    python -m bench.gpu_run time DIR                  inference and training step
    python -m bench.gpu_run once --cases SEED         a training step, for a profiler

Time is kernel time: each call is captured in a CUDA graph, replays are timed by events,
contestants in turn, medians over rounds. What cannot be captured (packed sequences) is timed
without a graph and says so. `--device cpu` rehearses the script: its times mean nothing, and the
JSON says that too. What is measured is written after each case: a stage that is cut short loses
only the case that it was at.
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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

import strnn_kernels as sk
from bench.contestants import Backend, Contestant, Layer, PythonCellLoop, WavefrontPeer
from bench.gpu_peers import COMPILE_SECONDS, FlashRNN, within
from bench.peers.wavefront import Wavefront
from bench.roofline import work
from strnn_kernels.backends import BACKENDS
from strnn_kernels.notation import CELLS, bias_rows, gates
from strnn_kernels.registration import topology_tables
from strnn_kernels.testing import (
    BENCHMARKS,
    CONFORMANCE,
    Case,
    Expected,
    assert_close_to_reference,
    find,
    sweep_arguments,
    sweep_backward_arguments,
    tf32,
)
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


def _small(name: str, H: int, dtype: torch.dtype, suffix: str = "") -> Case:
    short = str(dtype).removeprefix("torch.")
    return find(name).smooth(name=f"{name} h{H} {short}{suffix}", H=H, dtype=dtype)


#: It runs with TF32 allowed.
TF32 = _small("diamond", 70, torch.float32, " as TF32")
#: Small calls that between them reach every kernel, among the CUDA backend's those for wide states
#: and for 16 bits.
SMALL = (
    *map(find, ("corner-1x5-b1-h1", "chain-wide", "diamond", "gated-diamond", "project")),
    *map(find, ("chain-lengths-k", "chain-h264", "lstm-sum", "gru-t9", "lstm-carry-lengths")),
    _small("corner-3x4-h30", 30, BF16), _small("diamond", 70, BF16),
    _small("gated-diamond", 70, BF16), _small("chain-lengths-k", 130, BF16),
    _small("chain-h264", 520, BF16), _small("chain-h264", 264, torch.float32), TF32,
)  # fmt: skip
#: Cases of which the loop over cells and the compiled loops are timed too.
COMPILED = ("SEED", "T9", "corner-3x4-h30")
#: What a rehearsal without a GPU runs.
REHEARSAL = ("chain-t9", "chain-lengths", "corner-3x4-h30")


def main(arguments: list[str] | None = None) -> int:
    """0 if everything that ran was right."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_run", description=__doc__)
    parser.add_argument("what", choices=("check", "pairs", "small", "time", "once"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backends", nargs="*", choices=BACKENDS, help="default: all that can run")
    parser.add_argument("--shard", default="0/1", help="I/N: cases I, I + N, ..")
    parser.add_argument(
        "--cases", nargs="*", help="names; default: the benchmark table and the targets"
    )
    parser.add_argument(
        "--seconds", type=float, default=150, help="no contestant starts after this long"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    refusals = sk.backends()
    known = [n for n in refusals if n != "reference" and (n != "cpu" or device.type == "cpu")]
    names = options.backends or [name for name in known if refusals[name] is None]
    if not names or any(refusals[name] for name in names):
        print(f"cannot run: { {name: refusals[name] for name in names or known} }")
        return 1
    if options.what == "small":
        return small(names, device)
    if options.what == "once":
        return once(names, device, chosen(options.cases, device))
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "check":
        part, parts = map(int, options.shard.split("/"))
        cases = [*dict.fromkeys((*CONFORMANCE, *SMALL))][part::parts]
        path, rows = f"check-{'-'.join(names)}-{part}.json", check(names, device, cases)
    elif options.what == "pairs":
        path, rows = "pairs.json", pairs(names, device)
    else:
        path = "times.json"
        rows = time_all(names, device, chosen(options.cases, device), options.seconds)
    result: dict[str, Any] = {"schema": SCHEMA, "about": about(device), "rows": []}
    if options.what == "time" and device.type == "cuda":
        result["about"]["peaks"] = peaks(device)
    num_wrong = 0
    for row in rows:
        is_wrong = row["status"] not in ("ok", "absent")
        is_lost = is_wrong and not answers(device)
        if is_lost:
            row["status"] += "; the device does not answer any more: nothing after this was run"
        result["rows"].append(row)
        (options.folder / path).write_text(json.dumps(result, indent=1) + "\n")
        if is_wrong:
            num_wrong += 1
            print(f"{row['case']} {row['who']}: {row['status']}")
        if is_lost:
            break
    return int(num_wrong > 0)


def answers(device: torch.device) -> bool:
    """Whether the device still works: after an illegal access every later call fails."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:  # torch.AcceleratorError, where that exists
        return False
    return True


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


def check(names: list[str], device: torch.device, cases) -> Iterator[dict[str, Any]]:
    """Every case on every backend, output and gradients, against the reference."""
    for case in cases:
        inputs = case.inputs()
        expected = Expected.of(case, inputs, allow_tf32=case is TF32)
        there = {name: value.to(device) for name, value in inputs.items()}
        for name in names:
            try:
                with sk.use_backend(name), tf32(case is TF32):
                    found = case.results(sk, there)
                    with torch.no_grad():
                        alone = case.run(sk, there)
                expected.check({n: v.cpu() for n, v in found.items()}, name)
                expected.check({"output": alone.cpu()}, f"{name}, no gradient")
                status = "ok"
            except Exception as error:  # of a compiler anything may come
                status = wrong(error)
            yield {"case": case.name, "who": name, "status": status}


def wrong(error: Exception) -> str:
    """The status of what failed."""
    return f"wrong: {type(error).__name__}: {error}"[:2000]


def pairs(names: list[str], device: torch.device) -> Iterator[dict[str, Any]]:
    """Raw ops: each backend's backward takes what any backend's forward left.

    It must be as close to its own float64 as the tolerance allows the backend's that made it.
    """
    for cell, graph, dtype in product(
        ("tanh", "gru", "lstm"), ("grid", "chain"), (torch.float32, BF16)
    ):
        topology = Topology.grid(5, 6) if graph == "grid" else Topology.chain(11)
        code, is_gated = CELLS.index(cell), cell != "tanh"
        G, R = gates(code), bias_rows(code)
        (B, N, D), (C, H, K) = (7, topology.num_nodes, topology.num_directions), (5, 30, 3)
        make = torch.Generator().manual_seed(0)
        shapes = {
            "x": (B, N, C), "w_ih": (D, G * H, C), "bias": (D, R * H), "w_hh": (D, G * H, H),
            "projection": (D, K, N), "h0": (B, D, H), "dh": (B, N, D, H), "ds": (B, D, K, H),
        }  # fmt: skip
        given = {
            name: (torch.randn(shape, generator=make) / (3 * shape[-1] ** 0.5)).to(device, dtype)
            for name, shape in shapes.items()
        }
        mask = (torch.rand(B, N, generator=make) < 0.8).to(device)
        options = {"mask": mask, "mean": is_gated and graph == "grid", "cell": code}

        def forward(name, topology=topology, given=given, options=options, is_gated=is_gated):
            ops, tables = raw(name, topology, device)
            inputs = {n: t for n, t in given.items() if n not in ("dh", "ds")}
            found = ops.sweep_fwd(
                *sweep_arguments(tables=tables, save=is_gated, **inputs, **options)
            )
            return {"h": found[0], "saved": found[5]}

        def backward(name, left, dtype=dtype, topology=topology, given=given, options=options):
            ops, tables = raw(name, topology, device)
            inputs = {n: t.to(dtype) for n, t in (given | left).items()}
            return ops.sweep_bwd(*sweep_backward_arguments(tables=tables, **inputs, **options))

        for first, second in product(names, names):
            status = "ok"
            try:
                left = forward(first)
                own, exact = backward(first, left), backward(first, left, torch.float64)
                for a, b, c in zip(backward(second, left), own, exact, strict=True):
                    assert_close_to_reference(a, b, c, what=second, gradient=True)
            except Exception as error:
                status = wrong(error)
            case = f"{cell} {graph} {str(dtype).removeprefix('torch.')}"
            yield {"case": case, "who": f"{first} forward, {second} backward", "status": status}


def raw(name: str, topology: Topology, device: torch.device) -> tuple[Any, Any]:
    """A backend's ops, and the tables of a topology as it wants them."""
    backend = BACKENDS[name]
    return getattr(torch.ops, backend.namespace), topology_tables(topology, device, backend.order)


def once(names: list[str], device: torch.device, cases: list[Case]) -> int:
    """A forward and a backward pass of each backend, for a profiler."""
    for case in cases:
        inputs = {name: value.to(device) for name, value in case.inputs().items()}
        for name in names:
            with sk.use_backend(name):
                case.results(sk, inputs)
    return 0


def small(names: list[str], device: torch.device) -> int:
    """Forward and backward of a small case of each kernel; a sanitizer looks on."""
    for case in SMALL:
        inputs = {name: value.to(device) for name, value in case.inputs().items()}
        for name in names:
            with sk.use_backend(name), tf32(case is TF32):
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


def time_all(names, device, cases, seconds: float) -> Iterator[dict[str, Any]]:
    """All contestants of all cases; what is wrong is not timed."""
    # Exact float32 everywhere: cuDNN's recurrent layers would use TF32 otherwise.
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    deadline = time.monotonic() + seconds
    ours: list[Contestant] = [Backend(name) for name in names]
    peers: list[Contestant] = [
        WavefrontPeer(),
        Layer(),
        Layer("nn.GRU", ("gru",)),
        Layer("nn.LSTM", ("lstm",)),
        FlashRNN(),
    ]
    loops: list[Contestant] = [
        PythonCellLoop(),
        WavefrontPeer("wavefront compiled", compiled="whole"),
        WavefrontPeer("wavefront, levels compiled", compiled="level"),
        PythonCellLoop("cell loop compiled", is_compiled=True, modes=("inference",)),
    ]
    rounds = [(case, [*ours, *peers]) for case in cases]
    # Last: compiling may take all the time that there is. Our own rows are measured again, beside
    # them.
    rounds += [(case, [*ours, *loops]) for case in cases if case.name in COMPILED]
    for case, contestants in rounds:
        rows = time_case(case, contestants, device, deadline)
        print(case.name, *(f"{r['who']}: {r.get('us')}" for r in rows), flush=True)
        yield from rows


def _row(case: Case, contestant: Contestant, status: str) -> dict[str, Any]:
    return {
        "case": case.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "who": contestant.name,
        "status": status,
    }


def time_case(
    case: Case, contestants: list[Contestant], device: torch.device, deadline: float
) -> list[dict[str, Any]]:
    """Microseconds of each contestant in each mode, with the counts that a floor needs.

    None is prepared after the deadline.
    """
    if time.monotonic() > deadline:
        return [_row(case, c, "absent") | {"reason": "out of time"} for c in contestants]
    inputs = {name: value.to(device) for name, value in case.inputs().items()}
    if case.needs_cells:  # the peer takes them without lengths and first states only
        expected = Expected.of(case, case.inputs(), oracle=OnCpu())
    else:
        expected = Expected.of(case, inputs, oracle=OnDevice(Wavefront(), device))
    dy = case.output_gradient(expected.same_dtype["output"]).to(device)
    rows, tasks = [], {}
    for contestant in contestants:
        reason = contestant.refusal(case)
        if reason:
            rows.append(_row(case, contestant, "absent") | {"reason": reason})
            continue
        row = _row(case, contestant, "ok")
        try:
            given = dict(inputs)
            if "lengths" in given and isinstance(contestant, Layer):
                given["lengths"] = given["lengths"].cpu()  # where packing wants them
            left = max(1e-3, deadline - time.monotonic())
            with within(min(COMPILE_SECONDS, left)), device:
                runner = contestant.prepare(case, given, dy)
                with runner.around():
                    verify(expected, runner, contestant.name)
                modes = captured(runner, device)
        except TimeoutError as error:
            rows.append(row | {"status": "absent", "reason": str(error)})
            continue
        except Exception as error:  # a peer may fail in any way: the others are still measured
            rows.append(row | {"status": wrong(error)})
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


class OnCpu:
    """The package's functions on its CPU backend, which the tests hold against the reference."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with sk.use_backend("cpu"):
                return getattr(sk, name)(*args, **kwargs)

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

    "inference" keeps nothing for gradients, "training" is a forward and a backward pass. Each call
    enters what belongs around it: without a graph it is timed long after this.
    """

    def inference() -> Any:
        with runner.around(), torch.no_grad():
            return runner.forward()

    def training() -> Any:
        with runner.around():
            return runner.step()

    calls = {"inference": inference, "training": training}
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
