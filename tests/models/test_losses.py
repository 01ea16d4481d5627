"""CCC in its three conventions, and the losses with masks."""

from __future__ import annotations

import pytest
import torch
from strnn_models.layers.losses import CombinedLoss, ccc, ccc_loss, mse, pcc

import strnn_kernels as sk

B, T, V, K = 3, 7, 2, 4


def traces():
    target = torch.randn(B, T, V, dtype=torch.float64)
    return 0.5 * target + torch.randn(B, T, V, dtype=torch.float64) + 0.3, target


def written_out(x, y, convention):
    """The formula for two lists of numbers."""
    n = len(x)
    mx, my = sum(x) / n, sum(y) / n
    v = n if convention == "population" else n - 1
    c = n - 1 if convention == "sample" else n
    var_x, var_y = (sum((a - m) ** 2 for a in z) / v for z, m in ((x, mx), (y, my)))
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / c
    return 2 * cov / (var_x + var_y + (mx - my) ** 2)


@pytest.mark.parametrize("convention", ["population", "sample", "avec"])
def test_ccc_is_the_formula(convention):
    p, t = traces()
    mask = torch.rand(B, T) < 0.7
    values, pooled = (
        ccc(p, t, mask, convention=convention),
        ccc(p, t, mask, pooled=True, convention=convention),
    )
    for v in range(V):
        for b in range(B):
            wanted = written_out(p[b, mask[b], v].tolist(), t[b, mask[b], v].tolist(), convention)
            assert values[b, v].item() == pytest.approx(wanted, abs=1e-12)
        wanted = written_out(p[..., v][mask].tolist(), t[..., v][mask].tolist(), convention)
        assert pooled[v].item() == pytest.approx(wanted, abs=1e-12)


def test_ccc_is_torchmetrics_in_the_sample_convention():
    metrics = pytest.importorskip("torchmetrics.regression")
    p, t = traces()
    metric = metrics.ConcordanceCorrCoef(num_outputs=V).double()
    wanted = metric(p.flatten(0, 1), t.flatten(0, 1))
    torch.testing.assert_close(ccc(p, t, pooled=True, convention="sample"), wanted)


def test_the_conventions_differ_by_n():
    p, t = traces()
    p, t = p - p.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    torch.testing.assert_close(ccc(p, t), ccc(p, t, convention="sample"))  # equal means: no n left
    torch.testing.assert_close(ccc(p, t, convention="avec"), ccc(p, t) * (T - 1) / T)


def test_correlation_and_error():
    p, t = traces()
    torch.testing.assert_close(
        pcc(p, t)[1, 0], torch.corrcoef(torch.stack([p[1, :, 0], t[1, :, 0]]))[0, 1]
    )
    mask = torch.rand(B, T, V) < 0.6
    torch.testing.assert_close(
        mse(p, t, mask, pooled=True)[1], ((p - t)[..., 1][mask[..., 1]] ** 2).mean()
    )
    torch.testing.assert_close(mse(p, t)[2], ((p - t)[2] ** 2).mean(0))


def test_perfect_and_opposite_traces():
    _, t = traces()
    t = t - t.mean(1, keepdim=True)
    torch.testing.assert_close(ccc(t, t), torch.ones(B, V, dtype=torch.float64))
    torch.testing.assert_close(ccc(-t, t), -torch.ones(B, V, dtype=torch.float64))
    assert ccc_loss(t, t).item() == pytest.approx(0, abs=1e-6)


def test_what_is_masked_does_not_matter():
    p, t = traces()
    mask = torch.arange(T) < torch.tensor([[T], [3], [2]])
    wanted = ccc_loss(p.requires_grad_(), t, mask)
    (slope,) = torch.autograd.grad(wanted, p)
    spoilt = torch.where(mask[..., None], t, torch.nan)
    dirty = torch.where(mask[..., None], p, torch.nan).detach().requires_grad_()
    loss = ccc_loss(dirty, spoilt, mask)
    (dirty_slope,) = torch.autograd.grad(loss, dirty)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(dirty_slope, slope)
    assert not slope[~mask].any()


def test_undefined_sequences_have_no_part():
    p, t = traces()
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0], mask[1, 1:] = False, False
    p.requires_grad_()
    assert ccc(p, t, mask)[:2].isnan().all()
    loss = ccc_loss(p, t, mask)
    torch.testing.assert_close(loss, ccc_loss(p[2:], t[2:]))
    assert torch.autograd.grad(loss, p)[0].isfinite().all()
    nothing = ccc_loss(p, t, torch.zeros_like(mask))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, p)[0].any()
    assert ccc(torch.ones(1, 3, 1), torch.ones(1, 3, 1)).isnan().all()


@pytest.mark.parametrize("pooled", [False, True])
def test_the_loss_has_the_right_slope(pooled):
    p, t = traces()
    mask = torch.arange(T) < torch.tensor([[T], [3], [2]])
    torch.autograd.gradcheck(lambda x: ccc_loss(x, t, mask, pooled=pooled), p.requires_grad_())


def test_halves_are_computed_in_single_precision():
    p, t = traces()
    value = ccc(p.bfloat16(), t.bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, ccc(p.bfloat16().float(), t.bfloat16().float()))


@pytest.mark.parametrize("kind", ["ccc", "mse"])
def test_the_combined_loss_is_its_parts(kind):
    p, t = traces()
    scores, labels = torch.randn(B, T, K, dtype=torch.float64), torch.randint(K, (B, T))
    mask = torch.arange(T) < torch.tensor([[T], [5], [4]])
    labels[0, 0], t[1, 1, 0], t[2, 2, 1] = -1, -5, torch.nan
    weights = torch.rand(K)
    loss = CombinedLoss(0.5, 2.0, kind=kind, class_weights=weights)(scores, p, labels, t, mask)
    counted = mask & (labels >= 0)
    first = torch.nn.functional.cross_entropy(scores[counted], labels[counted], weights.double())
    known = mask[..., None].repeat(1, 1, V)
    known[1, 1, 0] = known[2, 2, 1] = False
    second = (
        ccc_loss(p, t.nan_to_num(), known)
        if kind == "ccc"
        else mse(p, t.nan_to_num(), known).mean()
    )
    torch.testing.assert_close(tuple(loss), (0.5 * first + 2 * second, first, second))


def test_a_head_without_targets_is_left_out_and_still_reached():
    p, t = traces()
    scores = torch.randn(B, K, dtype=torch.float64, requires_grad=True)
    p.requires_grad_()
    labels = torch.randint(K, (B,))
    only = CombinedLoss()(scores, p, labels, None)
    torch.testing.assert_close(only.total, torch.nn.functional.cross_entropy(scores, labels))
    assert only.dimensional == 0
    only.total.backward()
    assert scores.grad.any() and not p.grad.any()
    assert CombinedLoss()(None, p, None, t).categorical == 0
    assert CombinedLoss()(scores, None, torch.full((B,), -1), None).total == 0


def test_wrong_arguments_are_refused():
    p, t = traces()
    with pytest.raises(sk.ArgumentError, match=r"\(B, T, V\)"):
        ccc(p, t[:, :3])
    with pytest.raises(sk.ArgumentError, match="mask must be bool"):
        ccc(p, t, torch.ones(B, T))
    with pytest.raises(sk.ArgumentError, match="population, sample, avec"):
        ccc(p, t, convention="lin")
    with pytest.raises(sk.ArgumentError, match="labels must be int of shape"):
        CombinedLoss()(torch.randn(B, K), p, torch.zeros(B, T, dtype=int), t)
    with pytest.raises(sk.ArgumentError, match="needs scores with labels"):
        CombinedLoss()(torch.randn(B, K), None, None, t)
