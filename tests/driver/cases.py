"""Writes the conformance table as a file that driver.cpp reads: python cases.py FILE.

Inputs in every dtype, and what the float64 reference makes of them with the bound on each error.
The driver says how the file is built; names are those of the fields in csrc/common.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from strnn_kernels import Topology, reference
from strnn_kernels.notation import CELLS
from strnn_kernels.testing import CONFORMANCE, NOT_DIFFERENTIABLE, Case, Expected, error_bound

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Fields of an op by the names of the function's arguments, where they differ.
FIELDS = {"u": "x", "g": "x", "w": "w_hh"}
#: What several workers share: a mask, a sum over directions, sequences that end.
LARGE = (
    Case("large-cap", "spatial_rnn", lambda: Topology.montage("seed-62"), B=48, C=5, H=30, K=10,
         activation="tanh", has_mask=True),
    Case("large-chain", "temporal_rnn", lambda: Topology.chain(45), B=32, C=30, H=64,
         activation="tanh", has_lengths=True),
)  # fmt: skip


class Writer:
    """The file, and the shorthand of its lines."""

    def __init__(self, path: Path):
        self._file = path.open("wb")

    def line(self, *words, data: bytes = b"") -> None:
        self._file.write(" ".join(map(str, words)).encode() + b"\n" + data)

    def given(self, name: str, value: torch.Tensor) -> None:
        data = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        self.line("in", name, len(data), data=data)

    def made(self, name: str, numel: int) -> None:
        """An output that is only read by a later call."""
        self.line("out", name, numel, "inf", 0)

    def wanted(self, name: str, exact: torch.Tensor, bound: float) -> None:
        data = exact.double().contiguous().numpy().tobytes()
        self.line("out", name, exact.numel(), repr(bound), len(data), data=data)

    def start(self, case: Case, dtype: torch.dtype, cell: int) -> None:
        sizes = (case.B, case.N, case.D, case.C, case.H, case.K, cell, 0)
        programs = [t.program("levels") for t in (case.topology, case.topology.reversed())]
        counts = [n for p in programs for n in (p.num_groups, p.num_slots)]
        self.line("case", case.name, str(dtype).removeprefix("torch."), *sizes, *counts)
        for name, program in zip(("program", "reversed_program"), programs, strict=True):
            self.given(name, program.table("cpu"))


def write(to: Writer, case: Case, dtype: torch.dtype) -> None:
    """One case: its inputs, its results, and the calls that the package would make."""
    inputs = case.inputs(dtype=dtype)
    expected = Expected.of(case, inputs, oracle=reference)
    exact, same = expected.exact, expected.same_dtype
    is_gated, is_projection = case.op == "gated_sweep", case.op == "sparse_projection"
    to.start(case, dtype, 0 if is_gated else CELLS.index(case.activation))
    names = {name: name if is_projection else FIELDS.get(name, name) for name in inputs}
    for name, value in inputs.items():
        if name != "lengths":
            to.given(names[name], value)
    if case.has_lengths:
        lengths = inputs["lengths"]
        to.given("mask", case.live(inputs))
        to.given("entry", torch.stack([torch.zeros_like(lengths), lengths - 1], 1).int())
    output = "s" if case.K else "h"
    to.given("d" + output, case.output_gradient(same["output"]))
    leaves = [name for name in inputs if name not in NOT_DIFFERENTIABLE]
    for name, result in [("output", output)] + [("d" + n, "d" + names[n]) for n in leaves]:
        gradient = name != "output"
        to.wanted(result, exact[name], error_bound(same[name], exact[name], gradient=gradient))
    slopes = ["d" + names[name] for name in leaves]
    if is_projection:
        to.line("call sparse_projection s")
        to.line("call sparse_projection_backward", *slopes)
        return
    if case.K:  # inference, then with the states that the backward wants
        to.line("call sweep s")
        to.made("h", case.B * case.N * case.D * case.H)
    to.line("call sweep h", *["s"] * bool(case.K))
    if is_gated:
        to.made("pre", exact["output"].numel())
        to.line("call sweep pre")
    to.line("call sweep_backward", *slopes)


def write_conversions(to: Writer, dtype: torch.dtype) -> None:
    """Every number of 16 bits, loaded and stored; and sums of two, rounded once, as torch does.

    The sum is u + 1 * h0 of a chain of one step, with ties and overflow among them.
    """
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    make = torch.Generator().manual_seed(0)
    ulp = torch.finfo(dtype).eps
    ties = 1 + ulp * torch.arange(64)
    u, h0 = (
        torch.randn(8192, generator=make) * 10 ** (4 * torch.rand(8192, generator=make) - 2)
        for _ in range(2)
    )
    large = torch.full((4,), torch.finfo(dtype).max)
    small = torch.arange(64) * torch.finfo(dtype).smallest_normal / 7
    halves = torch.full((64,), ulp / 2)
    u = torch.cat([bits.float(), u, ties, -ties, large, small]).to(dtype)
    h0 = torch.cat([torch.zeros(2**16), h0, halves, -halves, large, -small.flip(0)]).to(dtype)
    chain = Topology.chain(1, bidirectional=False)
    to.start(Case("conversions", "sweep", lambda: chain, B=len(u), H=1), dtype, 0)
    for name, value in {"x": u, "h0": h0, "w_hh": torch.ones(1, dtype=dtype)}.items():
        to.given(name, value)
    to.wanted("h", (u.float() + h0.float()).to(dtype), 0.0)
    to.line("call sweep h")


def main(path: str) -> None:
    """Writes all cases in all dtypes."""
    torch.set_num_threads(1)
    to = Writer(Path(path))
    for cases, dtypes in ((CONFORMANCE, DTYPES), (LARGE, (torch.float32, torch.bfloat16))):
        for case, dtype in itertools.product(cases, dtypes):
            write(to, case, dtype)
    for dtype in (torch.bfloat16, torch.float16):
        write_conversions(to, dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
