"""Each peer of the benchmarks computes what the reference computes, gradients too."""

from __future__ import annotations

import pytest
import torch

from bench.contestants import MODULES, PEERS, Contestant
from strnn_kernels.testing import CONFORMANCE, Case, Expected

PAIRS = [
    pytest.param(peer, case, id=f"{peer.name}-{case.name}".replace(" ", "-"))
    for peer in (*PEERS, MODULES)
    for case in CONFORMANCE
    if "compiled" not in peer.name and peer.refusal(case) is None
]


@pytest.mark.parametrize(("peer", "case"), PAIRS)
def test_peer_equals_reference(peer: Contestant, case: Case, wanted) -> None:
    # XLA compiles for seconds; what its loops do is the same in every case.
    wanted(peer.name != "jax scan" or CONFORMANCE.index(case) % 3 == 0)
    inputs = case.inputs()
    expected = Expected.of(case, inputs)
    dy = case.output_gradient(expected.same_dtype["output"])
    runner = peer.prepare(case, inputs, dy)
    with torch.inference_mode():
        output = runner.output(runner.forward())
    gradients = runner.gradients(runner.step())
    expected.check({"output": output, **gradients}, peer.name)
    if "training" in peer.modes:
        assert set(gradients) == set(expected.exact) - {"output"}


def test_every_peer_runs_somewhere() -> None:
    refused = {p.name for p in PEERS if all(p.refusal(c) for c in CONFORMANCE)}
    assert refused <= {"jax scan", "onnx runtime"}, "only a peer that is not installed may sit out"


def test_refusals_say_why() -> None:
    for peer in PEERS:
        for case in CONFORMANCE:
            reason = peer.refusal(case)
            assert reason is None or len(reason) > 5
