"""Whether every backend computes what it should on this machine, in under two minutes.

Run as ``python -m strnn_kernels.check``: the conformance table (`strnn_kernels.testing`), forward
and backward, on each backend that can run here, each family of CUDA kernels forced by
STRNN_CUDA_FAMILY. Prints a table, what went wrong, and one line for a report; exits with 1 if
something is wrong. What cannot run here is said, with the reason.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

import strnn_kernels as sk
from strnn_kernels import info, testing

#: As csrc/cuda/planner.h names them; None: the planner's choice.
FAMILIES = (None, "row", "tensor_core", "cluster", "level")
#: Of the last two a third of the cases.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: What a family that is forced answers to a case it does not take.
NOT_TAKEN = "the kernels asked for do not take"
SECONDS = 110.0


@dataclass
class Row:
    """One backend, or one family of it, in one dtype."""

    backend: str
    family: str | None
    dtype: torch.dtype
    counts: Counter[str] = field(default_factory=Counter)  # of right, wrong, not taken, not reached
    reports: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Backend, family and dtype."""
        family = f" {self.family}" if self.family else ""
        return f"{self.backend}{family} {str(self.dtype).removeprefix('torch.')}"

    def run(
        self, case: testing.Case, expected: testing.Expected, inputs: dict[str, torch.Tensor]
    ) -> None:
        """Checks the results of one case."""
        start = time.monotonic()
        device = "cpu" if self.backend == "cpu" else "cuda"
        moved = {name: value.to(device) for name, value in inputs.items()}
        try:
            with forced(self.family), sk.use_backend(self.backend):
                found = case.results(sk, moved)
            expected.check({name: value.cpu() for name, value in found.items()}, self.name)
            outcome = "right"
        except Exception as reason:  # any: the others are to be checked too
            outcome = "not taken" if NOT_TAKEN in str(reason) else "wrong"
            if outcome == "wrong":
                text = str(reason).splitlines()[0] if str(reason) else ""
                self.reports.append(f"{self.name}, {case}: {type(reason).__name__}: {text}")
        self.counts[outcome] += 1
        self.seconds += time.monotonic() - start


@contextmanager
def forced(family: str | None) -> Iterator[None]:
    """Inside, STRNN_CUDA_FAMILY names the family."""
    before = os.environ.pop("STRNN_CUDA_FAMILY", None)
    if family:
        os.environ["STRNN_CUDA_FAMILY"] = family
    try:
        yield
    finally:
        os.environ.pop("STRNN_CUDA_FAMILY", None)
        if before is not None:
            os.environ["STRNN_CUDA_FAMILY"] = before


def rows(available: list[str]) -> list[Row]:
    """What is checked on these backends."""
    return [
        Row(backend, family, dtype)
        for dtype in DTYPES
        for backend in available
        for family in (FAMILIES if backend == "cuda" else (None,))
    ]


def check(
    table: list[Row],
    cases: Sequence[testing.Case] = testing.CONFORMANCE,
    seconds: float = SECONDS,
) -> None:
    """Fills the rows; cases that there is no time for count as not reached."""
    end = time.monotonic() + seconds
    for dtype in DTYPES:
        of_dtype = [row for row in table if row.dtype == dtype]
        for case in cases[:: 1 if dtype in DTYPES[:2] else 3] if of_dtype else ():
            if time.monotonic() > end:
                for row in of_dtype:
                    row.counts["not reached"] += 1
                continue
            # In 16 bits rounding decides a ReLU's derivative at many states.
            case = case.smooth() if dtype.itemsize == 2 else case
            inputs = case.inputs(dtype=dtype)
            expected = testing.Expected.of(case, inputs)
            for row in of_dtype:
                row.run(case, expected, inputs)


def main(seconds: float = SECONDS) -> int:
    """Checks, prints, and returns 1 if anything is wrong."""
    reasons = {name: why for name, why in sk.backends().items() if name != "reference"}
    table = rows([name for name, why in reasons.items() if why is None])
    check(table, seconds=seconds)
    outcomes = ("right", "wrong", "not taken", "not reached")
    print(f"{'':28}" + "".join(f"{outcome:>12}" for outcome in outcomes) + f"{'seconds':>9}")
    for row in table:
        counts = "".join(f"{row.counts[outcome]:12}" for outcome in outcomes)
        print(f"{row.name:28}{counts}{row.seconds:9.1f}")
    for name, why in reasons.items():
        if why is not None:
            print(f"{name:28}cannot run here: {why}")
    reports = [report for row in table for report in row.reports]
    print(*reports, sep="\n")
    sections = info.info()
    versions = [f"{name} {sections['versions'][name]}" for name in ("strnn-kernels", "triton")]
    total: Counter[str] = sum((row.counts for row in table), Counter())
    found = ", ".join(f"{total[outcome]} {outcome}" for outcome in outcomes)
    machine = f"{platform.machine()}, gpu {sections['machine']['gpu']}"
    print(f"{', '.join(versions)}, torch {torch.__version__}, {machine}: {found}")
    return int(bool(reports) or not table)


if __name__ == "__main__":
    sys.exit(main())
