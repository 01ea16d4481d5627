"""The CUDA kernels, executed on the CPU, against the reference over the shared table of cases."""

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import testing
from strnn_kernels.notation import ACTIVATIONS

CASES = testing.ELMAN_CASES
#: Cases that between them reach every branch of the kernels; for what is slow.
SMALL = tuple(
    testing.find(name)
    for name in (
        "corner-mask", "corner-sparse", "corner-4x3-states", "cross-4x4", "diamond",
        "chain-tanh-h0", "chain-lengths-h0", "chain-lengths-k", "sweep-mask-h0",
        "gated-diamond", "project",
    )
)  # fmt: skip
#: Few multiprocessors with much memory: clusters take tiles of 16 rows, not of 8.
FEW_LARGE = (90, 2, 227 * 1024, 228 * 1024)
#: Shared memory of devices so small that the general family must leave things out of it.
LIMITS = {"slots-global": 24 * 1024, "all-global": 11 * 1024, "tiny": 3 * 1024}
HALVES = (torch.bfloat16, torch.float16)


FAMILIES = ("general", "warp_per_row", "tensor_core", "cluster", "level")


def widened(name, H):
    return testing.find(name).smooth(name=f"{name}-h{H}", H=H)


#: Every shape of the tensor_core family (1, 2, 4, 8 and 16 units of columns), rows of each
#: alignment, one to four predecessors, and every option of the ops.
TENSOR = (
    widened("corner-mask", 16), widened("corner-3x4-h30", 30), widened("corner-4x3-states", 33),
    widened("sweep-mask-h0", 62), widened("chain-lengths-h0", 64), widened("line-3x5", 65),
    widened("diamond", 70), widened("gated-corner", 40), widened("corner-no-bias", 128),
    widened("chain-tanh-h0", 130), widened("gated-diamond", 136),
)  # fmt: skip
#: Of these, the widths that tf32 has.
TF32 = tuple(case for case in TENSOR if case.H <= 128)
#: One CTA at a time on one multiprocessor: it goes through all tiles of rows.
ONE_CTA = (80, 1, 160 * 1024, 8 * 1024)


def check(switch, emulated, case, dtype=None):
    inputs = case.inputs(dtype=dtype)
    expected = testing.Expected.of(case, inputs)
    with switch.running(emulated):
        actual = case.results(sk, inputs)
    expected.check(actual, "cuda_host")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case, harness, switch, fast):
    check(switch, harness.Emulated(fast), case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_dtypes(case, dtype, harness, switch, fast):
    check(switch, harness.Emulated(fast), case, dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_is_bytes_against_zero(family, harness, switch, fast):
    """Few multiprocessors: one CTA reads the masks of many rows."""
    case = testing.find("corner-mask")
    inputs = case.inputs(dtype=torch.float32 if family == "warp_per_row" else torch.bfloat16)
    odd = inputs | {"mask": testing.with_odd_bytes(inputs["mask"])}
    with switch.running(harness.Emulated(fast, FEW_LARGE, family=family)):
        expected, found = case.results(sk, inputs), case.results(sk, odd)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", TENSOR, ids=str)
def test_tensor_core(case, dtype, harness, switch, fast):
    check(switch, harness.Emulated(fast), case, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_core_takes_the_whole_table(case, harness, switch, fast):
    check(switch, harness.Emulated(fast), case.smooth(), torch.bfloat16)


def check_tf32(harness, switch, emulated, case):
    inputs = case.inputs()
    expected = testing.Expected.of(case, inputs, allow_tf32=True)
    with testing.tf32(), switch.running(emulated):
        actual = case.results(sk, inputs)
    expected.check(actual, "cuda_host")
    return actual


@pytest.mark.parametrize("case", TF32, ids=str)
def test_tf32(case, harness, switch, fast):
    actual = check_tf32(harness, switch, harness.Emulated(fast, family="tensor_core"), case)
    with switch.running(harness.Emulated(fast)):
        exact = case.results(sk, case.inputs())
    assert not torch.equal(actual["output"], exact["output"])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("case", TF32[::2], ids=str)
def test_tf32_schedules(case, seed, harness, switch, fast):
    emulated = harness.Emulated(fast, ONE_CTA, seed=seed, family="tensor_core")
    check_tf32(harness, switch, emulated, case)


@pytest.mark.parametrize("case", TF32[1::3], ids=str)
def test_no_races_of_tf32(case, harness, switch, race):
    emulated = harness.Emulated(race, ONE_CTA, seed=2, family="tensor_core")
    check_tf32(harness, switch, emulated, case)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_tf32_is_a_constant_of_a_compiled_graph(harness, switch, fast):
    with switch.running(harness.Emulated(fast)):
        testing.assert_a_graph_keeps_to_tf32(TF32[2], sk)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("case", TENSOR[::2], ids=str)
def test_tensor_core_schedules(case, seed, harness, switch, fast):
    check(switch, harness.Emulated(fast, ONE_CTA, seed=seed), case, torch.bfloat16)


@pytest.mark.parametrize("case", TENSOR, ids=str)
def test_no_races_on_the_tensor_core(case, harness, switch, race):
    check(switch, harness.Emulated(race, ONE_CTA, seed=2), case, torch.bfloat16)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("case", SMALL[::2], ids=str)
def test_schedules(case, seed, harness, switch, fast):
    check(switch, harness.Emulated(fast, seed=seed), case)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_little_shared_memory(case, limit, harness, switch, fast):
    """Few multiprocessors: tiles of several rows; little memory: weights and slots are global."""
    check(switch, harness.Emulated(fast, (80, 2, LIMITS[limit], LIMITS[limit])), case)


def test_wide_weights_in_global_memory(harness, switch, fast):
    check(switch, harness.Emulated(fast, (80, 2, 16 * 1024, 16 * 1024)), testing.find("chain-wide"))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", SMALL[:-1], ids=str)
def test_clusters(case, dtype, harness, switch, fast):
    check(switch, harness.Emulated(fast, family="cluster"), case, dtype)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("case", SMALL[1:-1:3], ids=str)
def test_schedules_of_clusters(case, seed, harness, switch, fast):
    emulated = harness.Emulated(fast, FEW_LARGE, seed=seed, family="cluster")
    check(switch, emulated, case, torch.bfloat16)


@pytest.mark.parametrize("name", ["chain-causal", "chain-wide"])
def test_several_ctas_of_a_cluster(name, harness, switch, race):
    """Slices of the hidden width, full and not, with the checker on."""
    for device in (FEW_LARGE, harness.H200):
        emulated = harness.Emulated(race, device, seed=2, family="cluster")
        check(switch, emulated, testing.find(name), torch.bfloat16)


@pytest.mark.parametrize("case", SMALL[:-1], ids=str)
def test_no_races_in_clusters(case, harness, switch, race):
    emulated = harness.Emulated(race, FEW_LARGE, seed=2, family="cluster")
    check(switch, emulated, case, torch.bfloat16)


@pytest.mark.parametrize("dtype", (*HALVES, torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("case", SMALL[:-1], ids=str)
def test_level_by_level(case, dtype, harness, switch, fast):
    check(switch, harness.Emulated(fast, seed=3, family="level"), case, dtype)


@pytest.mark.parametrize("family", [None, "cluster", "level"])
def test_inference_keeps_only_the_projection(family, harness, switch, fast):
    """Nobody asks for h, so the families that need it keep it in scratch."""
    case = testing.find("corner-3x4-h30")
    inputs = case.inputs(dtype=torch.bfloat16)
    expected = testing.Expected.of(case, inputs, gradients=False)
    with switch.running(harness.Emulated(fast, family=family)), torch.no_grad():
        expected.check(case.results(sk, inputs, gradients=False), "cuda_host")


def test_several_tiles_of_a_level(harness, switch, fast):
    """Few multiprocessors: a CTA takes tiles in turn."""
    emulated = harness.Emulated(fast, (80, 1, 64 * 1024, 64 * 1024), family="level")
    for name in ("chain-wide", "sweep-h272", "diamond"):
        check(switch, emulated, testing.find(name))


@pytest.mark.parametrize("case", SMALL[:-1:2], ids=str)
def test_no_races_level_by_level(case, harness, switch, race):
    emulated = harness.Emulated(race, (80, 1, 64 * 1024, 64 * 1024), seed=2, family="level")
    check(switch, emulated, case)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_no_races(case, harness, switch, race):
    """Barriers, waits for copies, bounds and unwritten memory, checked access by access."""
    check(switch, harness.Emulated(race, seed=2), case)


@pytest.mark.parametrize("case", SMALL[:6], ids=str)
def test_no_races_with_little_shared_memory(case, harness, switch, race):
    check(switch, harness.Emulated(race, (80, 2, 3 * 1024, 3 * 1024), seed=2), case)


@pytest.mark.parametrize("family", [None, "cluster", "level"])
@pytest.mark.parametrize("case", SMALL[:4], ids=str)
def test_is_repeatable(case, family, harness, switch, fast):
    """The same bits whatever the order in which blocks and threads run."""
    inputs = case.inputs(dtype=torch.bfloat16 if family else None)
    with switch.running(harness.Emulated(fast, seed=0, family=family)):
        first = case.results(sk, inputs)
    with switch.running(harness.Emulated(fast, seed=3, family=family)):
        second = case.results(sk, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", TENSOR[:4], ids=str)
def test_tensor_core_is_repeatable(case, harness, switch, fast):
    inputs = case.inputs(dtype=torch.bfloat16)
    results = []
    for seed in (0, 3):
        with switch.running(harness.Emulated(fast, ONE_CTA, seed=seed)):
            results.append(case.results(sk, inputs))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("forward, backward", [("cpu", "cuda_host"), ("cuda_host", "cpu")])
@pytest.mark.parametrize(
    "family, dtype",
    [
        ("general", torch.float32),
        ("tensor_core", torch.bfloat16),
        ("cluster", torch.bfloat16),
        ("level", torch.float32),
    ],
)
@pytest.mark.parametrize("name", ["sweep-mask-h0", "sweep-diamond"])
def test_mixed_pairs(name, family, dtype, forward, backward, harness, switch, fast):
    """Either backend's backward finishes the other's forward."""
    case = testing.find(name)
    t = case.inputs(dtype=dtype)
    u, w, h0, mask = t["u"], t["w"], t["h0"], t.get("mask")
    topology, activation = case.topology, ACTIVATIONS.index(case.activation)
    program, back = topology.program("levels"), topology.reversed().program("levels")
    tables = (program.table(u.device), back.table(u.device))
    sizes = [program.num_groups, program.num_slots, back.num_groups, back.num_slots]
    tensors = (None, None, w, mask, h0, None, None)
    with switch.running(harness.Emulated(fast, family=family)):
        ops = {b: getattr(torch.ops, f"strnn_{b}") for b in (forward, backward)}
        h, _ = ops[forward].sweep_fwd(u, *tensors, *tables, sizes, activation, True)
        du, _, _, dw, dh0, _ = ops[backward].sweep_bwd(
            case.output_gradient(h), None, u, h, *tensors, tables[1], sizes, activation, True
        )
    testing.Expected.of(case, t).check({"output": h, "du": du, "dw": dw, "dh0": dh0}, "mixed")


def test_gradcheck(harness, switch, fast):
    """First and second derivatives in float64, through the gated sweep's own derivative."""
    topology = sk.Topology.grid(2, 2)
    make = torch.Generator().manual_seed(0)
    u, w = (
        torch.randn(*shape, generator=make, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 4, 4, 2), (4, 2, 2))
    )
    with switch.running(harness.Emulated(fast)):

        def call(u, w):
            return sk.sweep(u, w, topology, activation="tanh")

        assert torch.autograd.gradcheck(call, (u, w), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (u, w), fast_mode=True)


def test_empty_batch(harness, switch, fast):
    topology = sk.Topology.grid(2, 3)
    x = torch.zeros(0, 6, 3, requires_grad=True)
    w_ih, w_hh, bias = (torch.ones(*s, requires_grad=True) for s in ((4, 5, 3), (4, 5, 5), (4, 5)))
    with switch.running(harness.Emulated(fast)):
        h = sk.spatial_rnn(x, w_ih, w_hh, bias, topology)
        h.sum().backward()
    assert h.shape == (0, 6, 4, 5)
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in (w_ih, w_hh, bias))


def test_too_large_for_the_device(harness, switch, fast):
    """The limit is named."""
    u, w = torch.zeros(1, 2, 2, 300), torch.zeros(2, 300, 300)
    with (
        switch.running(harness.Emulated(fast, (80, 2, 1024, 1024))),
        pytest.raises(RuntimeError, match=r"needs .* bytes of shared memory, the device has 1024"),
    ):
        sk.sweep(u, w, sk.Topology.chain(2))


@pytest.mark.parametrize(
    "family, dtype",
    [
        ("warp_per_row", torch.float32),
        ("general", torch.float64),
        ("tensor_core", torch.bfloat16),
        ("cluster", torch.bfloat16),
        ("level", torch.float32),
    ],
)
def test_what_a_masked_node_holds_does_not_leak(family, dtype, harness, switch, fast):
    """NaN at masked nodes reaches neither outputs nor gradients."""
    case = testing.find("corner-mask")
    inputs = case.inputs(dtype=dtype)
    spoilt = inputs | {"x": torch.where(inputs["mask"][..., None], inputs["x"], torch.nan)}
    with switch.running(harness.Emulated(fast, family=family)):
        clean, actual = (case.results(sk, given) for given in (inputs, spoilt))
    assert all(torch.equal(clean[name], actual[name]) for name in clean)
