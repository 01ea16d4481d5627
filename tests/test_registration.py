"""The ops as torch sees them: derivatives, opcheck, compile, export, autocast, torch.func."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import strnn_kernels as sk
from strnn_kernels.registration import topology_tables
from strnn_kernels.testing import sweep_arguments, sweep_backward_arguments

T = sk.Topology.grid(3, 4)
B, N, D, H, C, K = 2, 12, 4, 3, 2, 2
LENGTHS = torch.tensor([5, 3])

# torch itself: its forward mode and inductor still call torch.jit; vmap says that it loops.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


@pytest.fixture
def t(randn):
    """One tensor for each argument."""
    return SimpleNamespace(
        u=randn(B, N, D, H),
        g=randn(B, N, D, H),
        gate=randn(B, N, D, H),
        w=randn(D, H, H, scale=0.2),
        h0=randn(B, D, H),
        x=randn(B, N, C),
        w_ih=randn(D, H, C),
        bias=randn(D, H),
        G=randn(D, K, N),
        mask=torch.rand(B, N) > 0.2,
        time=(randn(B, 5, C), randn(2, H, C), randn(2, H, H, scale=0.3), randn(2, H)),
        time_h0=randn(B, 2, H),
        time_G=randn(2, K, 5),
    )


def calls(t):
    """name -> (a smooth function, its inputs): every op with every option."""
    return {
        "sweep": (
            lambda u, w, h0: sk.sweep(u, w, T, activation="tanh", mask=t.mask, h0=h0),
            (t.u, t.w, t.h0),
        ),
        "sweep-plain": (lambda u, w: sk.sweep(u, w, T, activation="sigmoid"), (t.u, t.w)),
        "gated": (lambda g, gate, w: sk.gated_sweep(g, gate, w, T), (t.g, t.gate, t.w)),
        "projection": (sk.sparse_projection, (t.u, t.G)),
        "spatial": (
            lambda x, wi, w, b, G: sk.spatial_rnn(
                x, wi, w, b, T, activation="sigmoid", mask=t.mask, projection=G
            ),
            (t.x, t.w_ih, t.w, t.bias, t.G),
        ),
        "spatial-states": (
            lambda x, wi, w: sk.spatial_rnn(x, wi, w, None, T, activation="identity"),
            (t.x, t.w_ih, t.w),
        ),
        "temporal": (
            lambda x, wi, w, b, h0, G: sk.temporal_rnn(
                x, wi, w, b, activation="tanh", lengths=LENGTHS, h0=h0, projection=G
            ),
            (*t.time, t.time_h0, t.time_G),
        ),
    }


CALLS = ("sweep", "sweep-plain", "gated", "projection", "spatial", "spatial-states", "temporal")


@pytest.mark.parametrize("name", CALLS)
def test_gradcheck(name, t):
    assert gradcheck(*calls(t)[name])


@pytest.mark.parametrize("name", CALLS)
def test_gradgradcheck(name, t):
    assert gradgradcheck(*calls(t)[name], fast_mode=True)


@pytest.mark.parametrize("name", CALLS)
def test_third_order(name, t, gradients):
    """The third derivative is that of the reference, differentiated by torch alone."""
    inputs = calls(t)[name][1]
    found = []
    for backend in ("cpu", "reference"):
        with sk.use_backend(backend):
            y = calls(t)[name][0](*inputs).pow(3)
            for order in range(2):
                grads = torch.autograd.grad(
                    y.sum(), inputs, create_graph=True, allow_unused=True, materialize_grads=True
                )
                y = sum(g.pow(2 + order).sum() for g in grads)
            found.append(gradients(y, inputs))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        assert actual.abs().max() > 0


@pytest.mark.parametrize("name", CALLS)
def test_the_composed_derivative_equals_the_fused_one(name, t, gradients):
    """gradgradcheck holds what create_graph gives against itself only."""
    f, inputs = calls(t)[name]
    y = f(*inputs)
    dy = torch.randn(y.shape, dtype=y.dtype)
    fused = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    composed = torch.autograd.grad(y, inputs, dy, create_graph=True)
    for c, e in zip(composed, fused, strict=True):
        torch.testing.assert_close(c, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_second_order_on_a_topology_unlike_its_reverse(turned, randn, gradients):
    """One node into five: one program needs more slots than that of the reversed topology."""
    star = sk.Topology.dag([[[], [], [0], [0], [0], [0], [0]]])
    _, _, sizes = topology_tables(star, torch.device("cpu"), "levels")
    assert sizes[1] != sizes[3]
    star = star.reversed() if turned else star
    u, gate, w = randn(3, 7, 1, 4), randn(3, 7, 1, 4), randn(1, 4, 4, scale=0.3)
    for call in (
        lambda m: m.sweep(u, w, star, activation="tanh"),
        lambda m: m.gated_sweep(u, gate, w, star),
    ):
        found = []
        for module in (sk, sk.reference):
            y = call(module).pow(2).sum()
            grads = torch.autograd.grad(y, (u, w), create_graph=True)
            found.append(gradients(sum(g.pow(2).sum() for g in grads), (u, gate, w)))
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_relu_has_the_second_derivative_of_the_reference(t, gradients):
    found = []
    for module in (sk, sk.reference):
        y = module.spatial_rnn(t.x, t.w_ih, t.w, t.bias, T).pow(2)
        grads = torch.autograd.grad(y.sum(), (t.x, t.w), create_graph=True)
        found.append(gradients(sum(g.pow(2).sum() for g in grads), (t.x, t.w_ih, t.w)))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


# opcheck


def op_calls(t, c):
    P = topology_tables(T, torch.device("cpu"), "levels")
    ns = torch.ops.strnn_cpu
    x, u, w, wi, b, h0, G = map(c, (t.x, t.u, t.w, t.w_ih, t.bias, t.h0, t.G))
    g, gate, ds = c(t.g), c(t.gate), torch.randn(B, D, K, H, dtype=torch.float64)
    entry = torch.zeros(B, D, dtype=torch.int32)
    return {
        "sweep_fwd": (
            ns.sweep_fwd,
            sweep_arguments(x, w, P, 2, w_ih=wi, bias=b, mask=t.mask, h0=h0, projection=G),
        ),
        "sweep_fwd-entry": (
            ns.sweep_fwd,
            sweep_arguments(x, w, P, 3, w_ih=wi, h0=h0, entry=entry),
        ),
        "sweep_fwd-u": (ns.sweep_fwd, sweep_arguments(u, w, P, 1)),
        "gated_sweep_fwd": (ns.gated_sweep_fwd, (g, gate, w, *P)),
        "sparse_projection_fwd": (ns.sparse_projection_fwd, (u, G)),
        "sweep_bwd": (
            ns.sweep_bwd,
            sweep_backward_arguments(
                x, u, w, P, 2, dh=g, ds=c(ds), w_ih=wi, bias=b, mask=t.mask, h0=h0, projection=G
            ),
        ),
        "sweep_bwd-u": (
            ns.sweep_bwd,
            sweep_backward_arguments(u, u, w, P, 1, dh=g, need_dx=False),
        ),
        "gated_sweep_bwd": (ns.gated_sweep_bwd, (g, c(t.u), c(t.x.new_ones(u.shape)), gate, w, *P)),
        "sparse_projection_bwd": (ns.sparse_projection_bwd, (c(ds), u, G)),
    }


OPS = (
    "sweep_fwd",
    "sweep_fwd-entry",
    "sweep_fwd-u",
    "gated_sweep_fwd",
    "sparse_projection_fwd",
    "sweep_bwd",
    "sweep_bwd-u",
    "gated_sweep_bwd",
    "sparse_projection_bwd",
)


@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, requires_grad, t):
    op, arguments = op_calls(t, lambda v: v.detach().clone().requires_grad_(requires_grad))[name]
    torch.library.opcheck(op, arguments)


def test_all_six_ops_are_checked():
    names = {name.split("-")[0] for name in OPS}
    assert names == {op.name for op in sk.registration.OPS} and len(names) == 6


def test_fake_tensors(t):
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(7, N, C, dtype=torch.float16, requires_grad=True)
        w_ih, w = x.new_empty(D, H, C), x.new_empty(D, H, H)
        s = sk.spatial_rnn(x, w_ih, w, None, T, projection=x.new_empty(D, K, N))
        assert s.shape == (7, D, K, H) and s.dtype == torch.float16
        with torch.no_grad():
            assert sk.spatial_rnn(x, w_ih, w, None, T).shape == (7, N, D, H)


# torch.func


@pytest.mark.parametrize("name", CALLS)
def test_func_grad_and_vjp(name, t):
    f, inputs = calls(t)[name]
    every = tuple(range(len(inputs)))
    plain = [v.detach() for v in inputs]
    actual = torch.func.grad(lambda *a: f(*a).pow(2).sum(), argnums=every)(*plain)
    expected = torch.autograd.grad(f(*inputs).pow(2).sum(), inputs)
    y, pull = torch.func.vjp(f, *plain)
    for a, v, e in zip(actual, pull(2 * y), expected, strict=True):
        torch.testing.assert_close(a, e)
        torch.testing.assert_close(v, e)


@pytest.mark.parametrize("name", CALLS)
def test_func_vmap(name, t):
    """Mapped over every argument, alone and together, against a loop."""
    f, inputs = calls(t)[name]
    plain = [v.detach() for v in inputs]
    stacked = [torch.stack([v, 2 * v, -v]) for v in plain]
    for mapped in [{i} for i in range(len(plain))] + [set(range(len(plain)))]:
        dims = tuple(0 if i in mapped else None for i in range(len(plain)))
        pick = [
            s if i in mapped else v for i, (s, v) in enumerate(zip(stacked, plain, strict=True))
        ]
        actual = torch.func.vmap(f, dims)(*pick)
        for k in range(3):
            one = [p[k] if i in mapped else p for i, p in enumerate(pick)]
            torch.testing.assert_close(actual[k], f(*one))


@pytest.mark.parametrize("name", CALLS)
def test_func_jacrev(name, t):
    f, inputs = calls(t)[name]
    every = tuple(range(len(inputs)))
    plain = tuple(v.detach() for v in inputs)
    actual = torch.func.jacrev(f, every)(*plain)
    expected = torch.autograd.functional.jacobian(f, plain)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_func_per_sample_gradients(t):
    def loss(w, u, mask):
        return sk.sweep(u[None], w, T, activation="tanh", mask=mask[None]).pow(2).sum()

    w, u = t.w.detach(), t.u.detach()
    actual = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(w, u, t.mask)
    for b in range(B):
        expected = torch.func.grad(loss)(w, u[b], t.mask[b])
        torch.testing.assert_close(actual[b], expected)


def test_func_hessian_by_reverse_mode(t):
    def loss(w):
        return sk.sweep(t.u.detach(), w, T, activation="tanh").pow(2).sum()

    w = t.w.detach()
    actual = torch.func.jacrev(torch.func.jacrev(loss))(w)
    torch.testing.assert_close(actual, torch.autograd.functional.hessian(loss, w))
    assert actual.abs().max() > 0


@pytest.mark.parametrize("name", CALLS)
def test_forward_mode_is_that_of_the_reference(name, t):
    f, inputs = calls(t)[name]
    plain = tuple(v.detach() for v in inputs)
    tangents = tuple(torch.randn_like(v) for v in plain)
    y, actual = torch.func.jvp(f, plain, tangents)
    with sk.use_backend("reference"):
        expected_y, expected = torch.func.jvp(f, plain, tangents)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(actual, expected)
    for grad_mode in (True, False):
        with torch.set_grad_enabled(grad_mode), forward_ad.dual_level():
            dual = f(*(forward_ad.make_dual(v, t) for v, t in zip(plain, tangents, strict=True)))
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)


@pytest.mark.parametrize("name", CALLS)
def test_forward_over_reverse_is_reverse_over_reverse(name, t):
    f, inputs = calls(t)[name]
    plain = tuple(v.detach() for v in inputs)
    tangents = tuple(torch.randn_like(v) for v in plain)
    gradient = torch.func.grad(lambda *a: f(*a).tanh().sum(), tuple(range(len(plain))))
    actual = torch.func.jvp(gradient, plain, tangents)[1]
    _, pull = torch.func.vjp(gradient, *plain)
    expected = pull(tangents)  # the Hessian is symmetric
    torch.testing.assert_close(actual, expected)


# Compilers


@pytest.fixture
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same_as_eager(layer, compiled, *inputs):
    """Outputs and gradients of inputs and parameters."""
    found = []
    leaves = [v for v in inputs if v.is_floating_point()]
    for f in (layer, compiled):
        out = f(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        total = sum((o * torch.arange(o.numel()).view(o.shape).cos()).sum() for o in out)
        grads = torch.autograd.grad(total, [*leaves, *layer.parameters()], allow_unused=True)
        found.append([*out, *grads])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_with_inductor(randn):
    layer = sk.SpatialRNN(C, H, T, projection_size=K).double()
    compiled = torch.compile(layer, fullgraph=True)
    for batch in (2, 3, 5):
        same_as_eager(layer, compiled, randn(batch, N, C))
    with torch.no_grad():
        x = randn(4, N, C)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.fixture
def compile_count():
    return torch._dynamo.testing.CompileCounterWithBackend("aot_eager")


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_is_dynamic_in_the_batch(randn, compile_count):
    layer = sk.SpatialRNN(C, H, T, activation="tanh", projection_size=K).double()
    compiled = torch.compile(layer, fullgraph=True, backend=compile_count)
    for batch in (2, 3, 5, 7, 11):
        same_as_eager(layer, compiled, randn(batch, N, C), torch.rand(batch, N) > 0.3)
    assert compile_count.frame_count <= 2  # once static, once with a symbolic B


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("extra", ["nothing", "hx", "lengths"])
def test_compile_over_several_lengths_of_time(extra, randn):
    layer = sk.TemporalRNN(C, H).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch, steps in ((2, 5), (3, 5), (4, 9)) + ((4, 6), (7, 6)) * (extra == "nothing"):
        x = randn(batch, steps, C)
        if extra == "lengths":
            lengths = torch.randint(1, steps + 1, (batch,))
            actual, expected = compiled(x, lengths=lengths), layer(x, lengths=lengths)
            torch.testing.assert_close(actual, expected)
        else:
            same_as_eager(layer, compiled, x, *([randn(2, batch, H)] if extra == "hx" else []))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", ["sweep", "gated", "projection"])
def test_compile_functions(name, t, gradients):
    f, inputs = calls(t)[name]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    expected, actual = f(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_second_derivatives_are_right_or_refused(t):
    f, inputs = calls(t)["sweep-plain"]
    u, w = (v.detach() for v in inputs)

    def curvature(u):
        inner = torch.func.grad(lambda v: f(v, w).pow(2).sum())
        return torch.func.grad(lambda v: inner(v).pow(2).sum())(u)

    expected = curvature(u)
    compiled = torch.compile(curvature, backend="aot_eager")
    try:
        actual = compiled(u)
    except RuntimeError as error:
        assert "functorch transforms" in str(error)
    else:
        torch.testing.assert_close(actual, expected)

    y = torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs)
    (g,) = torch.autograd.grad(y.pow(2).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        g.pow(2).sum().backward()


@pytest.fixture
def graphs():
    """A compiler that runs graphs as they are and notes which of our ops each has."""
    seen = []

    def compiler(graph, _inputs):
        seen.append([str(n.target) for n in graph.graph.nodes if "strnn" in str(n.target)])
        return graph

    return SimpleNamespace(seen=seen, compiler=compiler)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_code_obeys_use_backend(t, graphs):
    compiled = torch.compile(lambda u, w: sk.sweep(u, w, T), backend=graphs.compiler)
    u, w = t.u.detach(), t.w.detach()
    expected = compiled(u, w)
    assert graphs.seen == [["strnn_cpu.sweep_fwd"]]
    with sk.use_backend("reference"):
        torch.testing.assert_close(compiled(u, w), expected)
    assert len(graphs.seen) > 1 and not any(graphs.seen[1:])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_export_save_and_load(kind, strict, randn):
    if kind == "spatial":
        layer = sk.SpatialRNN(C, H, T, projection_size=K).double().eval()
        first, other = randn(4, N, C, grad=False), randn(7, N, C, grad=False)
    else:
        layer = sk.TemporalRNN(C, H).double().eval()
        first, other = randn(4, 9, C, grad=False), randn(7, 9, C, grad=False)
    batch = torch.export.Dim("B", max=1024)
    program = torch.export.export(layer, (first,), dynamic_shapes=({0: batch},), strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for x in (first, other):
        torch.testing.assert_close(loaded(x), layer(x))


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    spatial, temporal = sk.SpatialRNN(C, 30, T), sk.TemporalRNN(C, 30)
    projection = sk.SparseProjection(D, N, K)
    x = torch.randn(5, N, C, requires_grad=True)
    with torch.autocast("cpu", dtype):
        h = spatial(x)
        s = projection(h)
        y, h_n = temporal(x)
        gated = sk.gated_sweep(h, torch.ones(h.shape), spatial.weight_hh, T)
    assert {v.dtype for v in (h, s, y, h_n, gated)} == {dtype}
    (s.float().pow(2).sum() + y.float().pow(2).sum()).backward()
    for p in (x, *spatial.parameters(), *temporal.parameters(), *projection.parameters()):
        assert p.grad.dtype == torch.float32 and p.grad.isfinite().all() and p.grad.any()
    # The same numbers as rounding the arguments by hand, and close to float32.
    low = [p.to(dtype) for p in (x, spatial.weight_ih, spatial.weight_hh, spatial.bias)]
    assert torch.equal(h, sk.spatial_rnn(*low, T))
    torch.testing.assert_close(h.float(), spatial(x), rtol=0.05, atol=0.05)


def test_autocast_leaves_float64_alone_and_can_be_switched_off(t):
    with torch.autocast("cpu", torch.bfloat16):
        assert sk.sweep(t.u, t.w, T).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert sk.sweep(t.u.float(), t.w.float(), T).dtype == torch.float32


def test_sixteen_bit_accumulates_in_single_precision():
    """Two thousand steps of one: summed in float16 or bfloat16 the state would stick far below."""
    steps = 2000
    for dtype, exact in ((torch.float16, 2000.0), (torch.bfloat16, 2000.0)):
        x, one = torch.ones(1, steps, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype)
        h = sk.temporal_rnn(x, one, one, None, bidirectional=False)
        assert h[0, -1, 0, 0].item() == torch.tensor(exact, dtype=dtype).item()


# Modes and layouts


def test_inference_mode_first_then_training():
    """Tables that were made in inference mode can still be saved for a backward."""
    t = sk.Topology.grid(5, 3, mask=[[True, True, False]] * 5)  # not used elsewhere
    u, w = torch.randn(2, 10, 4, 3), torch.randn(4, 3, 3) / 9
    with torch.inference_mode():
        quiet = sk.sweep(u, w, t)
        assert quiet.is_inference()
    u.requires_grad_()
    h = sk.sweep(u, w, t)
    assert torch.equal(h, quiet)
    h.sum().backward()
    assert u.grad.any()


@pytest.mark.parametrize("name", CALLS)
def test_no_grad(name, t):
    f, inputs = calls(t)[name]
    expected = f(*inputs)
    assert expected.requires_grad
    with torch.no_grad():
        y = f(*inputs)
    assert not y.requires_grad and y.grad_fn is None
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    assert not f(*(v.detach() for v in inputs)).requires_grad


def strided(v):
    """The same numbers with other strides: transposed memory, with a gap and an offset."""
    room = v.new_full([s + 1 for s in reversed(v.shape)], float("nan"))
    inner = room[tuple(slice(1, None) for _ in v.shape)].permute(*reversed(range(v.dim())))
    return inner.copy_(v)


@pytest.mark.parametrize("name", CALLS)
def test_non_contiguous_inputs_and_cotangents(name, t):
    f, inputs = calls(t)[name]
    y = f(*inputs)
    dy = torch.randn(y.shape, dtype=y.dtype)
    expected = torch.autograd.grad(y, inputs, dy)
    odd = [strided(v.detach()).requires_grad_() for v in inputs]
    assert not any(v.is_contiguous() for v in odd)
    z = f(*odd)
    torch.testing.assert_close(z, y, rtol=1e-13, atol=1e-13)
    for a, e in zip(torch.autograd.grad(z, odd, strided(dy)), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CALLS)
def test_expanded_cotangent(name, t):
    f, inputs = calls(t)[name]
    y = f(*inputs)
    actual = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    expected = torch.autograd.grad(y, inputs, torch.ones(y.shape, dtype=y.dtype))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_expanded_and_negated_inputs(t):
    one = t.u[:1].detach()
    expanded = one.expand(4, -1, -1, -1)
    torch.testing.assert_close(sk.sweep(expanded, t.w, T)[3:], sk.sweep(one, t.w, T))
    lazy = torch.complex(t.u.detach(), t.g.detach()).conj().imag
    assert lazy.is_neg()
    torch.testing.assert_close(sk.sweep(lazy, t.w, T), sk.sweep(-t.g.detach(), t.w, T))


def test_a_channels_last_map_is_the_input():
    image = torch.randn(3, C, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    layer = sk.SpatialRNN(C, H, T)
    x = image.permute(0, 2, 3, 1).flatten(1, 2)
    assert x.data_ptr() == image.data_ptr()
    layer(x).sum().backward()
    twin = image.detach().contiguous().requires_grad_()
    layer(twin.flatten(2).transpose(1, 2)).sum().backward()
    torch.testing.assert_close(image.grad, twin.grad)


def test_hooks(t):
    seen = []
    u = t.u.detach().requires_grad_()
    u.register_hook(lambda g: seen.append(("u", g.shape)) or 2 * g)
    h = sk.sweep(u, t.w, T)
    h.register_hook(lambda g: seen.append(("h", g.shape)))
    h.sum().backward()
    assert seen == [("h", h.shape), ("u", u.shape)]
    (plain,) = torch.autograd.grad(sk.sweep(t.u, t.w, T).sum(), t.u)
    torch.testing.assert_close(u.grad, 2 * plain)


def test_saved_tensor_hooks_and_checkpoint(t):
    def run(u, w):
        return sk.sweep(u, w, T, activation="tanh")

    expected = torch.autograd.grad(run(t.u, t.w).pow(2).sum(), (t.u, t.w))
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v.clone(), lambda v: v):
        y = run(t.u, t.w)
    hooked = torch.autograd.grad(y.pow(2).sum(), (t.u, t.w))
    y = torch.utils.checkpoint.checkpoint(run, t.u, t.w, use_reentrant=False)
    checkpointed = torch.autograd.grad(y.pow(2).sum(), (t.u, t.w))
    for a, b, e in zip(hooked, checkpointed, expected, strict=True):
        torch.testing.assert_close(a, e)
        torch.testing.assert_close(b, e)


def test_backward_twice(t):
    h = sk.sweep(t.u, t.w, T)
    first = torch.autograd.grad(h.sum(), t.u, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(h.sum(), t.u)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(h.sum(), t.u)


@pytest.mark.filterwarnings("ignore")  # torch's own, in what it compiles with
def test_a_package_compiled_ahead_of_time_runs_in_a_fresh_process(tmp_path, randn, wanted):
    """By AOTInductor, for a length that it has not seen; importing the package brings the ops."""
    # test_deploy has such a package without Python, docs/deploy.md one in this process.
    wanted(False)
    model = sk.GRU(3, 8, bidirectional=True).double().eval()
    length = torch.export.Dim("T", min=2, max=100)
    with torch.no_grad():
        exported = torch.export.export(model, (randn(7, 2, 3),), dynamic_shapes=({0: length},))
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        x = randn(11, 2, 3).detach()
        torch.save((x, model(x)[0]), tmp_path / "expected.pt")
    check = (
        "import sys, torch, strnn_kernels\n"
        "run = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "torch.testing.assert_close(run(x)[0], expected)"
    )
    command = [sys.executable, "-c", check, package, str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
