"""The modules: nn.RNN's twin, the start of the spatial layer, the sparse projection, manners."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import strnn_kernels as sk

C, H, B, T = 5, 8, 6, 7
GRID = sk.Topology.grid(3, 4)


def rnn_of(activation="relu", bidirectional=True, bias=True, batch_first=True):
    return nn.RNN(C, H, 1, activation, bias, batch_first, 0, bidirectional).double()


KINDS = [
    {"activation": a, "bidirectional": d, "bias": b}
    for a in ("relu", "tanh")
    for d in (True, False)
    for b in (True, False)
]
either = pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))


# TemporalRNN and nn.RNN


@either
def test_temporal_rnn_equals_nn_rnn(kind, randn, gradients):
    rnn = rnn_of(**kind)
    layer = sk.TemporalRNN.from_rnn(rnn)
    D = 1 + rnn.bidirectional
    x, hx = randn(B, T, C), randn(D, B, H)
    for arguments in ((x,), (x, hx)):
        expected, actual = rnn(*arguments), layer(*arguments)
        assert [v.shape for v in actual] == [v.shape for v in expected]
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)
        found = [
            gradients(out[0].sum(2) + out[1].sum(), [*arguments, *module.parameters()])
            for out, module in ((actual, layer), (expected, rnn))
        ]
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("kind", [sk.RNN, sk.GRU, sk.LSTM, sk.TemporalRNN])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("has_lengths", [True, False])
def test_projected_states(kind, bidirectional, has_lengths, randn, gradients):
    layer = kind(C, H, bidirectional=bidirectional).double()
    D, K = 1 + bidirectional, 3
    is_first = layer.batch_first
    x, weight = randn(*((B, T) if is_first else (T, B)), C), randn(D, K, T)
    lengths = torch.tensor([7, 1, 0, 5, 7, 2]) if has_lengths else None
    output, _ = layer(x, lengths=lengths)
    h = (output if is_first else output.transpose(0, 1)).unflatten(2, (D, H))
    expected = torch.einsum("dkt,btdh->bdkh", weight, h)
    actual = layer.project(x, weight, lengths=lengths)
    torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        torch.testing.assert_close(layer.project(x, weight, lengths=lengths), expected)
    found = [gradients(s.sin().sum(), [x, weight, *layer.parameters()]) for s in (actual, expected)]
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e)


def test_project_refuses(randn):
    layer = sk.GRU(C, H, batch_first=True).double()
    x, weight = randn(B, T, C), randn(1, 3, T)
    for wrong in (randn(2, 3, T), randn(1, 3, T + 1), randn(3, T), weight.float(), None):
        with pytest.raises(sk.ArgumentError, match="projection"):
            layer.project(x, wrong)
    for wrong in (randn(T, C), randn(B, T, C + 1), None):
        with pytest.raises(sk.ArgumentError, match="input"):
            layer.project(wrong, weight)
    with pytest.raises(sk.ArgumentError, match="num_layers"):
        sk.GRU(C, H, 2).project(x, weight)
    with torch.autocast("cpu"):
        assert layer.float().project(x.float(), weight.float()).dtype == torch.bfloat16


@either
def test_state_dict_loads_both_ways(kind, randn):
    rnn, layer = rnn_of(**kind), sk.TemporalRNN(C, H, **kind).double()
    assert list(layer.state_dict()) == list(rnn.state_dict())
    assert [v.shape for v in layer.parameters()] == [v.shape for v in rnn.parameters()]
    x = randn(B, T, C)
    layer.load_state_dict(rnn.state_dict())
    torch.testing.assert_close(layer(x), rnn(x))
    other = sk.TemporalRNN(C, H, **kind).double()
    rnn.load_state_dict(other.state_dict())
    torch.testing.assert_close(other(x), rnn(x))


@either
def test_to_rnn_and_back(kind, randn):
    layer = sk.TemporalRNN(C, H, **kind).double().eval()
    rnn = layer.to_rnn()
    assert isinstance(rnn, nn.RNN) and rnn.batch_first and not rnn.training
    again = sk.TemporalRNN.from_rnn(rnn)
    x = randn(B, T, C)
    torch.testing.assert_close(rnn(x), layer(x))
    for name, value in layer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    rnn.weight_hh_l0.data.zero_()
    again.weight_hh_l0.data.zero_()
    assert layer.weight_hh_l0.any(), "a copy, not a view"


@pytest.mark.parametrize("is_batch_first", [False, True])
def test_from_rnn_takes_dtype_mode_layout_and_frozen_weights(is_batch_first):
    rnn = nn.RNN(C, H, batch_first=is_batch_first, nonlinearity="tanh", dtype=torch.float64).eval()
    rnn.weight_hh_l0.requires_grad_(False)
    layer = sk.TemporalRNN.from_rnn(rnn)
    assert not layer.training and layer.weight_hh_l0.dtype == torch.float64
    assert [p.requires_grad for p in layer.parameters()] == [
        p.requires_grad for p in rnn.parameters()
    ]
    x = torch.randn(C, C, C, dtype=torch.float64)  # a cube: nothing fails when sizes are swapped
    torch.testing.assert_close(layer(x), rnn(x))
    torch.testing.assert_close(layer.to_rnn()(x), rnn(x))


def test_the_start_is_that_of_nn_rnn():
    torch.manual_seed(3)
    rnn = nn.RNN(C, H, bidirectional=True)
    torch.manual_seed(3)
    layer = sk.TemporalRNN(C, H)
    for p, q in zip(layer.parameters(), rnn.parameters(), strict=True):
        assert torch.equal(p, q)


# Lengths


def ragged(randn, kind):
    """Unsorted, with ties and a full one."""
    x = randn(B, T, C)
    lengths = torch.tensor([3, 7, 1, 3, 7, 4])
    return x, lengths, randn(1 + kind["bidirectional"], B, H)


@either
def test_lengths_equal_packed_nn_rnn(kind, randn, gradients):
    rnn = rnn_of(**kind)
    layer = sk.TemporalRNN.from_rnn(rnn)
    x, lengths, hx = ragged(randn, kind)
    for state in (None, hx):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, h_n = rnn(packed, state)
        output = pad_packed_sequence(output, batch_first=True)[0]
        actual = layer(x, state, lengths=lengths)
        torch.testing.assert_close(actual, (output, h_n))
        leaves = [x, *([] if state is None else [hx])]
        found = [
            gradients(out[0].sum(2) + out[1].sum(), [*leaves, *module.parameters()])
            for out, module in ((actual, layer), ((output, h_n), rnn))
        ]
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("is_sorted", [True, False])
@either
def test_packed_sequences_in_and_out(kind, is_sorted, randn):
    rnn = rnn_of(**kind)
    layer = sk.TemporalRNN.from_rnn(rnn)
    x, lengths, hx = ragged(randn, kind)
    if is_sorted:
        lengths = lengths.sort(descending=True).values
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=is_sorted)
    for state in (None, hx):
        expected, h_n = rnn(packed, state)
        actual, h_n_actual = layer(packed, state)
        assert isinstance(actual, PackedSequence)
        torch.testing.assert_close(actual.data, expected.data)
        torch.testing.assert_close(h_n_actual, h_n)
        assert torch.equal(actual.batch_sizes, expected.batch_sizes)
        for name in ("sorted_indices", "unsorted_indices"):
            a, e = getattr(actual, name), getattr(expected, name)
            assert (a is None) == (e is None) and (a is None or torch.equal(a, e))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("has_hx", [True, False])
def test_a_sequence_of_length_zero_ends_in_its_first_state(has_hx, dtype, randn):
    layer = sk.TemporalRNN(C, H).double()
    x, hx = randn(3, T, C), randn(2, 3, H) if has_hx else None
    output, h_n = layer(x, hx, lengths=torch.tensor([0, 5, 0], dtype=dtype))
    assert (output[[0, 2]] == 0).all()
    first = hx if has_hx else torch.zeros(2, 3, H, dtype=torch.float64)
    torch.testing.assert_close(h_n[:, [0, 2]], first[:, [0, 2]])
    alone = layer(x[1:2, :5], hx[:, 1:2] if has_hx else None)
    torch.testing.assert_close(output[1:2, :5], alone[0])
    torch.testing.assert_close(h_n[:, 1:2], alone[1])


def test_lengths_as_a_list(randn):
    layer = sk.TemporalRNN(C, H).double()
    x = randn(3, T, C)
    expected = layer(x, lengths=torch.tensor([1, 5, 7]))
    torch.testing.assert_close(layer(x, lengths=[1, 5, 7]), expected)


def test_unbatched(randn):
    for kind in KINDS:
        rnn = rnn_of(**kind)
        layer = sk.TemporalRNN.from_rnn(rnn)
        x, hx = randn(T, C), randn(1 + rnn.bidirectional, H)
        torch.testing.assert_close(layer(x), rnn(x))
        torch.testing.assert_close(layer(x, hx), rnn(x, hx))


def test_stacked_layers_equal_a_deep_nn_rnn(randn):
    deep = nn.RNN(C, H, 2, batch_first=True, bidirectional=True).double()
    layers = []
    for depth, width in enumerate((C, 2 * H)):
        layer = sk.TemporalRNN(width, H, activation="tanh").double()
        state = {
            name.replace(f"_l{depth}", "_l0"): value
            for name, value in deep.state_dict().items()
            if f"_l{depth}" in name
        }
        layer.load_state_dict(state)
        layers.append(layer)
    x = randn(B, T, C)
    torch.testing.assert_close(layers[1](layers[0](x)[0])[0], deep(x)[0])


# Streaming


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "identity"])
@pytest.mark.parametrize("has_state", [True, False])
def test_step_equals_the_whole_sequence(activation, has_state, randn):
    layer = sk.TemporalRNN(C, H, activation=activation, bidirectional=False).double()
    x, first = randn(B, T, C), randn(1, B, H) if has_state else None
    output, h_n = layer(x, first)
    state, steps = first, []
    for step in range(T):
        y, state = layer.step(x[:, step], state)
        assert y.shape == (B, H) and state.shape == (1, B, H)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), output, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state, h_n, rtol=1e-13, atol=1e-13)
    # In one piece or in two, also through the state's gradient.
    head, middle = layer(x[:, :3], first)
    tail, _ = layer(x[:, 3:], middle)
    torch.testing.assert_close(torch.cat([head, tail], 1), output)
    together = torch.autograd.grad(output.pow(2).sum(), x)[0]
    stepped = torch.autograd.grad(torch.stack(steps, 1).pow(2).sum(), x)[0]
    torch.testing.assert_close(stepped, together)


def test_step_of_a_bidirectional_layer_is_refused():
    with pytest.raises(sk.ArgumentError, match="bidirectional=False"):
        sk.TemporalRNN(C, H).step(torch.randn(B, C))


def test_gradients_of_the_input_in_eval_mode():
    """Saliency: cuDNN refuses this for nn.RNN."""
    spatial, temporal = sk.SpatialRNN(C, H, GRID, projection_size=2).eval(), sk.TemporalRNN(C, H)
    temporal.eval()
    for module, x in ((spatial, torch.randn(2, 12, C)), (temporal, torch.randn(2, T, C))):
        for p in module.parameters():
            p.requires_grad_(False)
        x.requires_grad_()
        out = module(x)
        (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()
        assert x.grad.abs().sum() > 0
        assert all(p.grad is None for p in module.parameters())


# SpatialRNN


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"projection_size": 3}])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_spatial_rnn_equals_the_reference(activation, options, randn, gradients):
    layer = sk.SpatialRNN(C, H, GRID, activation=activation, **options).double()
    for p in layer.parameters():
        p.data.uniform_(-0.3, 0.3)
    x, mask = randn(B, 12, C), torch.rand(B, 12) > 0.3
    projection = layer.projection.weight if layer.projection else None
    assert (projection is not None) == ("projection_size" in options)
    expected = sk.reference.spatial_rnn(
        *(x, layer.weight_ih, layer.weight_hh, layer.bias, GRID),
        activation=activation,
        mask=mask,
        projection=projection,
    )
    actual = layer(x, mask)
    torch.testing.assert_close(actual, expected)
    leaves = [x, *layer.parameters()]
    for a, e in zip(gradients(actual, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, e)


SIDE = 32


@pytest.mark.parametrize("neighbourhood", ["corner", "cross", "line"])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_the_start_neither_explodes_nor_dies(activation, neighbourhood):
    grid = sk.Topology.grid(SIDE, SIDE, neighbourhood=neighbourhood)
    layer = sk.SpatialRNN(3, 16, grid, activation=activation)
    x = torch.randn(4, SIDE * SIDE, 3, requires_grad=True)
    h = layer(x)
    with torch.no_grad():
        u = torch.einsum("bnc,dhc->bndh", x, layer.weight_ih) + layer.bias
    # A state is at most one input more than the mean of its predecessors: linear in depth.
    for d in range(4):
        depth = torch.tensor(grid.level[d].tolist()) + 1
        assert (h[:, :, d].abs().amax((0, 2)) <= u.abs().max() * depth * 1.0001).all()
    # It does not die either: deep states are as alive as shallow ones.
    assert h.isfinite().all()
    deep = torch.tensor(grid.level[0].tolist()) >= grid.num_levels * 3 // 4
    deep, shallow = h[:, deep, 0].std(), h[:, ~deep, 0].std()
    assert shallow / 3 < deep < 30 * shallow
    (dx,) = torch.autograd.grad(h.pow(2).mean(), x)
    assert dx.isfinite().all() and (dx.abs().amax((0, 2)) > 0).all()


def test_the_gradient_goes_from_corner_to_corner():
    """Above 1e-3 over 32 x 32, in all four directions, and never more than there are cells."""
    for activation in ("identity", "relu"):
        layer = sk.SpatialRNN(1, 8, sk.Topology.grid(SIDE, SIDE), activation=activation).double()
        x = torch.rand(1, SIDE * SIDE, 1, dtype=torch.float64, requires_grad=True)
        u = torch.einsum("bnc,dhc->bndh", x, layer.weight_ih)[0]
        h = layer(x)
        for d, (start, end) in enumerate(((0, -1), (SIDE - 1, -SIDE), (-SIDE, SIDE - 1), (-1, 0))):
            unit = int(u[:, d].sum(0).argmax())  # a unit that ReLU leaves open
            (dx,) = torch.autograd.grad(h[0, end, d, unit], x, retain_graph=True)
            through = dx[0, start, 0] / layer.weight_ih[d, unit, 0]
            assert 1e-3 < through < 1, (activation, d, through)
            assert 0 < (dx / layer.weight_ih[d, unit]).sum() <= 2 * SIDE * SIDE


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("neighbourhood", ["corner", "cross", "line"])
def test_the_start_of_gated_cells_neither_explodes_nor_dies(cell, neighbourhood):
    """Torch's start would keep half of what is carried a level: 1e-10 from corner to corner."""
    grid = sk.Topology.grid(SIDE, SIDE, neighbourhood=neighbourhood)
    layer = sk.SpatialRNN(3, 16, grid, cell=cell)
    x = torch.randn(2, SIDE * SIDE, 3, requires_grad=True)
    h = layer(x)
    assert h.isfinite().all() and h.abs().max() <= 1
    deep = torch.tensor(grid.level[0].tolist()) >= grid.num_levels * 3 // 4
    far, near = h[:, deep, 0].std(), h[:, ~deep, 0].std()
    assert near / 3 < far < 3 * near
    first = torch.tensor(grid.level[0].tolist()) == 0
    last = torch.tensor(grid.level[0].tolist()) == grid.num_levels - 1
    (dx,) = torch.autograd.grad(h[:, last, 0].sum(), x, retain_graph=True)
    (near,) = torch.autograd.grad(h[:, first, 0].sum(), x)
    ratio = dx[:, first].abs().amax() / near[:, first].abs().amax()
    assert 1e-3 < ratio < 10, ratio


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("reduce", [None, "sum"])
def test_gated_spatial_layers_equal_the_reference(cell, reduce, randn, gradients):
    layer = sk.SpatialRNN(C, H, GRID, cell=cell, reduce=reduce, projection_size=2).double()
    x, mask = randn(B, 12, C), torch.rand(B, 12) > 0.3
    expected = sk.reference.spatial_rnn(
        *(x, layer.weight_ih, layer.weight_hh, layer.bias, GRID),
        mask=mask,
        projection=layer.projection.weight,
        cell=cell,
        reduce=reduce,
    )
    actual = layer(x, mask)
    torch.testing.assert_close(actual, expected)
    leaves = [x, *layer.parameters()]
    for a, e in zip(gradients(actual, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, e)
    assert f"cell={cell}" in repr(layer)


def test_the_start_follows_the_number_of_predecessors():
    for graph, P in ((GRID, 3), (sk.Topology.chain(5), 1), (sk.Topology.grid(1, 1), 1)):
        layer = sk.SpatialRNN(C, H, graph)
        expected = (torch.eye(H) / P).expand(graph.num_directions, H, H)
        assert torch.equal(layer.weight_hh.detach(), expected)
        assert (layer.bias == 0).all() and layer.weight_ih.abs().max() <= C**-0.5


# SparseProjection


def test_sparse_projection_module(randn):
    layer = sk.SparseProjection(2, 5, 3).double()
    assert layer.weight.shape == (2, 3, 5) and layer.weight.abs().max() <= 5**-0.5
    h = randn(4, 5, 2, H)
    torch.testing.assert_close(layer(h), torch.einsum("dkn,bndh->bdkh", layer.weight, h))
    penalty = layer.penalty()
    assert penalty.shape == () and penalty == layer.weight.abs().sum()
    penalty.backward()
    assert torch.equal(layer.weight.grad, layer.weight.detach().sign())
    assert layer.density() == 1.0


def test_proximal_steps_make_exact_zeros():
    layer = sk.SparseProjection(1, 4, 1)
    layer.weight.data.copy_(torch.tensor([0.5, -0.5, 0.1, -0.2]))
    assert layer.proximal_step_(0.2) is None
    torch.testing.assert_close(layer.weight.detach()[0, 0], torch.tensor([0.3, -0.3, 0.0, 0.0]))
    assert layer.density() == 0.5
    layer.proximal_step_(10)
    assert layer.density() == 0.0 and isinstance(layer.density(), float)
    assert layer.penalty() == 0


def test_training_with_proximal_steps_finds_the_nodes_that_matter():
    """Two of ten nodes carry the answer; the others end at exactly zero."""
    layer = sk.SparseProjection(1, 10, 1).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    h = torch.randn(200, 10, 1, 1, dtype=torch.float64)
    target = 2 * h[:, 3] - h[:, 7]
    for _ in range(300):
        optimizer.zero_grad()
        ((layer(h)[:, :, 0] - target) ** 2).mean().backward()
        optimizer.step()
        layer.proximal_step_(0.05 * 0.2)
    kept = layer.weight.detach()[0, 0].nonzero().flatten().tolist()
    assert kept == [3, 7] and layer.density() == 0.2


# Manners of a module


def modules():
    return {
        "spatial": (sk.SpatialRNN(C, H, GRID, projection_size=2), torch.randn(2, 12, C)),
        "temporal": (sk.TemporalRNN(C, H), torch.randn(2, T, C)),
        "projection": (sk.SparseProjection(2, 5, 3), torch.randn(2, 5, 2, H)),
    }


MODULES = ("spatial", "temporal", "projection")


def first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", MODULES)
def test_copies(name):
    module, x = modules()[name]
    module(x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    )
    for twin in copies:
        assert torch.equal(first(twin(x)), first(module(x)))
        next(twin.parameters()).data.add_(1)
        assert not torch.equal(first(twin(x)), first(module(x)))


@pytest.mark.parametrize("name", MODULES)
def test_state_dict(name):
    (module, x), (other, _) = modules()[name], modules()[name]
    assert not torch.equal(first(other(x)), first(module(x)))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(first(other(x)), first(module(x)))
    assert all(isinstance(v, torch.Tensor) for v in module.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODULES)
def test_dtype(name, dtype):
    module, x = modules()[name]
    expected = first(module(x))
    actual = first(module.to(dtype)(x.to(dtype)))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)
    actual.sum().backward()
    assert all(p.grad.dtype == dtype for p in module.parameters())


def test_factory_arguments():
    for make in (
        lambda **k: sk.SpatialRNN(C, H, GRID, projection_size=2, **k),
        lambda **k: sk.TemporalRNN(C, H, **k),
        lambda **k: sk.SparseProjection(2, 5, 3, **k),
    ):
        module = make(dtype=torch.float64, device="meta")
        assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())
        module.to_empty(device="cpu").reset_parameters()
        assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", MODULES)
def test_functional_call_and_per_sample_gradients(name):
    module, x = modules()[name]
    params = {k: v.detach() for k, v in module.named_parameters()}
    zero = {k: torch.zeros_like(v) for k, v in params.items()}
    assert (first(torch.func.functional_call(module, zero, (x,))) == 0).all()

    def loss(params, x):
        return first(torch.func.functional_call(module, params, (x[None],))).pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for b in range(2):
        for k, g in torch.func.grad(loss)(params, x[b]).items():
            torch.testing.assert_close(each[k][b], g)


def test_every_parameter_gets_a_gradient():
    """What DistributedDataParallel asks of a module; changing buffers would need synchronising."""
    for module, x in modules().values():
        first(module(x)).pow(2).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in module.parameters())
        assert not list(module.buffers())


def test_parametrized_weights(randn):
    """A module that recomputes its weight at each call (spectral norm does) still works."""

    class Halved(nn.Module):
        def forward(self, w):
            return w / 2

    layer = sk.SpatialRNN(C, H, GRID).double()
    twin = copy.deepcopy(layer)
    twin.weight_hh.data.div_(2)
    nn.utils.parametrize.register_parametrization(layer, "weight_hh", Halved())
    x = randn(2, 12, C)
    torch.testing.assert_close(layer(x), twin(x))


def test_a_module_in_use_by_two_threads(randn):
    layer = sk.SpatialRNN(C, 33, GRID).double()
    inputs = [randn(1 + i, 12, C, grad=False) for i in range(16)]
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for a, e in zip(pool.map(layer, inputs), expected, strict=True):
                assert torch.equal(a, e)


def test_extra_repr():
    spatial, temporal, projection = (m for m, _ in modules().values())
    assert repr(projection) == "SparseProjection(num_directions=2, num_nodes=5, projection_size=3)"
    for text in (f"{C}, {H}", "activation=relu", "bias=True", repr(GRID), "(projection)"):
        assert text in repr(spatial)
    assert (
        repr(temporal) == f"TemporalRNN({C}, {H}, activation=relu, bias=True, bidirectional=True)"
    )
