"""Cases along one axis each: how cost grows with B, N, T, H and the projection's density."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from strnn_kernels.testing import BENCHMARKS, Case
from strnn_kernels.topology import Topology

_BY_NAME = {case.name: case for case in BENCHMARKS}


def _chain(length: int) -> partial[Topology]:
    return partial(Topology.chain, length)


def _square(side: int) -> partial[Topology]:
    return partial(Topology.grid, side, side)


#: tanh where one sequence has so many states that some lie on the kink of a ReLU, see
#: `Case.inputs`. Axis -> cases; the value on the axis is what stands behind the "=" of the name.
AXES: dict[str, tuple[Case, ...]] = {
    "B": tuple(
        replace(_BY_NAME["S1"], name=f"B={B}", B=B, slices=1) for B in (1, 4, 16, 64, 256, 1024)
    ),
    "T": tuple(
        Case(f"T={T}", "temporal_rnn", _chain(T), B=4, C=32, H=32, activation="tanh")
        for T in (16, 64, 256, 1024, 4096, 16384)
    ),
    "H": tuple(
        Case(f"H={H}", "temporal_rnn", _chain(64), B=16, C=H, H=H, activation="tanh")
        for H in (16, 32, 64, 128, 256, 512, 1024)
    ),
    "side": tuple(
        Case(f"side={side}", "spatial_rnn", _square(side), B=1, C=16, H=32, activation="tanh")
        for side in (4, 8, 16, 32, 64, 128, 256)
    ),
    "density": tuple(
        replace(_BY_NAME["S1"], name=f"density={density}", K=40, density=density)
        for density in (0.01, 0.05, 0.2, 0.5, 1.0)
    ),
}
