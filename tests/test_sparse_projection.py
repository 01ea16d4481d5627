"""sparse_projection and soft_threshold_: sums by hand, exact zeros, the proximal property."""

from __future__ import annotations

import math

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels.testing import assert_zeros_are_not_read


@pytest.mark.parametrize("H", [1, 30, 33, 64, 130])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 12, 4, 3), (2, 62, 4, 10), (3, 150, 2, 7)])
def test_sparse_projection(shape, H, randn, agree):
    B, N, D, K = shape
    agree(lambda m, h, G: m.sparse_projection(h, G), randn(B, N, D, H), randn(D, K, N))


def test_sums_by_hand(randn):
    h, G = randn(3, 5, 2, 4), randn(2, 6, 5)
    s = sk.sparse_projection(h, G)
    assert s.shape == (3, 2, 6, 4)
    for b in range(3):
        for d in range(2):
            for k in range(6):
                expected = sum(G[d, k, n] * h[b, n, d] for n in range(5))
                torch.testing.assert_close(s[b, d, k], expected)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("K", [1, 9])
def test_exact_zeros(density, K, randn, gradients):
    """A zero weight still has a gradient; a row of zeros gives exact zeros."""
    h = randn(4, 20, 2, 9)
    G = randn(2, K, 20).detach()
    G[torch.rand(G.shape) >= density] = 0
    G[1, 0] = 0
    G.requires_grad_()
    s = sk.sparse_projection(h, G)
    assert (s[:, 1, 0] == 0).all()
    torch.testing.assert_close(s, torch.einsum("dkn,bndh->bdkh", G, h))
    ds = torch.randn(s.shape, dtype=torch.float64)
    dh, dG = torch.autograd.grad(s, (h, G), ds)
    torch.testing.assert_close(dh, torch.einsum("dkn,bdkh->bndh", G, ds))
    torch.testing.assert_close(dG, torch.einsum("bdkh,bndh->dkn", ds, h))
    assert (dG[G == 0] != 0).all()


@pytest.mark.parametrize("module", [sk, sk.reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_read_nothing(module, dtype):
    assert_zeros_are_not_read(module, dtype)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_fused_equals_sweep_then_projection(density, requires_grad, randn, gradients):
    t = sk.Topology.grid(6, 7)
    x, w_ih, w, bias = randn(11, 42, 3), randn(4, 30, 3), randn(4, 30, 30, scale=0.05), randn(4, 30)
    G = (randn(4, 10, 42) * (torch.rand(4, 10, 42) < density)).detach().requires_grad_()
    leaves = (x, w_ih, w, bias, G)
    with torch.set_grad_enabled(requires_grad):
        fused = sk.spatial_rnn(x, w_ih, w, bias, t, projection=G)
        apart = sk.sparse_projection(sk.spatial_rnn(x, w_ih, w, bias, t), G)
    torch.testing.assert_close(fused, apart, rtol=1e-12, atol=1e-12)
    if requires_grad:
        for a, e in zip(gradients(fused, leaves), gradients(apart, leaves), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_empty_batch(randn):
    h, G = randn(0, 5, 2, 4), randn(2, 6, 5)
    s = sk.sparse_projection(h, G)
    assert s.shape == (0, 2, 6, 4)
    dh, dG = torch.autograd.grad(s.sum(), (h, G))
    assert dh.shape == h.shape and torch.equal(dG, torch.zeros_like(G))


# soft_threshold_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("amount", [0, 0.0, 0.3, 1e-9, 5.0, math.inf])
def test_soft_threshold(amount, dtype):
    weight = torch.randn(4, 3, 50).to(dtype)
    before, version = weight.clone(), weight._version
    assert sk.soft_threshold_(weight, amount) is weight
    expected = before.sign() * (before.abs().double() - amount).clamp(min=0)
    torch.testing.assert_close(weight, expected.to(dtype))
    shrunk = before.abs().double() <= amount
    assert (weight[shrunk] == 0).all() and (weight[~shrunk] != 0).all()
    assert weight._version > version
    if amount == 0:
        assert torch.equal(weight, before)


def test_soft_threshold_is_the_proximal_step_of_the_l1_norm():
    """It minimises (z - w)^2 / 2 + amount |z|, up to the spacing of a grid of candidates."""
    weight = torch.linspace(-2, 2, 41, dtype=torch.float64)
    candidates = torch.linspace(-3, 3, 6001, dtype=torch.float64)[:, None]
    for amount in (0.1, 0.75):
        cost = (candidates - weight) ** 2 / 2 + amount * candidates.abs()
        best = candidates[cost.argmin(0), 0]
        result = sk.soft_threshold_(weight.clone(), amount)
        torch.testing.assert_close(result, best, rtol=0, atol=1e-3)


def test_soft_threshold_of_a_parameter_keeps_its_gradient():
    weight = torch.nn.Parameter(torch.tensor([1.0, -0.1, 0.2]))
    (weight**2).sum().backward()
    gradient = weight.grad.clone()
    assert sk.soft_threshold_(weight, 0.5) is weight
    assert torch.equal(weight.detach(), torch.tensor([0.5, 0.0, 0.0]))
    assert weight.is_leaf and weight.requires_grad and torch.equal(weight.grad, gradient)


def test_soft_threshold_writes_through_a_view():
    base = torch.ones(4, 6)
    sk.soft_threshold_(base.T[::2], 0.25)
    assert torch.equal(base[:, ::2], torch.full((4, 3), 0.75)) and (base[:, 1::2] == 1).all()


def test_soft_threshold_keeps_nan():
    weight = sk.soft_threshold_(torch.tensor([float("nan"), 1.0]), 0.5)
    assert weight[0].isnan() and weight[1] == 0.5


def test_soft_threshold_between_forward_and_backward_is_noticed(randn):
    G = randn(2, 3, 5)
    s = sk.sparse_projection(randn(1, 5, 2, 4), G)
    sk.soft_threshold_(G, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        s.sum().backward()
