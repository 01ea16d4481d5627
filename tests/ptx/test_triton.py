"""The Triton backend as Triton compiled it for sm_80 and sm_90, over the shared table of cases.

Every run is checked for races and bounds, in a random schedule and order of lanes.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import testing
from strnn_kernels.backends.triton import launch
from strnn_kernels.topology import Topology
from tests.ptx.backend import Triton, running
from tests.ptx.cases import GATED, GATED_IN_16_BITS, SEED, SMALL, TENSOR

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def check(machine, case, dtype=None, *, precision="ieee", gradients=True):
    inputs = case.inputs(dtype=dtype)
    allow_tf32 = precision != "ieee"
    expected = testing.Expected.of(case, inputs, allow_tf32=allow_tf32, gradients=gradients)
    user = testing.tf32() if allow_tf32 else nullcontext()
    with user, running(machine), torch.set_grad_enabled(gradients):
        expected.check(case.results(sk, inputs, gradients=gradients), "triton")


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("case", testing.CONFORMANCE, ids=str)
def test_matches_reference(case, architecture, wanted):
    is_in_ci = not case.needs_cells or case.name in GATED
    wanted(is_in_ci and (testing.CONFORMANCE.index(case) % 2 == 0) == (architecture == 90))
    check(Triton(architecture), case)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("case", testing.CONFORMANCE, ids=str)
def test_matches_reference_in_16_bits(case, dtype, architecture, wanted):
    if case.needs_cells:
        is_in_ci = case.name in GATED_IN_16_BITS and architecture == 90
    else:
        place = testing.CONFORMANCE.index(case)
        is_in_ci = place % 4 == (0 if architecture == 80 else 2)
    wanted(dtype == BF16 and is_in_ci)
    check(Triton(architecture, seed=2), case.smooth(), dtype)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_seed(dtype, gradients, architecture, wanted):
    """The electrodes of the field, projected: training and inference."""
    wanted((architecture == 80) == (dtype == BF16))
    check(Triton(architecture), SEED, dtype, gradients=gradients)


@pytest.mark.parametrize("gradients", [True, False])
def test_what_nobody_reads_is_not_stored(gradients, monkeypatch):
    """It may share a slot with what is read: which of two stores wins is undefined."""
    shape = launch.Shape(False, False, 8, 4, 16, 16, 4)
    monkeypatch.setattr(launch, "sweep_shape", lambda *_, **__: shape)
    lists = [[[], [0], [0], [1], [3]], [[1], [], [1], [0], [3]]]
    case = testing.Case(
        "unread", "spatial_rnn", lambda: testing.with_shared_slots(Topology.dag(lists)), B=20, C=3,
        H=5, K=2, activation="tanh",
    )  # fmt: skip
    check(Triton(80), case, F32, gradients=gradients)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_float64(case, architecture, wanted):
    wanted(architecture == 90 and case in SMALL[::3])
    check(Triton(architecture, seed=3), case, F64)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("case", TENSOR, ids=str)
def test_tf32(case, precision, architecture, wanted, monkeypatch):
    wanted(precision == "tf32" and case in TENSOR[2 * (architecture == 90) :: 4])
    monkeypatch.setenv("STRNN_TRITON_TF32", precision)
    check(Triton(architecture, seed=4), case, precision=precision)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("case", (*SMALL, *TENSOR), ids=str)
def test_few_multiprocessors(case, dtype, architecture, wanted):
    """Programs loop over tiles, and tiles are larger."""
    wanted(architecture == 80 and case in (SMALL + TENSOR)[4 * (dtype == F32) + 1 :: 8])
    check(Triton(architecture, multiprocessors=1, seed=5), case.smooth(), dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("H", [30, 64])
def test_rows_sorted_by_length(H, dtype, wanted):
    wanted(H == 30)
    chain = testing.Case(
        f"long-h{H}", "temporal_rnn", lambda: Topology.chain(66), B=17, C=5, H=H,
        activation="tanh", has_lengths=True, has_h0=True,
    )  # fmt: skip
    check(Triton(90, multiprocessors=1 if dtype == F32 else 132, seed=6), chain, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("H", [257, 520])
def test_wide_states(H, dtype, wanted):
    wanted((H == 257) == (dtype == F32))
    graph = testing.Case(
        f"grid-h{H}", "spatial_rnn", lambda: Topology.grid(2, 3), B=3, C=5, H=H, K=2,
        activation="tanh", has_mask=True,
    )  # fmt: skip
    check(Triton(80, seed=7), graph, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_elements_numbered_in_64_bits(dtype, monkeypatch, wanted):
    wanted(dtype == F32)
    monkeypatch.setattr(launch, "index_type", lambda numel: launch.tl.int64)
    for case in (testing.find("corner-mask"), testing.find("chain-wide")):
        check(Triton(90, seed=8), case.smooth(), dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_zeros_of_a_projection_read_nothing(dtype, wanted):
    wanted(dtype == BF16)
    with running(Triton(90, seed=10)):
        testing.assert_zeros_are_not_read(sk, dtype)


def test_is_repeatable():
    """The same bits whatever the order in which lanes, warps and programs run."""
    case, results = testing.find("corner-mask"), []
    for seed in (0, 9):
        with running(Triton(80, seed=seed)):
            results.append(case.results(sk, case.inputs()))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
