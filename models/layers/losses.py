"""Agreement of traces (CCC, correlation, error) and the losses made of it, with masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from strnn_models.layers.backbone import one_of
from torch import Tensor, nn

import strnn_kernels as sk

CONVENTIONS = ("population", "sample", "avec")


def ccc(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    pooled: bool = False,
    convention: str = "population",
    eps: float = 0.0,
) -> Tensor:
    """Concordance, 2 cov / (var of prediction + var of target + (difference of means)^2 + eps).

    Args:
        prediction: (B, T, V), V traces such as valence and arousal; halves are taken as float32.
        target: of the same shape; where masked it may hold anything, NaN too.
        mask: bool (B, T) or (B, T, V), the steps that count; None: all.
        pooled: over all sequences together, (V,), as AVEC 2019 scores; otherwise one for each
            sequence, (B, V).
        convention: "population", variances and covariance over n (AVEC 2019's loss); "sample", all
            over n - 1 (torchmetrics' ConcordanceCorrCoef); "avec", variances over n - 1 and
            covariance over n (AVEC 2019's scoring script). They differ by a factor near 1 - 1 / n.
        eps: added to the denominator.

    Returns:
        (B, V), or (V,) if pooled; NaN where it is not defined: fewer than two steps, or, without
        eps, both traces one and the same constant.

    Raises:
        ArgumentError: shapes do not fit, or convention is unknown.
    """
    one_of("ccc", "convention", convention, CONVENTIONS)
    m = _moments("ccc", prediction, target, mask, pooled)
    of_variance = m.n - int(convention != "population")
    of_covariance = m.n - int(convention == "sample")
    variances = (m.pp + m.tt) / of_variance.clamp(min=1)
    denominator = variances + m.gap.square() + eps
    defined = (m.n >= 2) & (denominator > 0)
    value = 2 * m.pt / of_covariance.clamp(min=1) / torch.where(defined, denominator, 1)
    return torch.where(defined, value, torch.nan)


def pcc(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, pooled: bool = False
) -> Tensor:
    """Pearson's correlation of traces, as `ccc` otherwise; NaN if a trace is constant."""
    m = _moments("pcc", prediction, target, mask, pooled)
    defined = (m.pp > 0) & (m.tt > 0)
    return torch.where(defined, m.pt / torch.where(defined, m.pp * m.tt, 1).sqrt(), torch.nan)


def mse(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, pooled: bool = False
) -> Tensor:
    """Mean squared error of traces; arguments and shapes as in `ccc`, NaN if no step counts."""
    prediction, target, mask = _aligned("mse", prediction, target, mask)
    dims = (0, 1) if pooled else 1
    n = mask.sum(dims)
    value = torch.where(mask, prediction - target, 0).square().sum(dims) / n.clamp(min=1)
    return torch.where(n > 0, value, torch.nan)


def ccc_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    pooled: bool = False,
    convention: str = "population",
    eps: float = 1e-8,
) -> Tensor:
    """1 - CCC, the mean over traces and, unless pooled, over the sequences for which it is defined.

    Arguments as in `ccc`. A sequence of fewer than two valid steps has no part in it; if no
    sequence has two, the loss is zero. Pooled over a batch it depends on how the data are split
    over processes; per sequence it does not, where each process has as many sequences.

    Source: per sequence with n, as AVEC 2019's ccc_loss; the mean over valence and arousal is ours.
    """
    return _mean_defined(
        1 - ccc(prediction, target, mask, pooled=pooled, convention=convention, eps=eps)
    )


class LossTerms(NamedTuple):
    """A loss and what it is made of, scalars; a term that does not apply is zero."""

    total: Tensor
    categorical: Tensor
    dimensional: Tensor


class CombinedLoss(nn.Module):
    """categorical * cross-entropy + dimensional * (1 - mean CCC of the traces).

    The cross-entropy is the mean over all labelled frames, or clips, of the batch.

    Args:
        categorical: weight of the cross-entropy; ours, the thesis's (Xia 2018) is not known.
        dimensional: weight of the other term; ours, likewise.
        kind: of the second term: "ccc" (ours), or "mse".
        pooled: whether traces are pooled over the batch, see `ccc_loss`.
        convention: of the CCC, see `ccc`.
        class_weights: (K,), of the cross-entropy; None: all 1.
        ignore_label: labels that do not count; -1 is Aff-Wild2's.
        ignore_value: targets that do not count; -5 is Aff-Wild2's. NaN never counts.

    Raises:
        ArgumentError: an option is unknown.
    """

    def __init__(
        self,
        categorical: float = 1.0,
        dimensional: float = 1.0,
        *,
        kind: str = "ccc",
        pooled: bool = False,
        convention: str = "population",
        class_weights: Tensor | None = None,
        ignore_label: int = -1,
        ignore_value: float = -5.0,
    ) -> None:
        super().__init__()
        self.class_weights: Tensor | None
        one_of("CombinedLoss", "kind", kind, ("ccc", "mse"))
        one_of("CombinedLoss", "convention", convention, CONVENTIONS)
        self.categorical, self.dimensional = categorical, dimensional
        self.kind, self.pooled, self.convention = kind, pooled, convention
        self.ignore_label, self.ignore_value = ignore_label, ignore_value
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self,
        scores: Tensor | None,
        values: Tensor | None,
        labels: Tensor | None,
        targets: Tensor | None,
        mask: Tensor | None = None,
    ) -> LossTerms:
        """The loss; the term of a head that is None, or has nothing to learn from, is left out.

        Args:
            scores: class scores, (B, K) or (B, T, K).
            values: traces, (B, T, V).
            labels: int (B,) or (B, T), as scores are.
            targets: (B, T, V).
            mask: bool (B, T), the valid steps; None: all.

        Raises:
            ArgumentError: shapes do not fit, or there is nothing to learn at all.
        """
        first = second = None
        if scores is not None and labels is not None:
            first = self._cross_entropy(scores, labels, mask)
        if values is not None and targets is not None:
            second = self._traces(values, targets, mask)
        if first is None and second is None:
            raise sk.ArgumentError(
                "CombinedLoss: needs scores with labels, or values with targets, or both"
            )
        # The sum of nothing is a zero whose gradient reaches the head that has nothing to learn.
        heads = [head[..., :0].float().sum() for head in (scores, values) if head is not None]
        first = heads[0] if first is None else first
        second = heads[-1] if second is None else second
        return LossTerms(self.categorical * first + self.dimensional * second, first, second)

    def _cross_entropy(self, scores: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        if labels.shape != scores.shape[:-1] or labels.is_floating_point():
            raise sk.ArgumentError(
                f"CombinedLoss: labels must be int of shape {tuple(scores.shape[:-1])}, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        if labels.ndim == 2 and mask is not None:
            labels = torch.where(mask, labels, self.ignore_label)
        weight = self.class_weights if self.class_weights is None else self.class_weights.to(scores)
        losses = nn.functional.cross_entropy(
            scores.flatten(0, -2),
            labels.flatten(),
            weight,
            ignore_index=self.ignore_label,
            reduction="sum",
        )
        counted = labels != self.ignore_label
        if weight is not None:
            counted = torch.where(counted, weight[torch.where(counted, labels, 0)], 0)
        # As reduction="mean", but zero rather than NaN where no frame of the batch is labelled.
        return losses / counted.sum().clamp(min=1e-12)

    def _traces(self, values: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        known = targets.isfinite() & (targets != self.ignore_value)
        if mask is not None:
            known = known & mask[..., None]
        if self.kind == "mse":
            return _mean_defined(mse(values, targets, known, pooled=self.pooled))
        return ccc_loss(values, targets, known, pooled=self.pooled, convention=self.convention)


class _Moments(NamedTuple):
    n: Tensor  # steps that count
    gap: Tensor  # difference of the means
    pp: Tensor  # sums of squares and products about the means
    tt: Tensor
    pt: Tensor


def _moments(
    name: str, prediction: Tensor, target: Tensor, mask: Tensor | None, pooled: bool
) -> _Moments:
    prediction, target, mask = _aligned(name, prediction, target, mask)
    dims = (0, 1) if pooled else (1,)
    n = mask.sum(dims, keepdim=True)
    means = [x.sum(dims, keepdim=True) / n.clamp(min=1) for x in (prediction, target)]
    p, t = (
        torch.where(mask, x - mean, 0) for x, mean in zip((prediction, target), means, strict=True)
    )
    sums = [(a * b).sum(dims) for a, b in ((p, p), (t, t), (p, t))]
    return _Moments(n.squeeze(dims), (means[0] - means[1]).squeeze(dims), *sums)


def _aligned(
    name: str, prediction: Tensor, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both traces in a dtype of 32 bits or more, zero where masked; a mask of their shape."""
    shape = tuple(prediction.shape)
    if prediction.ndim != 3 or target.shape != prediction.shape:
        raise sk.ArgumentError(
            f"{name}: prediction and target must have shape (B, T, V), got {shape} and "
            f"{tuple(target.shape)}"
        )
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=prediction.device)
    if mask.dtype != torch.bool or mask.shape not in (shape, shape[:2]):
        raise sk.ArgumentError(
            f"{name}: mask must be bool of shape (B, T) = {shape[:2]} or (B, T, V) = {shape}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    mask = (mask if mask.ndim == 3 else mask[..., None]).expand(shape)
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    prediction, target = (torch.where(mask, x.to(dtype), 0) for x in (prediction, target))
    return prediction, target, mask


def _mean_defined(losses: Tensor) -> Tensor:
    """The mean of the entries that are not NaN; zero, with a gradient of zero, if all are."""
    defined = ~losses.isnan()
    return torch.where(defined, losses, 0).sum() / defined.sum().clamp(min=1)
