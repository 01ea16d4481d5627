"""The same cases and contestants under pytest-benchmark: `pytest --benchmark-only bench/`."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from bench import measure
from bench.contestants import OPTIONAL_PEERS, PEERS, Backend, Contestant
from bench.peers.wavefront import Wavefront
from strnn_kernels.testing import BENCHMARKS, Case, Expected

CONTESTANTS = [Backend("cpu"), *(peer for peer in PEERS if peer.name not in OPTIONAL_PEERS)]


@lru_cache(maxsize=1)
def _expected(case: Case) -> tuple[dict[str, torch.Tensor], Expected]:
    inputs = case.inputs(oracle=Wavefront())
    return inputs, measure.expect(case, inputs, gradients=True)


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda c: c.name.replace(" ", "-"))
@pytest.mark.parametrize("mode", measure.MODES)
@pytest.mark.parametrize("case", BENCHMARKS, ids=str)
def test_bench(benchmark, case: Case, mode: str, contestant: Contestant) -> None:
    if mode not in contestant.modes:
        pytest.skip(f"{contestant.name} is for {contestant.modes[0]} only")
    torch.set_num_threads(1)
    inputs, expected = _expected(case)
    dy = case.output_gradient(expected.same_dtype["output"])
    runner, status = measure.ready(contestant, case, inputs, dy, expected, (mode,))
    if runner is None:
        assert status.startswith("absent"), status
        pytest.skip(status)
    benchmark.group = f"{case.name} {mode}"
    with measure.around(runner, mode):
        benchmark(runner.forward if mode == "inference" else runner.step)
