"""The CPU backend: every instruction set, width, dtype and thread count; rounding; memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels.backends import native
from strnn_kernels.notation import CELLS
from strnn_kernels.registration import topology_tables
from strnn_kernels.testing import Case, Expected, sweep_arguments, sweep_backward_arguments

CPU = torch.device("cpu")
RELU, TANH = CELLS.index("relu"), CELLS.index("tanh")
CAP = sk.Topology.montage("seed-62")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def test_empty_memory_is_nan():
    """On which every other test relies: an output that a kernel does not write shows."""
    assert torch.empty(3).isnan().all() and torch.ones(3).new_empty(3).isnan().all()


# Instruction sets

FINGERPRINT = """
    import hashlib, sys, torch, pytest
    import strnn_kernels as sk
    from strnn_kernels.testing import find
    digest = hashlib.sha256()
    case = find("cap-small")
    for dtype in (torch.float32, torch.bfloat16):
        with sk.use_backend("cpu"):
            for value in case.results(sk, case.inputs(dtype=dtype)).values():
                digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    print("fingerprint", digest.hexdigest(), flush=True)
    tests = TESTS
    chosen = "output_and_gradients or widths or accurate or exact or nan or 16_bit or raw_op"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-k", chosen]
    sys.exit(pytest.main([*options, *tests]) if tests else 0)
"""


@pytest.fixture(scope="module")
def fingerprints():
    return {}


@pytest.mark.parametrize("capability", native.cpu_capabilities().split(", "))
def test_instruction_set(capability, run_python, fingerprints):
    """The conformance table and the numerics of this file, in a process that is held to one set."""
    here = Path(__file__).parent
    tests = [str(here / "test_conformance.py"), str(here / "test_cpu.py")]
    if capability == native.cpu_capability():
        tests = []  # all others have it
    code = FINGERPRINT.replace("TESTS", repr(tests))
    done = run_python(code, cwd=here.parent, STRNN_CPU_CAPABILITY=capability)
    if "this machine does not have it" in done.stderr:
        pytest.skip(f"no {capability} here")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # Sums of other widths round differently: equal bits would mean that the choice had no effect.
    # But tiles add pairs in the order of registers of pairs.
    fingerprint = done.stdout.split("fingerprint ")[1].split()[0]
    others = {name: bits for name, bits in fingerprints.items() if name != "avx512_amx"}
    assert fingerprint not in others.values(), "the same bits as another instruction set"
    fingerprints[capability] = fingerprint


def test_an_unknown_instruction_set(run_python):
    code = """
        import torch, strnn_kernels as sk
        try:
            sk.sweep(torch.ones(1, 2, 2, 1), torch.ones(2, 1, 1), sk.Topology.chain(2))
        except RuntimeError as error:
            print(error)
    """
    done = run_python(code, STRNN_CPU_CAPABILITY="AVX2")  # names are in lower case
    assert done.returncode == 0, done.stderr[-2000:]
    assert "STRNN_CPU_CAPABILITY must be one of" in done.stdout
    assert all(name in done.stdout for name in (native.cpu_capabilities(), "got AVX2"))


# Widths, dtypes, shapes


def check(case, dtype, **replaced):
    inputs = case.inputs(dtype=dtype) | replaced
    with sk.use_backend("cpu"):
        actual = case.results(sk, inputs)
    # In float64 the oracle rounds as we do, and its own error counts as none: sums over some
    # thousand terms in another order differ by more than the few roundings of the rule.
    slack = 4.0 if dtype == torch.float64 else 1.0
    Expected.of(case, inputs).check(actual, "cpu", slack=slack)


@each_dtype
@pytest.mark.parametrize("H", [1, 30, 33, 64, 130, 257])
def test_widths(H, dtype):
    grid, chain = (lambda: sk.Topology.grid(3, 4)), (lambda: sk.Topology.chain(5))
    options = {"activation": "tanh", "H": H}
    check(Case("space", "spatial_rnn", grid, B=5, C=6, K=3, has_mask=True, **options), dtype)
    check(Case("sweep", "sweep", grid, B=3, has_h0=True, **options), dtype)
    check(Case("gated", "gated_sweep", grid, B=2, H=H), dtype)
    check(Case("time", "temporal_rnn", chain, B=4, C=7, has_lengths=True, **options), dtype)
    check(Case("project", "sparse_projection", grid, B=2, H=H, K=5, density=0.5), dtype)


@each_dtype
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("H", [5, 15, 33, 64, 130])
def test_widths_of_gated_cells(H, cell, dtype):
    """Blocks that end inside a register, at its end, and inside a panel of the product."""
    grid, chain = (lambda: sk.Topology.grid(3, 4)), (lambda: sk.Topology.chain(5))
    options = {"cell": cell, "H": H}
    check(Case("space", "spatial_rnn", grid, B=5, C=6, K=3, has_mask=True, **options), dtype)
    options |= {"has_h0": True, "has_c0": cell == "lstm"}
    check(Case("time", "temporal_rnn", chain, B=4, C=7, has_lengths=True, **options), dtype)
    check(Case("live", "temporal_rnn", chain, B=1, C=H, **options), dtype)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gated_cells_over_many_chunks(cell):
    chain, grid = (lambda: sk.Topology.chain(150)), (lambda: sk.Topology.grid(13, 17))
    options = {"cell": cell, "H": 20}
    check(
        Case("long", "temporal_rnn", chain, B=17, C=129, has_lengths=True, **options), torch.float64
    )
    check(Case("big", "spatial_rnn", grid, B=2, C=3, K=4, **options), torch.float64)


@pytest.mark.parametrize(
    "cell, dtype", [("elman", torch.float64), ("elman", torch.float32), ("lstm", torch.float32)]
)
def test_outputs_that_go_past_the_caches(cell, dtype):
    options = {"has_lengths": True} if cell == "elman" else {"returns_carry": True}
    options |= {"activation": "tanh", "cell": cell, "H": 112}  # rows of whole lines
    case = Case("large", "temporal_rnn", lambda: sk.Topology.chain(19), B=509, C=3, **options)
    assert case.B * case.N * case.D * case.H * 4 >= 8 << 20  # kStreamBytes of sweep_kernel.h
    check(case, dtype)


@each_dtype
@pytest.mark.parametrize("op", ["spatial_rnn", "sweep", "gated_sweep"])
def test_one_node(op, dtype):
    check(Case("n1", op, lambda: sk.Topology.grid(1, 1), B=3, C=4, H=19), dtype)


@pytest.mark.parametrize("C, K", [(1, 1), (16, 16), (129, 70), (300, 8)])
def test_input_and_projection_widths(C, K):
    case = Case("wide", "spatial_rnn", lambda: sk.Topology.grid(3, 3), B=3, H=17, C=C, K=K)
    check(case, torch.float32)


@pytest.mark.parametrize("B", [1, 2, 3, 15, 16, 17, 40, 129])
def test_batch_sizes(B):
    graph = lambda: sk.Topology.grid(2, 3)  # noqa: E731
    check(Case("b", "spatial_rnn", graph, B=B, H=9, C=3, K=2, has_mask=True), torch.float32)


def test_a_grid_of_many_chunks():
    graph = lambda: sk.Topology.grid(23, 29)  # noqa: E731
    check(Case("big", "spatial_rnn", graph, B=2, H=20, C=3, K=4, activation="tanh"), torch.float64)


def test_long_sums_round_as_little_as_torch():
    """H = C = 1024: a sum of a thousand terms in a row would lose half a digit."""
    chain = lambda: sk.Topology.chain(64)  # noqa: E731
    options = {"B": 16, "C": 1024, "H": 1024, "activation": "tanh"}
    case = Case("long", "temporal_rnn", chain, **options)
    inputs = case.inputs()
    with sk.use_backend("cpu"):
        actual = case.results(sk, inputs, gradients=False)
    Expected.of(case, inputs, gradients=False).check(actual, "cpu")


@each_dtype
@pytest.mark.parametrize("C, K, has_h0", [(5, 0, True), (5, 3, False), (0, 0, False)])
def test_sequences_that_end_in_different_chunks(C, K, has_h0, dtype):
    """Rows past their end leave the products chunk by chunk, and still have zeros for a state.

    Every length occurs, so some sequences end just where a chunk does, whatever its size.
    """
    chain = lambda: sk.Topology.chain(40)  # noqa: E731
    options = {"B": 41, "H": 18, "activation": "tanh"}
    lengths = torch.arange(41).roll(7)
    if C:
        options |= {"C": C, "K": K, "has_h0": has_h0, "has_lengths": True}
        check(Case("ends", "temporal_rnn", chain, **options), dtype, lengths=lengths)
    else:
        mask = torch.arange(40) < lengths[:, None]
        check(Case("ends", "sweep", chain, has_mask=True, **options), dtype, mask=mask)


@each_dtype
@pytest.mark.parametrize("name", ["spatial_rnn", "temporal_rnn", "sweep", "gated_sweep"])
def test_empty_batch(name, dtype):
    """Gradients of parameters are zero, not memory left over."""
    t = sk.Topology.chain(4)
    x, u = torch.randn(0, 4, 3, dtype=dtype), torch.randn(0, 4, 2, 5, dtype=dtype)
    w_ih, w, bias = torch.randn(2, 5, 3), torch.randn(2, 5, 5), torch.randn(2, 5)
    w_ih, w, bias = (v.to(dtype).requires_grad_() for v in (w_ih, w, bias))
    x.requires_grad_(), u.requires_grad_()
    call, leaves = {
        "spatial_rnn": (lambda: sk.spatial_rnn(x, w_ih, w, bias, t), (x, w_ih, w, bias)),
        "temporal_rnn": (lambda: sk.temporal_rnn(x, w_ih, w, bias), (x, w_ih, w, bias)),
        "sweep": (lambda: sk.sweep(u, w, t), (u, w)),
        "gated_sweep": (lambda: sk.gated_sweep(u, u, w, t), (u, w)),
    }[name]
    h = call()
    assert h.shape == (0, 4, 2, 5) and h.dtype == dtype
    for leaf, g in zip(leaves, torch.autograd.grad(h.sum(), leaves), strict=True):
        assert torch.equal(g, torch.zeros_like(leaf))


@pytest.mark.parametrize("turned", [False, True])
def test_a_node_with_hundreds_of_predecessors(turned, randn, agree):
    fan = 300
    t = sk.Topology.dag([[[] for _ in range(fan)] + [range(fan)]] * 2)
    t = t.reversed() if turned else t
    u, w = randn(3, fan + 1, 2, 17), randn(2, 17, 17, scale=1e-3)
    agree(lambda m, u, w: m.sweep(u, w, t, activation="tanh"), u, w)
    agree(lambda m, u, w: m.gated_sweep(u, torch.sigmoid(u), w, t), u, w)


def test_a_complete_dag(randn, agree):
    """Every node precedes every later one: as many slots as nodes."""
    t = sk.Topology.dag([[list(range(n)) for n in range(40)]])
    agree(lambda m, u, w: m.sweep(u, w, t), randn(2, 40, 1, 9), randn(1, 9, 9, scale=2e-3))


# Activations


def dense(dtype):
    """A fine grid where it matters, powers over the whole range, and the special values."""
    info = torch.finfo(dtype)
    exponents = torch.linspace(-300, 300, 6_001, dtype=torch.float64)
    powers = (10**exponents).clamp(info.tiny, info.max)
    special = torch.tensor([0.0, -0.0, info.max, info.min, info.tiny, -info.tiny, 1e-45, -1e-45])
    inf = torch.tensor([float("inf"), -float("inf")])
    values = [torch.linspace(-20, 20, 100_001).double(), powers, -powers, special, inf]
    values = torch.cat([v.to(dtype) for v in values])
    return torch.cat([values, values.new_zeros(-len(values) % 100)]).view(-1, 1, 1, 100)


ONE = sk.Topology.grid(1, 1, neighbourhood="line")


def activate(values, activation):
    """Elementwise: a sweep of one node (the same in the four directions of a line)."""
    u, w = values.expand(-1, 1, 4, 100), values.new_zeros(4, 100, 100)
    h = sk.sweep(u, w, ONE, activation=activation)
    assert all(torch.equal(h[:, :, d : d + 1], h[:, :, :1]) or h.isnan().any() for d in range(4))
    return h[:, :, :1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_activations_are_accurate(activation, dtype):
    x = dense(dtype)
    actual = activate(x, activation).double()
    exact = getattr(torch, activation)(x.double())
    bound = 1e-6 if dtype == torch.float32 else 1e-15
    assert (actual - exact).abs().max() < bound
    low = -1 if activation == "tanh" else 0
    assert (actual >= low).all() and (actual <= 1).all()
    if activation == "tanh":
        small = (x.abs() < 1) & (x != 0) & (x.abs() >= torch.finfo(dtype).tiny)
        assert ((actual - exact)[small].abs() / exact[small].abs()).max() < bound
        assert torch.equal(activate(-x, activation).double(), -actual)
    # Never a gradient of the wrong sign, however saturated.
    u = x.expand(-1, 1, 4, 100).clone().requires_grad_()
    sk.sweep(u, x.new_zeros(4, 100, 100), ONE, activation=activation).sum().backward()
    assert (u.grad >= 0).all() and (u.grad <= 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_and_identity_are_exact(dtype):
    x = dense(dtype)
    assert torch.equal(activate(x, "relu"), torch.relu(x))
    assert torch.equal(activate(x, "identity"), x)


@each_dtype
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "sigmoid"])
def test_nan_stays_nan(activation, dtype):
    x = torch.zeros(3, 1, 1, 100, dtype=dtype)
    x[1, 0, 0, ::7] = float("nan")
    assert torch.equal(activate(x, activation).isnan(), x.isnan())


# Storage in 16 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_survives(dtype):
    """Loaded and stored unchanged: all 65536 patterns, subnormal ones too; a NaN stays one."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    x = torch.cat([bits, bits.new_zeros(-len(bits) % 100)]).view(dtype).view(-1, 1, 1, 100)
    y = activate(x, "identity")
    is_nan = x.isnan()
    assert torch.equal(y.isnan(), is_nan)
    assert torch.equal(y.view(torch.int16)[~is_nan], x.view(torch.int16)[~is_nan])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_16_bit_is_to_nearest_even(dtype):
    """u + 1 * h0 is one sum in float32, rounded once, as torch does; with ties and overflow."""
    u, h0 = (torch.randn(40_000) * 10 ** (4 * torch.rand(40_000) - 2) for _ in range(2))
    ulp = torch.finfo(dtype).eps
    ties = 1 + ulp * torch.arange(64)
    u = torch.cat([u, ties, -ties, torch.full((4,), 6e4)]).to(dtype)
    h0 = torch.cat(
        [h0, torch.full((64,), ulp / 2), torch.full((64,), -ulp / 2), torch.ones(4) * 6e4]
    )
    h0 = h0.to(dtype)
    t, one = sk.Topology.chain(1, bidirectional=False), torch.ones(1, 1, 1, dtype=dtype)
    h = sk.sweep(u.view(-1, 1, 1, 1), one, t, activation="identity", h0=h0.view(-1, 1, 1))
    assert torch.equal(h.flatten(), (u.float() + h0.float()).to(dtype))


# Threads and bits


def one_step(threads, dtype=torch.float32, B=32):
    """Forward, backward, projection and inference of cases large enough for several workers."""
    torch.set_num_threads(threads)
    smooth = {"activation": "tanh", "dtype": dtype, "B": B}  # the oracle is not asked for kinks
    case = Case("cap", "spatial_rnn", lambda: CAP, C=5, H=30, K=10, has_mask=True, **smooth)
    time = Case(
        "t", "temporal_rnn", lambda: sk.Topology.chain(45), C=30, H=64, has_lengths=True, **smooth
    )
    results = case.results(sk, case.inputs())
    with torch.no_grad():
        results["inference"] = case.run(sk, case.inputs())
    return results | {"time " + k: v for k, v in time.results(sk, time.inputs()).items()}


@each_dtype
def test_threads_agree(dtype):
    one, two, three = (one_step(n, dtype) for n in (1, 2, 3))
    # A flip of the last bit where results are stored in 16 bits, else the order of long sums.
    roundings = 2 if dtype.itemsize == 2 else 64
    for name, expected in one.items():
        bound = roundings * torch.finfo(dtype).eps * expected.abs().max().double()
        for other in (two, three):
            assert (other[name].double() - expected.double()).abs().max() <= bound, name


@pytest.mark.parametrize("B", [1, 32])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_repeat(threads, B):
    first = one_step(threads, B=B)
    one_step(3 - threads, B=2)  # other work in between, with other scratch
    for _ in range(2):
        for name, value in one_step(threads, B=B).items():
            assert torch.equal(value, first[name]), name


def test_inference_equals_training_bit_for_bit():
    results = one_step(1)
    assert torch.equal(results["inference"], results["output"])


def test_scratch_of_a_larger_call_does_not_show():
    """Buffers are kept between calls: NaN left by one must not reach the next."""
    small = Case("s", "spatial_rnn", lambda: sk.Topology.grid(2, 3), B=2, H=9, C=3, K=2)
    inputs = small.inputs()
    before = small.results(sk, inputs)
    large = Case("l", "spatial_rnn", lambda: sk.Topology.grid(6, 6), B=20, H=50, C=40, K=9)
    poison = {
        n: torch.full_like(v, float("nan")) if v.is_floating_point() else v
        for n, v in large.inputs().items()
    }
    assert large.results(sk, poison)["output"].isnan().all()
    for name, value in small.results(sk, inputs).items():
        assert torch.equal(value, before[name]), name


# The raw ops


def tables(t):
    return topology_tables(t, CPU, "levels")


def test_a_backward_finishes_the_forward_of_another_backend(randn, gradients):
    """What is saved belongs to the op: the states of the reference feed the CPU's backward."""
    t = sk.Topology.grid(3, 4)
    x, w_ih, bias = randn(5, 12, 3), randn(4, 7, 3), randn(4, 7)
    w, G, mask = randn(4, 7, 7, scale=0.1), randn(4, 2, 12), torch.rand(5, 12) > 0.3
    h = sk.reference.spatial_rnn(x, w_ih, w, bias, t, activation="tanh", mask=mask)
    s = sk.reference.sparse_projection(h, G)
    leaves = (x, w_ih, bias, w, G)
    ds = torch.randn(s.shape, dtype=torch.float64)
    expected = torch.autograd.grad(s, leaves, ds)
    with torch.no_grad():
        dx, dw_ih, dbias, dw, _, _, dG = torch.ops.strnn_cpu.sweep_bwd(
            *sweep_backward_arguments(
                x, h, w, tables(t), TANH, ds=ds, w_ih=w_ih, bias=bias, mask=mask, projection=G
            )
        )
    for a, e in zip((dx, dw_ih, dbias, dw, dG), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_both_orders_of_a_program_give_the_same(randn):
    """A backend may follow levels or raster order."""
    for t in (sk.Topology.grid(5, 6), CAP, sk.Topology.chain(9)):
        N, D = t.num_nodes, t.num_directions
        u, w, dh = randn(3, N, D, 8), randn(D, 8, 8, scale=0.1), randn(3, N, D, 8)
        found = []
        for order in ("levels", "raster"):
            P = topology_tables(t, CPU, order)
            h, *_ = torch.ops.strnn_cpu.sweep_fwd(*sweep_arguments(u, w, P, RELU))
            back = torch.ops.strnn_cpu.sweep_bwd(*sweep_backward_arguments(u, h, w, P, RELU, dh=dh))
            found.append((h, back[0], back[3]))
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("entry", [-1, 12, -(2**31), 2**31 - 1])
def test_h0_that_enters_nowhere(entry, randn):
    t = sk.Topology.grid(3, 4)
    u, w, h0 = randn(2, 12, 4, 5), randn(4, 5, 5, scale=0.1), randn(2, 4, 5)
    entries = torch.full((2, 4), entry, dtype=torch.int32)
    h, *_ = torch.ops.strnn_cpu.sweep_fwd(
        *sweep_arguments(u, w, tables(t), RELU, h0=h0, entry=entries)
    )
    torch.testing.assert_close(h, sk.sweep(u, w, t), rtol=0, atol=0)


def test_the_raw_op_refuses_what_would_corrupt_memory():
    t = sk.Topology.grid(3, 4)
    program, backward, sizes = tables(t)
    u, w = torch.ones(2, 12, 4, 5), torch.ones(4, 5, 5)

    def call(u=u, w=w, mask=None, h0=None, program=program, sizes=sizes, activation=1):
        arguments = sweep_arguments(u, w, (program, backward, sizes), activation, mask=mask, h0=h0)
        return torch.ops.strnn_cpu.sweep_fwd(*arguments)

    call()
    out_of_range = program.clone()
    out_of_range[0] = 12
    negative = program.clone()
    negative[12 * 4] = -1
    for wrong in (
        {"w": torch.ones(4, 5, 6)},
        {"w": torch.ones(4, 5, 5, dtype=torch.float64)},
        {"mask": torch.ones(2, 11, dtype=torch.bool)},
        {"mask": torch.ones(2, 12)},
        {"h0": torch.ones(3, 4, 5)},
        {"program": program[:-2]},
        {"program": program.long()},
        {"program": out_of_range},
        {"program": negative},
        {"program": tables(sk.Topology.grid(3, 5))[0]},
        {"sizes": sizes[:3]},
        {"sizes": [sizes[0], sizes[1] - 1, *sizes[2:]]},
        {"sizes": [sizes[0] + 1, *sizes[1:]]},
        {"activation": 4},
        {"activation": -1},
        {"u": u[0]},
        {"u": torch.ones(2, 12, 4, 5, dtype=torch.int32)},
    ):
        with pytest.raises(RuntimeError):
            call(**wrong)


# Memory

MEMORY = """
    import torch, strnn_kernels as sk
    torch.set_num_threads(1)
    B, N, D, C, H, K = 128, 256, 4, 4, 64, 4
    t = sk.Topology.grid(16, 16)

    def status(key):
        with open("/proc/self/status") as lines:
            return next(int(l.split()[1]) for l in lines if l.startswith(key)) / 1024

    def peak(call):
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        before = status("VmRSS")
        kept = call()
        return status("VmHWM") - before

    def inputs(B):
        make = lambda *s: (0.05 * torch.randn(*s)).requires_grad_()
        return make(B, N, C), make(D, H, C), make(D, H, H), make(D, H), make(D, K, N)

    def spatial(x, w_ih, w, b, G, project):
        return sk.spatial_rnn(x, w_ih, w, b, t, projection=G if project else None)

    def train(*args):
        y = spatial(*args)
        y.backward(torch.ones(()).expand(y.shape))
        return y

    def sweep(u, w):
        y = sk.sweep(u, w, t)
        y.backward(torch.ones(()).expand(y.shape))
        return y

    def infer(*args):
        with torch.no_grad():
            return spatial(*args)

    small, large = inputs(8), inputs(B)
    make_u = lambda B: torch.randn(B, N, D, H, requires_grad=True)
    for project in (True, False):
        infer(*small, project), train(*small, project)
    sweep(make_u(8), small[2])
    for p in large:
        p.grad = torch.zeros_like(p)
    u = make_u(B)
    print(B * N * D * H * 4 / 2**20)
    print(peak(lambda: infer(*large, True)))
    print(peak(lambda: infer(*large, False)))
    print(peak(lambda: train(*large, True)))
    print(peak(lambda: train(*large, False)))
    print(peak(lambda: sweep(u, large[2])))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_of_memory(run_python):
    """What the peak of resident memory grows by, in MiB, beyond the inputs."""
    done = run_python(MEMORY)
    assert done.returncode == 0, done.stderr[-2000:]
    h, projected, states, train_projected, train, train_sweep = map(float, done.stdout.split())
    slack = 12  # x, dx, s, parameters, scratch: none of them grows with N * D * H
    assert h == 32 and 0.9 * h < states < h + slack, "the measure must see h"
    assert projected < slack, "inference with a projection holds no states"
    assert train_projected < h + slack, "h, no dh"
    assert train < 2 * h + slack, "h and dh"
    assert train_sweep < 3 * h + slack, "h, dh and du"
