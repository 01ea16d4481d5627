"""Fair timing: everybody ready and checked first, then everybody in turn, round after round.

All contestants of a case (but an older build) run in the same process, on the same inputs, in
alternating order, so that a noisy minute hits all of them; medians and quartiles are reported. A
contestant that is slow gets fewer samples, spread over the whole run. A contestant whose numbers
are wrong is not timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from bench.contestants import MODES, Contestant, Runner
from bench.peers.wavefront import Wavefront
from bench.roofline import Peaks, work
from strnn_kernels import reference
from strnn_kernels.testing import Case, Expected

#: Shorter calls are repeated until a sample is this long: the clock and the loop around it must not
#: count, and the first call of a sample finds the caches full of another contestant's data.
SAMPLE_SECONDS = 5e-3
MIN_SAMPLES, MAX_SAMPLES = 3, 60
#: Above these the reference would take minutes: autograd of single cells costs B*N*D*H numbers per
#: cell, and each cell is a few calls of torch.
MAX_REFERENCE_COST = 2.5e9
MAX_REFERENCE_CELLS = 70_000
#: A peer must compute the same thing; how carefully it adds up is its own affair, and not ours.
PEER_SLACK = 10.0
CANNOT = (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass
class Task:
    """One thing to time."""

    contestant: Contestant
    mode: str
    runner: Runner
    seconds: list[float] = field(default_factory=list)
    calls: int = 1
    num_samples: int = MIN_SAMPLES

    def sample(self) -> None:
        """Appends the mean time of `calls` calls."""
        self.seconds.append(self.time(self.calls))

    def time(self, calls: int) -> float:
        """Seconds per call; contexts are entered outside the clock."""
        if self.runner.seconds is not None:
            return self.runner.seconds(self.mode, calls)
        call = self.runner.forward if self.mode == "inference" else self.runner.step
        with around(self.runner, self.mode):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) / calls

    def calibrate(self, budget: float) -> None:
        """Warms up, then decides how many calls make a sample and how many samples to take."""
        self.time(1)
        one = self.time(1)
        self.calls = max(1, min(1000, round(SAMPLE_SECONDS / max(one, 1e-7))))
        fits = int(budget / max(one * self.calls, 1e-7))
        self.num_samples = max(MIN_SAMPLES, min(MAX_SAMPLES, fits))


@contextlib.contextmanager
def around(runner: Runner, mode: str) -> Iterator[None]:
    """The runner's own context, and inference mode where no gradient is wanted."""
    with runner.around(), torch.inference_mode(mode == "inference"):
        yield


def measure_case(
    case: Case,
    contestants: list[Contestant],
    *,
    modes: tuple[str, ...] = MODES,
    threads: int,
    budget: float,
    peaks: Peaks,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows of one case at one number of threads, one per contestant and mode."""
    torch.set_num_threads(threads)
    note(f"{case.name}: reference")
    inputs = case.inputs(oracle=Wavefront())
    expected = expect(case, inputs, gradients="training" in modes)
    dy = case.output_gradient(expected.same_dtype["output"])
    rows: list[dict[str, Any]] = []
    tasks: list[Task] = []
    for contestant in contestants:
        note(f"{case.name}: check {contestant.name}")
        wanted = tuple(mode for mode in modes if mode in contestant.modes)
        runner, status = ready(contestant, case, inputs, dy, expected, wanted)
        for mode in wanted:
            if runner is not None:
                tasks.append(Task(contestant, mode, runner))
            else:
                rows.append({**_identity(case, contestant, mode, threads), "status": status})
    del expected
    alternate(tasks, budget, note, case.name)
    for task in tasks:
        needed = work(case, inputs, task.mode)
        floor, kind = needed.floor(peaks, threads)
        q1, mid, q3 = quantiles(task.seconds, n=4)
        rows.append(
            {
                **_identity(case, task.contestant, task.mode, threads),
                "status": "ok",
                "median_ms": mid * 1e3,
                "q1_ms": q1 * 1e3,
                "q3_ms": q3 * 1e3,
                "best_ms": min(task.seconds) * 1e3,
                "samples": len(task.seconds),
                "gflops": needed.flops / mid / 1e9,
                "gbs": needed.num_bytes / mid / 1e9,
                "share_of_fma_peak": needed.flops / mid / 1e9 / (peaks.fma_gflops * threads),
                "floor_ms": floor * 1e3,
                "floor_kind": kind,
                "distance": mid / floor,
                "peak_mb": peak_megabytes(task),
                "held_mb": needed.held_bytes / 2**20,
            }
        )
    return rows


def expect(case: Case, inputs: Mapping[str, Tensor], *, gradients: bool) -> Expected:
    """The reference's results; gradients and states of large cases from the wavefront in float64.

    `tests/test_peers.py` holds the wavefront against the reference on every topology.
    """
    cost = case.B * case.N * case.D * case.H * float(case.N * case.D)
    has_few_cells = case.N * case.D <= MAX_REFERENCE_CELLS
    if has_few_cells and (not gradients or cost <= MAX_REFERENCE_COST):
        return Expected.of(case, inputs, gradients=gradients)
    slopes = Expected.of(case, inputs, gradients=gradients, oracle=Wavefront())
    if not has_few_cells:
        return slopes
    states = Expected.of(case, inputs, gradients=False, oracle=reference)
    return Expected(case, slopes.exact | states.exact, slopes.same_dtype | states.same_dtype)


def ready(
    contestant: Contestant,
    case: Case,
    inputs: Mapping[str, Tensor],
    dy: Tensor,
    expected: Expected,
    modes: tuple[str, ...],
) -> tuple[Runner | None, str]:
    """A checked runner, or None and the reason."""
    reason = contestant.refusal(case)
    if reason is not None:
        return None, f"absent: {reason}"
    slack = PEER_SLACK if contestant.is_peer else 1.0
    try:
        runner = contestant.prepare(case, inputs, dy)
        with around(runner, "inference"):
            output = {"output": runner.output(runner.forward())}
        expected.check(output, contestant.name, slack=slack)
        if "training" in modes:
            with around(runner, "training"):
                gradients = runner.gradients(runner.step())
            expected.check(gradients, contestant.name, slack=slack)
    except CANNOT as error:
        kind = "wrong" if isinstance(error, AssertionError) else "failed"
        return None, f"{kind}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return runner, "ok"


def alternate(tasks: list[Task], budget: float, note: Callable[[str], None], name: str) -> None:
    """Runs all tasks in turn; a task with few samples sits out most rounds."""
    if not tasks:
        return
    for task in tasks:
        note(f"{name}: warm up {task.contestant.name}")
        task.calibrate(budget / len(tasks))
    rounds = max(task.num_samples for task in tasks)
    order = random.Random(0)
    for r in range(rounds):
        note(f"{name}: round {r + 1}/{rounds}")
        for task in order.sample(tasks, len(tasks)):
            if (r + 1) * task.num_samples // rounds > r * task.num_samples // rounds:
                task.sample()


def peak_megabytes(task: Task) -> float | None:
    """Highest growth of the resident set during one call, outputs included; Linux only."""
    if task.runner.seconds is not None:
        return None
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(field_name: str) -> int:
        return next(
            int(s.split()[1]) for s in status.read_text().splitlines() if s.startswith(field_name)
        )

    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        growth = 0
        for _ in range(
            3
        ):  # memory that was free but not yet returned hides some of it, not each time
            before = kilobytes("VmRSS")
            reset.write_text("5")
            task.time(1)
            growth = max(growth, kilobytes("VmHWM") - before)
            libc.malloc_trim(0)
        return growth / 1024
    except (OSError, AttributeError, StopIteration):
        return None


def _identity(case: Case, contestant: Contestant, mode: str, threads: int) -> dict[str, Any]:
    return {
        "case": case.name,
        "op": case.op,
        "sizes": {letter: getattr(case, letter) for letter in "BNDCHK"},
        "contestant": contestant.name,
        "is_peer": contestant.is_peer,
        "mode": mode,
        "threads": threads,
        "dtype": str(case.dtype).removeprefix("torch."),
    }
