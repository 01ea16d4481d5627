"""The CUDA backend as nvcc compiled it, over the shared table of cases.

Every run is checked for races, bounds and memory that nobody wrote, in a random schedule.
"""

from __future__ import annotations

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import notation, testing
from strnn_kernels.registration import topology_tables
from tests.ptx.backend import A100, H100, Cuda, running
from tests.ptx.cases import CELLS, GATED_ROWS, GATED_TENSOR, ROWS, SEED, SMALL, TENSOR

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
#: Few multiprocessors: tiles of several rows, CTAs that take several tiles in turn.
FEW = (90, 2, 227 * 1024, 228 * 1024)
ONE = (80, 1, 160 * 1024, 8 * 1024)
LEVEL = (80, 1, 64 * 1024, 64 * 1024)
LSTM = notation.CELLS.index("lstm")
#: So little shared memory that a CTA has fewer rows, then no projection, then all go by levels.
LIMITS = (48 * 1024, 24 * 1024, 20 * 1024)
#: A family, a dtype it takes, and the width of its kernels.
FAMILIES = (
    ("row", F32), ("tensor_core", BF16), ("cluster", BF16), ("level", F32),
)  # fmt: skip
MASKED_CELLS = [
    (testing.find("gru-line-mask"), "level", F32),
    (testing.find("lstm-corner-mask"), "level", BF16),
    (testing.find("gru-line-mask"), "row", F32),
    (testing.find("lstm-corner-mask"), "row", F32),
    (testing.find("gru-line-mask"), "tensor_core", F16),
    (testing.find("lstm-corner-mask"), "tensor_core", BF16),
]  # fmt: skip


def check(machine, case, dtype=None, *, gradients=True):
    inputs = case.inputs(dtype=dtype)
    expected = testing.Expected.of(case, inputs, gradients=gradients)
    with running(machine), torch.set_grad_enabled(gradients):
        expected.check(case.results(sk, inputs, gradients=gradients), "cuda")


def of_type(case, dtype):
    """In 16 bits rounding decides a ReLU's derivative at many states."""
    return case.smooth() if dtype.itemsize == 2 else case


@pytest.mark.parametrize("case", testing.CONFORMANCE, ids=str)
def test_matches_reference(case, cuda):
    check(Cuda(cuda), case)


@pytest.mark.parametrize("case", testing.CONFORMANCE, ids=str)
def test_matches_reference_in_16_bits(case, cuda):
    check(Cuda(cuda, A100, seed=2), case.smooth(), BF16)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [F64, F16, BF16, F32], ids=str)
@pytest.mark.parametrize("case", CELLS, ids=str)
def test_cells(case, dtype, gradients, cuda, wanted):
    """Tiles of several items and of units beyond the width, one after the other."""
    wanted(gradients == (dtype in (F64, F16)))
    check(Cuda(cuda, LEVEL, family="level", seed=15), case, dtype, gradients=gradients)


@pytest.mark.parametrize("device", [H100, FEW], ids=["h100", "few"])
@pytest.mark.parametrize("case", GATED_ROWS, ids=str)
def test_cells_by_rows(case, device, cuda, wanted):
    wanted(device is FEW)
    check(Cuda(cuda, device, family="row", seed=17), case, F32)


@pytest.mark.parametrize("device", [ONE, FEW], ids=["one", "few"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("case", GATED_TENSOR, ids=str)
def test_cells_on_tensor_cores(case, dtype, device, cuda, wanted):
    """Alone on a device of little shared memory, and where tiles are several and taken in turn."""
    wanted((dtype, device) in ((BF16, FEW), (F16, ONE)))
    check(Cuda(cuda, device, family="tensor_core", seed=16), case, dtype)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_seed(dtype, gradients, cuda):
    """The electrodes of the field, projected: training and inference."""
    check(Cuda(cuda), SEED, dtype, gradients=gradients)


@pytest.mark.parametrize("dtype", [BF16, F16, F64], ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_dtypes(case, dtype, cuda, wanted):
    wanted(dtype != F16)
    check(Cuda(cuda, seed=3), of_type(case, dtype), dtype)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows(case, gradients, cuda):
    check(Cuda(cuda, FEW, family="row", seed=4), case, F32, gradients=gradients)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("case", TENSOR, ids=str)
def test_tensor_core(case, dtype, cuda, wanted):
    wanted(dtype == BF16)
    check(Cuda(cuda, ONE, seed=4), case, dtype)


def test_float32_is_exact_where_tf32_is_allowed(cuda):
    """Products of TF32 are Triton's alone."""
    case = testing.find("diamond")
    with running(Cuda(cuda)):
        exact = case.results(sk, case.inputs())
        with testing.tf32():
            allowed = case.results(sk, case.inputs())
    assert all(torch.equal(exact[name], allowed[name]) for name in exact)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_little_shared_memory(case, limit, cuda, wanted):
    """Few multiprocessors: rows in turn."""
    wanted(case in SMALL[:: 1 if limit == LIMITS[-1] else 4])
    check(Cuda(cuda, (80, 2, limit, limit), seed=5), case)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("case", SMALL[:-1], ids=str)
def test_clusters(case, dtype, cuda, wanted):
    wanted(dtype == BF16)
    check(Cuda(cuda, FEW, family="cluster", seed=6), case, dtype)


@pytest.mark.parametrize("name", ["chain-causal", "chain-wide"])
@pytest.mark.parametrize("device", [FEW, H100], ids=["few", "h100"])
def test_several_ctas_of_a_cluster(name, device, cuda):
    """Slices of the hidden width, full and not."""
    check(Cuda(cuda, device, family="cluster", seed=7), testing.find(name), BF16)


@pytest.mark.parametrize("H, N", [(512, 3), (520, 2)])
def test_clusters_of_8_and_16(H, N, cuda):
    chain = testing.Case(
        f"chain-h{H}", "temporal_rnn", lambda: sk.Topology.chain(N), B=2, C=4, H=H,
        activation="tanh", has_lengths=True, has_h0=True,
    )  # fmt: skip
    check(Cuda(cuda, seed=8), chain, BF16)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("case", SMALL[:-1], ids=str)
def test_level_by_level(case, dtype, cuda, wanted):
    wanted(dtype == F32 or (dtype == BF16 and case in SMALL[::3]))
    check(Cuda(cuda, LEVEL, family="level", seed=9), case, dtype)


@pytest.mark.parametrize("name", ["chain-wide", "sweep-h272", "diamond"])
def test_several_tiles_of_a_level(name, cuda):
    check(Cuda(cuda, LEVEL, family="level", seed=10), testing.find(name))


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("case", (*SMALL, *TENSOR), ids=str)
def test_tensors_off_alignment(case, offset, cuda, wanted):
    """As slices start: one, two or four elements behind an aligned place."""
    wanted(case in (SMALL + TENSOR)[offset::6])
    check(Cuda(cuda, offset=offset, seed=11), case)
    check(Cuda(cuda, offset=offset, seed=11), case.smooth(), BF16)


@pytest.mark.parametrize("family", [None, "cluster", "level"])
def test_inference_keeps_only_the_projection(family, cuda):
    """Nobody asks for h, so the families that need it keep it in scratch."""
    case = testing.find("corner-3x4-h30")
    check(Cuda(cuda, family=family, seed=12), case, BF16, gradients=False)


@pytest.mark.parametrize(
    "case, family, dtype", [(c, *f) for c in SMALL[:2] for f in FAMILIES] + MASKED_CELLS, ids=str
)
def test_is_repeatable(case, family, dtype, cuda):
    """The same bits whatever the order in which lanes, warps and blocks run."""
    inputs, results = case.inputs(dtype=dtype), []
    for seed in (0, 13):
        with running(Cuda(cuda, family=family, seed=seed)):
            results.append(case.results(sk, inputs))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize(
    "case, family, dtype",
    [(testing.find("corner-mask"), *f) for f in FAMILIES] + MASKED_CELLS,
    ids=str,
)
def test_what_a_masked_node_holds_does_not_leak(case, family, dtype, cuda):
    """NaN at masked nodes reaches neither outputs nor gradients."""
    inputs = case.inputs(dtype=dtype)
    spoilt = inputs | {"x": torch.where(inputs["mask"][..., None], inputs["x"], torch.nan)}
    with running(Cuda(cuda, family=family)):
        clean, actual = (case.results(sk, given) for given in (inputs, spoilt))
    assert all(torch.equal(clean[name], actual[name]) for name in clean)


@pytest.mark.parametrize("family, dtype", FAMILIES)
def test_a_mask_is_bytes_against_zero(family, dtype, cuda):
    """Few multiprocessors: one CTA reads the masks of many rows."""
    case = testing.find("corner-mask")
    inputs = case.inputs(dtype=dtype)
    odd = inputs | {"mask": testing.with_odd_bytes(inputs["mask"])}
    with running(Cuda(cuda, FEW, family=family)):
        expected, found = (case.results(sk, given) for given in (inputs, odd))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "family, dtype, H",
    [
        *((*known, 19) for known in FAMILIES), ("tensor_core", BF16, 64), ("tensor_core", F16, 19),
    ],
)  # fmt: skip
def test_zeros_of_a_projection_read_nothing(family, dtype, H, cuda):
    """Whether or not the sweep sums the projection itself."""
    with running(Cuda(cuda, family=family, seed=14)):
        testing.assert_zeros_are_not_read(sk, dtype, H=H)


@pytest.mark.parametrize("forward, backward", [("cpu", "ptx"), ("ptx", "cpu")])
@pytest.mark.parametrize("family, dtype", FAMILIES)
@pytest.mark.parametrize("name", ["sweep-mask-h0", "sweep-diamond"])
def test_mixed_pairs(name, family, dtype, forward, backward, cuda):
    """Either backend's backward finishes the other's forward."""
    case = testing.find(name)
    t = case.inputs(dtype=dtype)
    u, w, inputs = t["u"], t["w"], {"h0": t["h0"], "mask": t.get("mask")}
    topology, cell = case.topology, notation.ACTIVATIONS.index(case.activation)
    tables = topology_tables(topology, u.device, "levels")
    with running(Cuda(cuda, family=family)):
        ops = {b: getattr(torch.ops, f"strnn_{b}") for b in (forward, backward)}
        h = ops[forward].sweep_fwd(*testing.sweep_arguments(u, w, tables, cell, **inputs))[0]
        du, _, _, dw, dh0, *_ = ops[backward].sweep_bwd(
            *testing.sweep_backward_arguments(
                u, h, w, tables, cell, dh=case.output_gradient(h), **inputs
            )
        )
    testing.Expected.of(case, t).check({"output": h, "du": du, "dw": dw, "dh0": dh0}, "mixed")


@pytest.mark.parametrize("forward, backward", [("cpu", "ptx"), ("ptx", "cpu")])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", ["gru-line-mask", "lstm-corner-mask", "gru-sum-no-bias"])
def test_mixed_pairs_of_cells(name, dtype, forward, backward, cuda):
    """What a gated cell saves is the same."""
    case = testing.find(name)
    t = case.inputs(dtype=dtype)
    inputs = {n: t.get(n) for n in ("w_ih", "bias", "mask", "projection")}
    tables = topology_tables(case.topology, t["x"].device, "levels")
    given = (t["x"], t["w_hh"], tables, case.code)
    with running(Cuda(cuda)):
        ops = {b: getattr(torch.ops, f"strnn_{b}") for b in (forward, backward)}
        h, s, *_, saved = ops[forward].sweep_fwd(
            *testing.sweep_arguments(*given, mean=case.mean, save=True, **inputs)
        )
        output, name = (s, "ds") if case.K else (h, "dh")
        inputs[name] = case.output_gradient(output)
        dx, dw_ih, dbias, dw_hh, _, _, dprojection = ops[backward].sweep_bwd(
            *testing.sweep_backward_arguments(
                t["x"], h, *given[1:], mean=case.mean, saved=saved, **inputs
            )
        )
    found = {
        "output": output, "dx": dx, "dw_ih": dw_ih, "dbias": dbias, "dw_hh": dw_hh,
        "dprojection": dprojection,
    }  # fmt: skip
    testing.Expected.of(case, t).check({n: v for n, v in found.items() if v.numel()}, "mixed")


def test_means_enter_in_the_middle(cuda):
    """h0 and c0 at a node of several predecessors are no part of the mean, in the raw op."""
    topology = sk.Topology.grid(2, 2)
    x, w_ih, w_hh, h0, c0 = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)) / 2
        for shape in ((2, 4, 3), (4, 20, 3), (4, 20, 5), (2, 4, 5), (2, 4, 5))
    )
    entry = torch.tensor([[3, 2, 1, 0], [0, 3, 4, -1]], dtype=torch.int32)
    tables = topology_tables(topology, x.device, "levels")
    given = {"w_ih": w_ih, "h0": h0, "c0": c0, "entry": entry, "mean": True}
    with running(Cuda(cuda)):
        found = {}
        for name in ("cpu", "ptx"):
            ops, cell = getattr(torch.ops, f"strnn_{name}"), LSTM
            h, *_, saved = ops.sweep_fwd(
                *testing.sweep_arguments(x, w_hh, tables, cell, save=True, **given)
            )
            slopes = ops.sweep_bwd(
                *testing.sweep_backward_arguments(
                    x, h, w_hh, tables, cell, dh=torch.ones_like(h), dc=h, saved=saved, **given
                )
            )
            found[name] = (h, *slopes)
    for ours, theirs in zip(found["ptx"], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["row", "tensor_core", "cluster"])
@pytest.mark.parametrize("name", ["lstm-carry-lengths", "elman-mean"])
def test_families_refuse_what_they_lack(name, family, cuda):
    case = testing.find(name)
    with (
        running(Cuda(cuda, family=family)),
        pytest.raises(RuntimeError, match=r"do not take .* (a gated cell|a mean)"),
    ):
        case.run(sk, case.inputs(dtype=F32 if family == "row" else BF16))


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_layers(name, cuda):
    """h_n and c_n are taken from h and c, lists of weights are stacked."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(3, 5, bidirectional=True, batch_first=True)
    ours = getattr(sk, name)(3, 5, bidirectional=True, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 3)
    with running(Cuda(cuda)):
        found = torch.utils._pytree.tree_leaves(ours(x))
        sum(t.square().sum() for t in found).backward()
    expected = torch.utils._pytree.tree_leaves(theirs(x))
    sum(t.square().sum() for t in expected).backward()
    torch.testing.assert_close(found, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_gradcheck(cuda):
    """First and second derivatives in float64, through the gated sweep's own derivative."""
    topology, make = sk.Topology.grid(2, 2), torch.Generator().manual_seed(0)
    u, w = (
        torch.randn(*shape, generator=make, dtype=F64, requires_grad=True)
        for shape in ((1, 4, 4, 2), (4, 2, 2))
    )

    def call(u, w):
        return sk.sweep(u, w, topology, activation="tanh")

    with running(Cuda(cuda)):
        assert torch.autograd.gradcheck(call, (u, w), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (u, w), fast_mode=True)


def test_empty_batch(cuda):
    topology = sk.Topology.grid(2, 3)
    x = torch.zeros(0, 6, 3, requires_grad=True)
    w_ih, w_hh, bias = (torch.ones(*s, requires_grad=True) for s in ((4, 5, 3), (4, 5, 5), (4, 5)))
    with running(Cuda(cuda)):
        h = sk.spatial_rnn(x, w_ih, w_hh, bias, topology)
        h.sum().backward()
    assert h.shape == (0, 6, 4, 5)
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in (w_ih, w_hh, bias))


def test_too_large_for_the_device(cuda):
    """The limit is named."""
    u, w = torch.zeros(1, 2, 2, 300), torch.zeros(2, 300, 300)
    with (
        running(Cuda(cuda, (80, 2, 1024, 1024))),
        pytest.raises(RuntimeError, match=r"needs .* bytes of shared memory, the device has 1024"),
    ):
        sk.sweep(u, w, sk.Topology.chain(2))
