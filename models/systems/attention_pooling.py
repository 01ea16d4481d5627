"""Where to look in a face, and which frames to listen to: spatial attention, temporal softmax.

Aminbeidokhti, Pedersoli, Cardinal, Granger, "Emotion Recognition with Spatial Attention and
Temporal Softmax Pooling", ICIAR 2019, arXiv 1910.01254. We could read its abstract, not its text:
"recalled" marks what we remember of the method, unchecked, and "SSE" what we remember of structured
self-attention (Lin et al., arXiv 1703.03130), which it builds on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from strnn_models.layers.backbone import FrameEncoder, one_of, valid
from torch import Tensor, nn

import strnn_kernels as sk


class SpatialAttention(nn.Module):
    """A = softmax over positions of W2 tanh(W1 F), and the features F A^T that its R heads pick.

    Args:
        channels: of F.
        heads: R; ours, the paper's is not known.
        attention_size: rows of W1; ours, likewise.

    There is no bias (SSE).

    Raises:
        ArgumentError: a size is not positive.
    """

    def __init__(self, channels: int, heads: int = 4, attention_size: int = 64) -> None:
        super().__init__()
        if heads < 1 or attention_size < 1:
            raise sk.ArgumentError(
                "SpatialAttention: heads and attention_size must be positive, "
                f"got {heads} and {attention_size}"
            )
        self.hidden = nn.Linear(channels, attention_size, bias=False)
        self.heads = nn.Linear(attention_size, heads, bias=False)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Picked features and attention of maps (B, T, F, rows, cols).

        Returns:
            (B, T, R, F) and (B, T, R, rows, cols).

        Raises:
            ArgumentError: maps have another shape.
        """
        channels = self.hidden.in_features
        if maps.ndim != 5 or maps.shape[2] != channels:
            raise sk.ArgumentError(
                f"SpatialAttention: maps must have shape (B, T, F, rows, cols), F = {channels}, "
                f"got {tuple(maps.shape)}"
            )
        F = maps.flatten(3)  # (B, T, F, L)
        A = self.heads(self.hidden(F.mT).tanh()).mT.softmax(-1)  # (B, T, R, L)
        return A @ F.mT, A.unflatten(-1, maps.shape[3:])


def attention_penalty(attention: Tensor, lengths: Tensor | None = None) -> Tensor:
    """||A A^T - I||_F^2 of each clip, small if heads look at few and different places.

    Args:
        attention: A, (B, T, R, rows, cols).
        lengths: int (B,), the valid frames; None: all.

    Returns:
        The mean over the valid frames of each clip, (B,).
    """
    A = attention.flatten(3)
    eye = torch.eye(A.shape[2], dtype=A.dtype, device=A.device)
    each = (A @ A.mT - eye).square().sum((2, 3))  # (B, T)
    inside = valid("attention_penalty", lengths, attention)
    if inside is None:
        return each.mean(1)
    return torch.where(inside, each, 0).sum(1) / inside.sum(1).clamp(min=1)


def temporal_softmax(scores: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One softmax over all frames and classes of a clip, summed over one or the other.

    With p[t, c] = exp(o[t, c]) / sum of exp(o) over all t and c::

        log p[c] = log of the sum over t of p[t, c] = m[c] - logsumexp(m)
        m[c]     = logsumexp over t of o[t, c]

    so that a clip's m is all that has to be kept of it: see `extend`.

    Args:
        scores: o, (B, T, K).
        lengths: int (B,), the valid frames; None: all. A clip without any has equal probabilities.

    Returns:
        log p[c], (B, K), and the weight of each frame, the sum of p[t, c] over c, (B, T).

    Raises:
        ArgumentError: a shape does not fit.
    """
    m = extend(None, scores, lengths)
    total = m.logsumexp(1, keepdim=True)
    empty = total.isneginf()
    weights = (scores.to(m).logsumexp(2) - torch.where(empty, 0, total)).exp()
    inside = valid("temporal_softmax", lengths, scores)
    return finish(m), weights if inside is None else torch.where(inside, weights, 0)


def extend(m: Tensor | None, scores: Tensor, lengths: Tensor | None = None) -> Tensor:
    """m[c] = log(exp(m[c]) + sum over t of exp(scores[t, c])), more frames of the same clips.

    Args:
        m: (B, K), what the frames so far came to; None: there are none.
        scores: of the next frames, (B, T, K).
        lengths: int (B,), how many of them are valid; None: all.

    Returns:
        (B, K), float32 at least; -inf as long as there was no frame.

    Raises:
        ArgumentError: a shape does not fit.
    """
    if scores.ndim != 3 or (m is not None and m.shape != scores[:, 0].shape):
        raise sk.ArgumentError(
            "extend: scores must have shape (B, T, K), and m (B, K), got "
            f"{tuple(scores.shape)} and {None if m is None else tuple(m.shape)}"
        )
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    inside = valid("extend", lengths, scores)
    if inside is not None:
        scores = torch.where(inside[..., None], scores, -torch.inf)
    if m is not None:
        scores = torch.cat([m[:, None], scores], 1)
    return scores.logsumexp(1)


def finish(m: Tensor) -> Tensor:
    """The log p[c] of `temporal_softmax`, (B, K): m[c] - logsumexp(m), equal where no frame was."""
    return torch.where(m.isneginf().all(1, keepdim=True), 0, m).log_softmax(1)


class Pooled(NamedTuple):
    """What `AttentionPooling` says of clips."""

    log_probs: Tensor  # (B, K)
    penalty: Tensor  # (B,), of the attention
    attention: Tensor  # (B, T, R, rows, cols), over the maps of the backbone
    frame_weights: Tensor  # (B, T), of sum 1 in each clip


class AttentionPooling(nn.Module):
    """Classes of clips: attention in each frame, scores of frames, a joint softmax over time.

    Args:
        num_classes: K; 7 (AFEW).
        backbone: frames to maps; None: the compact `FrameCNN` (recalled: VGG-16, face-trained).
        feature_size: F, see `FrameEncoder`.
        heads: R; ours, the paper's is not known.
        attention_size: rows of W1; ours, likewise.
        join: "concat", what the heads pick side by side (SSE); or "mean".
        pooling: "softmax", over frames and classes together (paper; its formula recalled); or
            "mean", the mean of the frames' probabilities, its baseline.
        dropout: of what is picked; 0, ours.
        penalty_weight: of the attention's penalty in `loss`; 1 (SSE), the paper's is not known.

    Raises:
        ArgumentError: an option is unknown.
    """

    def __init__(
        self,
        num_classes: int = 7,
        *,
        backbone: nn.Module | None = None,
        feature_size: int | None = None,
        heads: int = 4,
        attention_size: int = 64,
        join: str = "concat",
        pooling: str = "softmax",
        dropout: float = 0.0,
        penalty_weight: float = 1.0,
    ) -> None:
        super().__init__()
        one_of("AttentionPooling", "join", join, ("concat", "mean"))
        one_of("AttentionPooling", "pooling", pooling, ("softmax", "mean"))
        self.join, self.pooling, self.penalty_weight = join, pooling, penalty_weight
        self.encoder = FrameEncoder(backbone, feature_size=feature_size)
        F = self.encoder.feature_size
        self.attention = SpatialAttention(F, heads, attention_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(heads * F if join == "concat" else F, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Pooled:
        """Log-probabilities of the classes, the penalty, and what the attention looked at.

        Args:
            x: clips, (B, T, C, rows, cols).
            lengths: int (B,), the valid frames of each clip; None: all.

        Raises:
            ArgumentError: a shape does not fit.
        """
        scores, attention = self.frame_scores(x, lengths)
        if self.pooling == "mean":
            # The probabilities of a frame have the sum 1: all frames weigh the same.
            scores = scores.log_softmax(2)
        log_probs, weights = temporal_softmax(scores, lengths)
        return Pooled(log_probs, attention_penalty(attention, lengths), attention, weights)

    def frame_scores(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class scores (B, T, K) and attention (B, T, R, rows, cols) of each frame.

        For a stream, `extend` and `finish` pool the scores of one batch of frames after another.
        """
        picked, attention = self.attention(self.encoder.maps(x, lengths))
        picked = picked.flatten(2) if self.join == "concat" else picked.mean(2)
        return self.output(self.dropout(picked)), attention

    def loss(self, pooled: Pooled, labels: Tensor) -> Tensor:
        """-log p[label] + penalty_weight * the attention's penalty, the mean over clips."""
        cross_entropy = nn.functional.nll_loss(pooled.log_probs, labels)
        return cross_entropy + self.penalty_weight * pooled.penalty.mean()
