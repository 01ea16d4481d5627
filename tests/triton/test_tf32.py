"""Products of float32: exact unless the user allows TF32, and a backward keeps to its forward."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import testing
from strnn_kernels.testing import Case
from strnn_kernels.topology import Topology

launch = pytest.importorskip("strnn_kernels.backends.triton.launch", exc_type=ImportError)
pytestmark = pytest.mark.usefixtures("triton_backend", "operands_as_on_a_gpu")


@pytest.fixture
def operands_as_on_a_gpu(device: torch.device, monkeypatch) -> None:
    """The interpreter makes all products exactly; here those of TF32 are what a GPU makes.

    The compiled kernels hand it float32, of which it does not look at the last 13 bits.
    """
    if device.type == "cuda":
        return
    from triton._C.libtriton.ir import INPUT_PRECISION
    from triton.runtime.interpreter import InterpreterBuilder

    make_dot = InterpreterBuilder.create_dot

    def cut(operand):
        bits = operand.data.astype(np.float32).view(np.uint32)
        return dataclasses.replace(operand, data=(bits & np.uint32(0xFFFFE000)).view(np.float32))

    def create_dot(self, a, b, sums, precision, *rest):
        if precision == INPUT_PRECISION.TF32:
            a, b = cut(a), cut(b)
        return make_dot(self, a, b, sums, precision, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def graph() -> Topology:
    """One direction, visits that do not depend on each other."""
    return Topology.dag([[[], [], [0, 1], [1]]])


def chain() -> Topology:
    return Topology.chain(2, bidirectional=False)


#: W on chip with dW in the sweep and by its own kernel, W off chip; nothing but kernels of ours.
#: Linear, so that du and dg do not follow from what a forward left, but from the backward alone.
SWEEPS = (
    Case("graph", "sweep", graph, B=3, H=33, activation="identity"),
    Case("chain", "sweep", chain, B=2, H=70, activation="identity"),
    Case("wide", "sweep", chain, B=2, H=130, activation="identity"),
    Case("gated-graph", "gated_sweep", graph, B=3, H=33),
    Case("gated-chain", "gated_sweep", chain, B=2, H=70),
)
#: The product of the sweep with its input, and a projection that it does not make itself.
FUSED = Case("input", "spatial_rnn", graph, B=3, C=20, H=33, K=9, activation="identity")


def results(case: Case, device: torch.device, is_allowed: bool) -> dict[str, torch.Tensor]:
    """What the backend makes of the case, held against the reference."""
    inputs = case.inputs()
    there = {name: value.to(device) for name, value in inputs.items()}
    with testing.tf32(is_allowed):
        found = case.results(sk, there)
    testing.Expected.of(case, inputs, allow_tf32=is_allowed).check(found, "triton")
    return found


@pytest.mark.parametrize("case", [*SWEEPS, FUSED], ids=str)
def test_only_if_the_user_allows_it(case: Case, device: torch.device) -> None:
    exact, cut = results(case, device, False), results(case, device, True)
    for name, value in exact.items():
        assert not torch.equal(value, cut[name]), name


@pytest.mark.parametrize("is_allowed", [True, False])
@pytest.mark.parametrize("case", SWEEPS, ids=str)
def test_a_backward_keeps_to_its_forward(case: Case, is_allowed: bool, device) -> None:
    """Whatever the user sets between the two."""
    leaves = case.inputs(device=device, requires_grad=True)
    expected = results(case, device, is_allowed)
    with testing.tf32(is_allowed):
        y = case.run(sk, leaves)
    with testing.tf32(not is_allowed):
        slopes = torch.autograd.grad(y, leaves.values(), case.output_gradient(y))
    for name, slope in zip(leaves, slopes, strict=True):
        assert torch.equal(slope, expected["d" + name]), name


def test_a_constant_of_a_compiled_graph(device: torch.device) -> None:
    testing.assert_a_graph_keeps_to_tf32(SWEEPS[0], sk, device)


def test_a_sparse_projection_is_exact(device: torch.device) -> None:
    case = Case("project", "sparse_projection", graph, B=3, H=17, K=4)
    inputs = case.inputs(device=device)
    with testing.tf32():
        actual = case.results(sk, inputs)
    testing.Expected.of(case, case.inputs()).check(actual, "triton")


def test_three_products_where_they_are_asked_for(monkeypatch) -> None:
    assert launch.precision_of(torch.float32, True) == "tf32"
    monkeypatch.setenv("STRNN_TRITON_TF32", "tf32x3")
    assert launch.precision_of(torch.float32, True) == "tf32x3"
    assert launch.precision_of(torch.float32, False) == "ieee"
    assert launch.precision_of(torch.bfloat16, True) == "ieee"
    monkeypatch.setenv("STRNN_TRITON_TF32", "bf16")
    with pytest.raises(ValueError, match="STRNN_TRITON_TF32 must be tf32 or tf32x3, got 'bf16'"):
        launch.precision_of(torch.float32, True)
