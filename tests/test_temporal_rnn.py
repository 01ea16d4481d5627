"""temporal_rnn against nn.RNN and packed sequences, and identities of time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import strnn_kernels as sk
from strnn_kernels.notation import ACTIVATIONS

C, H = 5, 12


def arguments(rnn):
    """The parameters of an nn.RNN as temporal_rnn takes them, still attached to it."""
    suffixes = ["", "_reverse"] if rnn.bidirectional else [""]

    def stack(name):
        return torch.stack([getattr(rnn, f"{name}_l0{s}") for s in suffixes])

    bias = stack("bias_ih") + stack("bias_hh") if rnn.bias else None
    return stack("weight_ih"), stack("weight_hh"), bias


@pytest.mark.parametrize("T", [1, 2, 9])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_equals_nn_rnn(activation, bidirectional, bias, T, randn, gradients):
    rnn = nn.RNN(C, H, 1, activation, bias, True, 0, bidirectional).double()
    D = rnn.bidirectional + 1
    x, h0 = randn(4, T, C), randn(4, D, H)
    options = {"activation": activation, "bidirectional": bidirectional}
    for start in (None, h0):
        expected, _ = rnn(x, None if start is None else start.transpose(0, 1).contiguous())
        actual = sk.temporal_rnn(x, *arguments(rnn), h0=start, **options)
        assert actual.shape == (4, T, D, H)
        torch.testing.assert_close(actual.flatten(2), expected)
        leaves = [x, *([] if start is None else [h0]), *rnn.parameters()]
        found = gradients(actual.flatten(2), leaves), gradients(expected, leaves)
        for a, e in zip(*found, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("has_h0", [False, True])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_lengths_equal_packed_sequences(activation, bidirectional, has_h0, randn, gradients):
    rnn = nn.RNN(C, H, 1, activation, True, True, 0, bidirectional).double()
    B, T, D = 40, 11, rnn.bidirectional + 1
    lengths = torch.randint(1, T + 1, (B,))
    lengths[[3, 7]] = T
    x, h0 = randn(B, T, C), randn(B, D, H)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    start = h0.transpose(0, 1).contiguous() if has_h0 else None
    expected = pad_packed_sequence(rnn(packed, start)[0], batch_first=True, total_length=T)[0]
    actual = sk.temporal_rnn(
        x,
        *arguments(rnn),
        activation=activation,
        lengths=lengths,
        h0=h0 if has_h0 else None,
        bidirectional=bidirectional,
    )
    torch.testing.assert_close(actual.flatten(2), expected)
    assert (actual[torch.arange(T) >= lengths[:, None]] == 0).all()
    leaves = [x, *([h0] if has_h0 else []), *rnn.parameters()]
    for a, e in zip(gradients(actual.flatten(2), leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("T", [1, 9, 50])
@pytest.mark.parametrize("H", [1, 30, 40])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_temporal_rnn(activation, bidirectional, H, T, randn, agree):
    B, D, C = 7, 1 + bidirectional, 3
    lengths = torch.randint(0, T + 1, (B,))
    lengths[0] = 0
    x, w_ih, bias, h0 = randn(B, T, C), randn(D, H, C), randn(D, H), randn(B, D, H)
    w, G = randn(D, H, H, scale=1 / (3 * H**0.5)), randn(D, 3, T)
    fixed = {"activation": activation, "bidirectional": bidirectional}
    for length in (None, lengths):
        agree(
            lambda m, x, wi, w, b, h0, size=length: m.temporal_rnn(
                x, wi, w, b, lengths=size, h0=h0, **fixed
            ),
            *(x, w_ih, w, bias, h0),
        )
        agree(
            lambda m, x, wi, w, b, h0, G, size=length: m.temporal_rnn(
                x, wi, w, b, lengths=size, h0=h0, projection=G, **fixed
            ),
            *(x, w_ih, w, bias, h0, G),
        )


def weights(randn, D=2, H=H):
    return randn(D, H, C), randn(D, H, H, scale=0.2), randn(D, H)


def test_direction_1_is_direction_0_of_the_reversed_sequence(randn):
    x, made = randn(3, 8, C), weights(randn)
    both = sk.temporal_rnn(x, *made)
    one = [v[1:] for v in made]
    turned = sk.temporal_rnn(x.flip(1), *one, bidirectional=False).flip(1)
    torch.testing.assert_close(both[:, :, 1:], turned)


def test_equals_the_sweep_of_a_chain(randn):
    x, (w_ih, w, bias), h0 = randn(3, 8, C), weights(randn), randn(3, 2, H)
    u = torch.einsum("btc,dhc->btdh", x, w_ih) + bias
    h = sk.sweep(u, w, sk.Topology.chain(8), activation="tanh", h0=h0)
    torch.testing.assert_close(sk.temporal_rnn(x, w_ih, w, bias, activation="tanh", h0=h0), h)


def test_the_future_does_not_reach_the_past(randn):
    x, made = randn(3, 8, C), weights(randn, D=1)
    h = sk.temporal_rnn(x, *made, bidirectional=False)
    later = x.detach().clone()
    later[:, 5:] += 1
    changed = sk.temporal_rnn(later, *made, bidirectional=False)
    assert torch.equal(changed[:, :5], h[:, :5]) and (changed[:, 5:] != h[:, 5:]).any()
    (dx,) = torch.autograd.grad(h[:, 4].sum(), x)
    assert (dx[:, 5:] == 0).all() and (dx[:, 4] != 0).any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_dtype_of_lengths(dtype, randn):
    """Also lengths of zero in an unsigned dtype, for which one less than zero is not -1."""
    T, lengths = 300, [0, 5, 100]
    x, made, h0 = randn(3, T, C), weights(randn), randn(3, 2, H)
    expected = sk.reference.temporal_rnn(x, *made, lengths=torch.tensor(lengths), h0=h0)
    actual = sk.temporal_rnn(x, *made, lengths=torch.tensor(lengths, dtype=dtype), h0=h0)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(sk.temporal_rnn(x, *made, lengths=lengths, h0=h0), expected)


def test_full_lengths_change_nothing(randn, gradients):
    made, h0 = [randn(4, 6, C), *weights(randn)], randn(4, 2, H)
    plain = sk.temporal_rnn(*made, h0=h0)
    full = sk.temporal_rnn(*made, h0=h0, lengths=torch.full((4,), 6))
    torch.testing.assert_close(full, plain, rtol=1e-13, atol=1e-13)
    leaves = [*made, h0]
    for a, e in zip(gradients(full, leaves), gradients(plain, leaves), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-13, atol=1e-13)


def test_sequences_of_length_zero(randn):
    made, h0 = [randn(3, 6, C), *weights(randn)], randn(3, 2, H)
    h = sk.temporal_rnn(*made, h0=h0, lengths=torch.tensor([0, 6, 0]))
    assert (h[[0, 2]] == 0).all() and (h[1] != 0).any()
    grads = torch.autograd.grad(h.sum(), [made[0], h0])
    for g in grads:
        assert (g[[0, 2]] == 0).all() and (g[1] != 0).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("B", [1, 2, 33])
def test_padding_does_not_leak(B, bad, randn, gradients):
    T = 7
    lengths = torch.arange(B) % (T + 1)
    inside = torch.arange(T) < lengths[:, None]
    x, made, h0 = randn(B, T, C), weights(randn), randn(B, 2, H)
    found = []
    for padding in (0, bad):
        padded = torch.where(inside[..., None], x, padding).detach().requires_grad_()
        h = sk.temporal_rnn(padded, *made, activation="tanh", lengths=lengths, h0=h0)
        found.append([h, *gradients(h, [padded, *made, h0])])
    for clean, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, clean)


def test_a_long_chain(randn):
    """Twenty thousand steps: no recursion, no overflow of a table, h_n by the closed form."""
    T, a = 20_000, 0.999
    x = torch.ones(1, T, 1, dtype=torch.float64, requires_grad=True)
    one, decay = torch.ones(1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1), a).double()
    h = sk.temporal_rnn(x, one, decay, None, activation="identity", bidirectional=False)
    a = decay.item()
    steps = torch.arange(1, T + 1, dtype=torch.float64)
    torch.testing.assert_close(h.flatten(), (1 - a**steps) / (1 - a))
    (dx,) = torch.autograd.grad(h[0, -1, 0, 0], x)
    torch.testing.assert_close(dx.flatten(), a ** (T - steps))


def test_empty_batch(randn):
    made, h0 = [randn(0, 6, C), *weights(randn)], randn(0, 2, H)
    h = sk.temporal_rnn(*made, h0=h0, lengths=torch.empty(0, dtype=torch.long))
    assert h.shape == (0, 6, 2, H)
    for leaf, g in zip([*made, h0], torch.autograd.grad(h.sum(), [*made, h0]), strict=True):
        assert torch.equal(g, torch.zeros_like(leaf))
