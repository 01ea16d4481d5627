"""Attention pooling against its twin; the streaming softmax against the direct one."""

from __future__ import annotations

import math

import pytest
import torch
from strnn_models.reference import attention_pooling as twin
from strnn_models.systems.attention_pooling import (
    AttentionPooling,
    SpatialAttention,
    attention_penalty,
    extend,
    finish,
    temporal_softmax,
)

import strnn_kernels as sk

LENGTHS = torch.tensor([4, 0, 3])


def model(small_cnn, **options):
    options = {"backbone": small_cnn, "heads": 3, "attention_size": 5} | options
    return AttentionPooling(4, **options).double()


def clips():
    return torch.randn(3, 4, 2, 8, 12, dtype=torch.float64)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("join", ["concat", "mean"])
@pytest.mark.parametrize("pooling", ["softmax", "mean"])
def test_the_twin_agrees(small_cnn, same_gradients, lengths, join, pooling):
    net = model(small_cnn, join=join, pooling=pooling)

    def run(x):
        pooled = net(x, lengths)
        return pooled.log_probs, pooled.penalty, pooled.frame_weights

    same_gradients(net, run, lambda x: twin.attention_pooling(net, x, lengths), clips())


def test_attention_is_a_share_of_the_grid(small_cnn):
    pooled = model(small_cnn)(clips(), LENGTHS)
    assert pooled.attention.shape == (3, 4, 3, 2, 3)
    torch.testing.assert_close(pooled.attention.sum((3, 4)), torch.ones(3, 4, 3).double())
    torch.testing.assert_close(pooled.frame_weights.sum(1), torch.tensor([1.0, 0, 1]).double())
    assert not pooled.frame_weights[2, 3:].any()
    torch.testing.assert_close(pooled.log_probs.exp().sum(1), torch.ones(3).double())
    torch.testing.assert_close(pooled.log_probs[1].exp(), torch.full((4,), 0.25).double())


def test_attention_finds_a_pattern():
    attention = SpatialAttention(2, heads=1, attention_size=1)
    with torch.no_grad():
        attention.hidden.weight.copy_(torch.tensor([[0.0, 1.0]]))
        attention.heads.weight.fill_(50)
    maps = torch.zeros(1, 1, 2, 3, 4)
    maps[0, 0, :, 1, 2] = torch.tensor([7.0, 2.0])
    picked, weights = attention(maps)
    torch.testing.assert_close(picked[0, 0, 0], torch.tensor([7.0, 2.0]))
    assert weights[0, 0, 0].argmax() == 1 * 4 + 2


def test_the_penalty_is_zero_where_heads_look_at_one_place_each():
    apart = torch.eye(3, 6).view(1, 1, 3, 2, 3)
    assert attention_penalty(apart) == 0
    together = torch.eye(1, 6).expand(3, 6).reshape(1, 1, 3, 2, 3)
    assert attention_penalty(together) == 6  # the off-diagonal ones
    assert attention_penalty(torch.full((1, 1, 1, 2, 3), 1 / 6)) == pytest.approx((1 - 1 / 6) ** 2)
    two = torch.cat([apart, together], 1)
    assert attention_penalty(two) == 3
    assert attention_penalty(two, torch.tensor([1])) == 0
    assert attention_penalty(torch.cat([two, two]), torch.tensor([1, 2])).tolist() == [
        0,
        3,
    ]  # clips weigh alike


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_the_streaming_softmax_is_the_direct_one(scale):
    scores = scale * torch.randn(3, 9, 4, dtype=torch.float64)
    lengths = torch.tensor([9, 2, 5])
    log_probs, weights = temporal_softmax(scores, lengths)
    for b, n in enumerate(lengths):
        joint = scores[b, :n].flatten().softmax(0).view(n, 4)
        torch.testing.assert_close(log_probs[b].exp(), joint.sum(0))
        torch.testing.assert_close(weights[b], torch.cat([joint.sum(1), torch.zeros(9 - n)]))
    m = None
    for start in range(0, 9, 2):  # frames come two at a time, and past some ends none
        m = extend(m, scores[:, start : start + 2], (lengths - start).clamp(0, min(2, 9 - start)))
    torch.testing.assert_close(finish(m), log_probs)


def test_scores_that_overflow_do_not():
    scores = torch.tensor([[[1e4, 0.0], [1e4, 1e4]]]).half()
    log_probs, weights = temporal_softmax(scores)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[2 / 3, 1 / 3]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 2 / 3]]), rtol=0, atol=1e-3)


def test_the_softmax_has_the_right_slope_and_none_past_the_end():
    scores = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 0, 3])
    torch.autograd.gradcheck(lambda s: temporal_softmax(s, lengths), scores)
    (slope,) = torch.autograd.grad(temporal_softmax(scores, lengths)[0][:, 0].sum(), scores)
    assert not slope[1].any()
    assert not slope[2, 3:].any()
    spoilt = scores.detach().clone()
    spoilt[1], spoilt[2, 3:] = torch.nan, torch.inf
    torch.testing.assert_close(temporal_softmax(spoilt, lengths), temporal_softmax(scores, lengths))


def test_a_frame_that_is_sure_outweighs_many_that_are_not():
    scores = torch.zeros(1, 10, 3)
    scores[0, 4, 2] = 8
    log_probs, weights = temporal_softmax(scores)
    assert log_probs.argmax() == 2
    assert weights[0, 4] > 0.9
    mean, equal = temporal_softmax(scores.log_softmax(2))
    torch.testing.assert_close(equal, torch.full((1, 10), 0.1))
    torch.testing.assert_close(mean.exp(), scores.softmax(2).mean(1))


def test_the_loss_is_likelihood_and_penalty(small_cnn):
    net, labels = model(small_cnn, penalty_weight=0.5), torch.tensor([0, 1, 3])
    pooled = net(clips(), LENGTHS)
    wanted = -(pooled.log_probs[0, 0] + math.log(0.25) + pooled.log_probs[2, 3]) / 3
    torch.testing.assert_close(net.loss(pooled, labels), wanted + 0.5 * pooled.penalty.mean())


def test_gradients_of_the_input_in_eval_mode(small_cnn):
    net = model(small_cnn).eval()
    x = clips().requires_grad_()
    net(x, LENGTHS).log_probs[:, 1].sum().backward()
    assert x.grad[0].flatten(1).any(1).all()
    assert not x.grad[1].any()
    assert not x.grad[2, 3:].any()


def test_wrong_arguments_are_refused(small_cnn):
    with pytest.raises(sk.ArgumentError, match="concat, mean"):
        model(small_cnn, join="sum")
    with pytest.raises(sk.ArgumentError, match="heads and attention_size must be positive"):
        model(small_cnn, heads=0)
    with pytest.raises(sk.ArgumentError, match="softmax, mean"):
        model(small_cnn, pooling="max")
    with pytest.raises(sk.ArgumentError, match="x must have shape"):
        model(small_cnn)(torch.randn(3, 4, 6))
    with pytest.raises(sk.ArgumentError, match="F = 6"):
        model(small_cnn).attention(torch.randn(3, 4, 5, 2, 2))
    with pytest.raises(sk.ArgumentError, match="lengths"):
        temporal_softmax(torch.randn(2, 3, 4), torch.tensor([1, 4]))
    with pytest.raises(sk.ArgumentError, match=r"m \(B, K\)"):
        extend(torch.zeros(2, 5), torch.randn(2, 3, 4))
