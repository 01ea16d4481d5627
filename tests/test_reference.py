"""The reference against oracles that share no code with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from strnn_kernels import reference
from strnn_kernels.notation import ACTIVATIONS
from strnn_kernels.topology import Topology

B, C, H, K = 3, 4, 5, 2


@pytest.fixture
def randn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_activations_are_those_of_the_package():
    assert set(reference.ACT) == set(ACTIVATIONS)


# Chains


def rnn_and_weights(nonlinearity, bidirectional):
    torch.manual_seed(0)
    rnn = nn.RNN(
        C,
        H,
        nonlinearity=nonlinearity,
        batch_first=True,
        bidirectional=bidirectional,
        dtype=torch.float64,
    )
    suffixes = ("_l0", "_l0_reverse")[: 1 + bidirectional]
    parts = {
        name: torch.stack([getattr(rnn, name + s) for s in suffixes])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    bias = parts["bias_ih"] + parts["bias_hh"]
    return rnn, (parts["weight_ih"], parts["weight_hh"], bias)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("with_h0", [True, False])
def test_temporal_rnn_is_nn_rnn(nonlinearity, bidirectional, with_h0, randn):
    rnn, weights = rnn_and_weights(nonlinearity, bidirectional)
    x, h0 = randn(B, 7, C), randn(B, 1 + bidirectional, H) if with_h0 else None
    expected, _ = rnn(x, h0 if h0 is None else h0.transpose(0, 1).contiguous())
    y = reference.temporal_rnn(
        x, *weights, activation=nonlinearity, h0=h0, bidirectional=bidirectional
    )
    torch.testing.assert_close(y.flatten(2), expected)


@pytest.mark.parametrize("with_h0", [True, False])
def test_lengths_are_packed_sequences(with_h0, randn):
    rnn, weights = rnn_and_weights("tanh", True)
    x, lengths = randn(4, 6, C), torch.tensor([3, 6, 1, 5])
    h0 = randn(4, 2, H) if with_h0 else None
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(
        rnn(packed, h0 if h0 is None else h0.transpose(0, 1).contiguous())[0], batch_first=True
    )
    y = reference.temporal_rnn(x, *weights, activation="tanh", lengths=lengths, h0=h0)
    torch.testing.assert_close(y.flatten(2), expected)


def test_what_lies_past_the_end_has_no_say(randn):
    _, weights = rnn_and_weights("tanh", True)
    weights = [w.detach().requires_grad_() for w in weights]
    lengths, projection = torch.tensor([0, 2, 4]), randn(2, K, 4)
    x = randn(3, 4, C)
    x[1, 2:] = float("nan")
    x[0] = float("inf")
    x.requires_grad_()
    h = reference.temporal_rnn(x, *weights, activation="tanh", lengths=lengths)
    for b, length in enumerate(lengths):
        assert torch.all(h[b, length:] == 0)
        if length:
            alone = reference.temporal_rnn(x[b : b + 1, :length], *weights, activation="tanh")
            torch.testing.assert_close(h[b : b + 1, :length], alone)
    q = reference.temporal_rnn(
        x, *weights, activation="tanh", lengths=lengths, projection=projection
    )
    torch.testing.assert_close(q, reference.sparse_projection(h, projection))
    grads = torch.autograd.grad(q.square().sum(), [x, *weights])
    assert all(g.isfinite().all() for g in grads)
    assert torch.all(grads[0][1, 2:] == 0) and torch.all(grads[0][0] == 0)


def test_a_chain_is_a_temporal_rnn(randn):
    x, w_ih, w_hh, bias, h0 = (
        randn(B, 6, C),
        randn(2, H, C),
        randn(2, H, H),
        randn(2, H),
        randn(B, 2, H),
    )
    u = torch.einsum("btc,dhc->btdh", x, w_ih) + bias
    torch.testing.assert_close(
        reference.sweep(u, w_hh, Topology.chain(6), activation="tanh", h0=h0),
        reference.temporal_rnn(x, w_ih, w_hh, bias, activation="tanh", h0=h0),
    )


# Grids

STEPS = {"corner": [(1, 0), (0, 1), (1, 1)], "cross": [(1, 0), (0, 1)]}
CORNERS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]  # the way down the rows and along the columns
LINES = [(0, 1), (0, -1), (1, 0), (-1, 0)]


def loop_over_cells(u, w, neighbourhood, there, h0):
    """The sweep written with rows and columns. u (B, rows, cols, 4, H), there (rows, cols)."""
    B, rows, cols, _, H = u.shape
    h = torch.zeros_like(u)
    for d, (down, right) in enumerate(LINES if neighbourhood == "line" else CORNERS):
        steps = STEPS.get(neighbourhood, [(1, 1)])
        for i in range(rows)[:: down or 1]:
            for j in range(cols)[:: right or 1]:
                if not there[i, j]:
                    continue
                around = [(i - down * a, j - right * b) for a, b in steps]
                around = [
                    (p, q) for p, q in around if 0 <= p < rows and 0 <= q < cols and there[p, q]
                ]
                total = h0[:, d].clone() if not around else torch.zeros(B, H, dtype=u.dtype)
                for p, q in around:
                    total += h[:, p, q, d]
                for b in range(B):
                    h[b, i, j, d] = torch.tanh(u[b, i, j, d] + w[d].mv(total[b]))
    return h


@pytest.mark.parametrize("neighbourhood", ["corner", "cross", "line"])
@pytest.mark.parametrize("holes", [False, True])
def test_sweep_is_the_loop_over_cells(neighbourhood, holes, randn):
    rows, cols = 4, 3
    there = torch.ones(rows, cols, dtype=torch.bool)
    if holes:
        there[0, 0] = there[1, 2] = there[2, 1] = False
    u, w, h0 = randn(2, rows, cols, 4, H), randn(4, H, H), randn(2, 4, H)
    topology = Topology.grid(rows, cols, neighbourhood=neighbourhood, mask=there)
    expected = loop_over_cells(u, w, neighbourhood, there, h0)[:, there]
    h = reference.sweep(u[:, there], w, topology, activation="tanh", h0=h0)
    torch.testing.assert_close(h, expected)


@pytest.mark.parametrize("flipped, exchange", [((3,), [1, 0, 3, 2]), ((2,), [2, 3, 0, 1])])
def test_flipping_the_picture_exchanges_directions(flipped, exchange, randn):
    rows, cols = 4, 5
    topology = Topology.grid(rows, cols)
    x, w_ih, w_hh = randn(B, C, rows, cols), randn(4, H, C), randn(4, H, H)

    def states(x, order):
        nodes = x.flatten(2).transpose(1, 2)
        h = reference.spatial_rnn(
            nodes, w_ih[order], w_hh[order], None, topology, activation="tanh"
        )
        return h.unflatten(1, (rows, cols)).permute(0, 4, 1, 2, 3)  # (B, H, rows, cols, D)

    flip = states(x.flip(flipped), exchange).flip(flipped)[..., exchange]
    torch.testing.assert_close(flip, states(x, [0, 1, 2, 3]))


def test_sparse_projection_is_a_weighted_sum(randn):
    h, weight = randn(B, 6, 4, H), randn(4, K, 6)
    s = reference.sparse_projection(h, weight)
    for d in range(4):
        for k in range(K):
            expected = sum(weight[d, k, n] * h[:, n, d] for n in range(6))
            torch.testing.assert_close(s[:, d, k], expected)


# Masks and derivatives


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_masked_nodes_are_zero_and_without_gradient(activation, randn):
    topology = Topology.grid(3, 3)
    mask = torch.ones(B, 9, dtype=torch.bool)
    mask[0, 0] = mask[1, 4] = mask[2, 8] = mask[2, 7] = False
    x = randn(B, 9, C)
    x[0, 0], x[1, 4], x[2, 7:] = float("nan"), float("inf"), -float("inf")
    clean = torch.where(mask[..., None], x, 0)
    weights = [t.requires_grad_() for t in (randn(4, H, C), 0.2 * randn(4, H, H), randn(4, H))]

    def run(x):
        x = x.clone().requires_grad_()
        h = reference.spatial_rnn(x, *weights, topology, activation=activation, mask=mask)
        return h, torch.autograd.grad(h.square().sum(), [x, *weights])

    h, grads = run(x)
    assert torch.all(h[~mask] == 0)
    assert torch.all(grads[0][~mask] == 0)
    expected_h, expected_grads = run(clean)
    torch.testing.assert_close(h, expected_h)
    torch.testing.assert_close(grads, expected_grads)

    u = torch.einsum("bnc,dhc->bndh", x, weights[0]).detach().requires_grad_()
    h = reference.sweep(u, weights[1], topology, activation=activation, mask=mask)
    (du,) = torch.autograd.grad(h.sum(), u)
    assert torch.all(h[~mask] == 0) and torch.all(du[~mask] == 0) and du.isfinite().all()


def test_derivatives_are_exact(randn):
    topology = Topology.grid(2, 2)
    mask = torch.tensor([[True, True, False, True], [True] * 4])
    x, w_ih, w_hh, bias, projection = (
        t.requires_grad_()
        for t in (randn(2, 4, 2), randn(4, 2, 2), randn(4, 2, 2), randn(4, 2), randn(4, 1, 4))
    )

    def spatial(*args):
        return reference.spatial_rnn(
            *args[:4], topology, activation="tanh", mask=mask, projection=args[4]
        )

    def temporal(*args):
        return reference.temporal_rnn(
            *args[:4], activation="tanh", lengths=torch.tensor([2, 4]), h0=args[4]
        )

    args = (x, w_ih, w_hh, bias, projection)
    assert torch.autograd.gradcheck(spatial, args)
    assert torch.autograd.gradgradcheck(spatial, args)
    h0 = randn(2, 2, 2).requires_grad_()
    chain = (x, *(w.detach()[:2].requires_grad_() for w in (w_ih, w_hh, bias)), h0)
    assert torch.autograd.gradcheck(temporal, chain)


@pytest.mark.parametrize(
    "topology", [Topology.grid(3, 4), Topology.chain(6)], ids=["grid", "chain"]
)
def test_a_gated_sweep_backwards_is_the_derivative_of_a_sweep(topology, randn):
    N, D = topology.num_nodes, topology.num_directions
    u, w, dh = randn(B, N, D, H).requires_grad_(), 0.5 * randn(D, H, H), randn(B, N, D, H)
    h = reference.sweep(u, w, topology, activation="tanh")
    (du,) = torch.autograd.grad(h, u, dh)
    gate = 1 - h.detach().square()
    torch.testing.assert_close(reference.gated_sweep(dh, gate, w.mT, topology.reversed()), du)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept_and_empty_batches_pass(dtype, randn):
    topology = Topology.grid(2, 3)
    x, w_ih, w_hh = (t.to(dtype) for t in (randn(0, 6, C), randn(4, H, C), randn(4, H, H)))
    mask = torch.ones(0, 6, dtype=torch.bool)
    h = reference.spatial_rnn(x, w_ih, w_hh, None, topology, mask=mask)
    assert h.shape == (0, 6, 4, H) and h.dtype == dtype
