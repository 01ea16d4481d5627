"""Writes the conformance table as a file that driver.cpp reads: python cases.py FILE.

Inputs in every dtype, and what the float64 reference makes of them with the bound on each error.
The driver says how the file is built; names are those of the fields in csrc/common.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from strnn_kernels import Topology, reference
from strnn_kernels.notation import CELLS, saved
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
    # A relu at the end of products: of a sum of slots, of the chunk, of the slot that it stores to.
    Case("large-cap-relu", "spatial_rnn", lambda: Topology.montage("seed-62"), B=29, C=5, H=70,
         K=3),
    Case("large-chain-relu", "temporal_rnn", lambda: Topology.chain(45), B=33, C=70, H=90,
         has_h0=True),
    Case("wide-chain-relu", "temporal_rnn", lambda: Topology.chain(9), B=18, C=3, H=290),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ModuleCase(Case):
    """A layer over time as a module calls it: with two biases, and with the last states.

    Its output joins all that the op can give, flattened.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What the output joins, by the names of the op's fields."""
        states, last = (self.B, self.N, self.D, self.H), (self.D, self.B, self.H)
        carried = {"c": states, "c_n": last} if self.cell == "lstm" else {}
        return {"h": states, "h_n": last} | carried

    def run(self, module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output, of a module with the functions of the reference."""
        states = self.bind(module, inputs)()
        end = inputs.get("lengths", torch.full((self.B,), self.N)) - 1

        def last(v: torch.Tensor) -> torch.Tensor:
            return torch.stack([v[torch.arange(self.B), end, 0], *v[:, 0, 1:].unbind(1)])

        of_each = states.unbind(0) if self.returns_carry else [states]
        return torch.cat([part.flatten() for v in of_each for part in (v, last(v))])


MODULES = tuple(
    ModuleCase(f"module-{cell}-{name}", "temporal_rnn", partial(Topology.chain, 7, **chain),
               activation="tanh", cell=cell, returns_carry=cell == "lstm",
               has_c0=cell == "lstm" and options.get("has_h0", False), **options)
    for cell in ("elman", "gru", "lstm")
    for name, chain, options in (
        ("states", {}, {"B": 5, "C": 6, "H": 33, "has_h0": True}),
        ("lengths", {}, {"B": 9, "C": 3, "H": 17, "has_lengths": True}),
        ("causal", {"bidirectional": False}, {"B": 1, "C": 65, "H": 64, "has_bias": False}),
    )
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

    def start(self, case: Case, dtype: torch.dtype, cell: int, mean: bool = False) -> None:
        sizes = (case.B, case.N, case.D, case.C, case.H, case.K, cell, int(mean))
        programs = [t.program("levels") for t in (case.topology, case.topology.reversed())]
        counts = [n for p in programs for n in (p.num_groups, p.num_slots)]
        self.line("case", case.name, str(dtype).removeprefix("torch."), *sizes, *counts)
        for name, program in zip(("program", "reversed_program"), programs, strict=True):
            self.given(name, program.table("cpu"))


def two_biases(bias: torch.Tensor, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """b_ih and b_hh whose sum is a bias in one piece: a row is in one of them."""
    if CELLS[cell] == "gru":
        both, of_input, of_state = bias.tensor_split(
            [bias.shape[1] // 2, bias.shape[1] // 4 * 3], 1
        )
    else:
        both, of_input, of_state = bias, bias[:, :0], bias[:, :0]
    is_even = torch.arange(both.shape[1]) % 2 == 0
    return (
        torch.cat([torch.where(is_even, both, 0), of_input], 1),
        torch.cat([torch.where(is_even, 0, both), of_state], 1),
    )


def write(to: Writer, case: Case, dtype: torch.dtype) -> None:
    """One case: its inputs, its results, and the calls that the package would make."""
    inputs = case.inputs(dtype=dtype)
    expected = Expected.of(case, inputs, oracle=reference)
    exact, same = expected.exact, expected.same_dtype
    is_gated, is_projection = case.op == "gated_sweep", case.op == "sparse_projection"
    cell = CELLS.index("identity") if is_gated else case.code
    to.start(case, dtype, cell, case.mean and case.op == "spatial_rnn")
    names = {name: name if is_projection else FIELDS.get(name, name) for name in inputs}
    for name, value in inputs.items():
        if name == "bias" and isinstance(case, ModuleCase):
            for part, bias in zip(("bias", "bias_hh"), two_biases(value, cell), strict=True):
                to.given(part, bias)
        elif name != "lengths":
            to.given(names[name], value)
    if case.has_lengths:
        lengths = inputs["lengths"]
        to.given("mask", case.live(inputs))
        starts = torch.stack([torch.zeros_like(lengths), lengths - 1], 1)[:, : case.D]
        to.given("entry", starts.int())

    def want(name: str, exact: torch.Tensor, same: torch.Tensor, gradient: bool) -> None:
        to.wanted(name, exact, error_bound(same, exact, gradient=gradient))

    if isinstance(case, ModuleCase):
        shapes = case.shapes()
    elif case.returns_carry:
        shapes = dict.fromkeys(("h", "c"), exact["output"].shape[1:])
    else:
        shapes = {"s" if case.K else "h": exact["output"].shape}
    sizes = [math.prod(shape) for shape in shapes.values()]
    joined = (exact["output"], same["output"], case.output_gradient(same["output"]))
    for name, *parts in zip(shapes, *(v.flatten().split(sizes) for v in joined), strict=True):
        want(name, *parts[:2], gradient=False)
        to.given("d" + name, parts[2])
    slopes = []
    for name in inputs:
        if name not in NOT_DIFFERENTIABLE:
            slopes.append("d" + names[name])
            want(slopes[-1], exact["d" + name], same["d" + name], gradient=True)
    if is_projection:
        to.line("call sparse_projection s")
        to.line("call sparse_projection_backward", *slopes)
        return
    to.line("call sweep", *shapes)  # inference, then with what the backward wants
    kept = [] if "h" in shapes else ["h"]
    kept += ["saved"] * (saved(cell) > 0) + ["pre"] * is_gated
    states = case.B * case.N * case.D * case.H
    for name in kept:
        to.made(name, states * (saved(cell) if name == "saved" else 1))
    to.line("call training_sweep", *shapes, *kept)
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
    # Products of pairs of bfloat16 take subnormal numbers for zero.
    bound = torch.finfo(dtype).smallest_normal if dtype == torch.bfloat16 else 0.0
    to.wanted("h", (u.float() + h0.float()).to(dtype), bound)
    to.line("call sweep h")


def write_infinite(to: Writer, dtype: torch.dtype) -> None:
    """Infinite inputs of negative weight: a relu makes zeros of them, whatever stands beside."""
    chain = Topology.chain(3, bidirectional=False)
    to.start(Case("infinite", "sweep", lambda: chain, B=2, C=1, H=31), dtype, CELLS.index("relu"))
    to.given("x", torch.full((2, 3, 1), torch.inf, dtype=dtype))
    to.given("w_ih", torch.full((1, 31, 1), -1.0, dtype=dtype))
    to.given("w_hh", torch.full((1, 31, 31), 0.5, dtype=dtype))
    to.wanted("h", torch.zeros(2, 3, 1, 31, dtype=dtype), 0.0)
    to.line("call sweep h")
    to.line("call training_sweep h")


def main(path: str) -> None:
    """Writes all cases in all dtypes."""
    torch.set_num_threads(1)
    to = Writer(Path(path))
    for cases, dtypes in (
        (CONFORMANCE + MODULES, DTYPES),
        (LARGE, (torch.float32, torch.bfloat16)),
    ):
        for case, dtype in itertools.product(cases, dtypes):
            write(to, case, dtype)
    for dtype in (torch.bfloat16, torch.float16):
        write_conversions(to, dtype)
    for dtype in DTYPES:
        write_infinite(to, dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
