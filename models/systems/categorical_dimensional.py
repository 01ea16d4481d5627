"""One trunk over video frames, two readings of it: emotion categories, and valence and arousal.

Xia, "Interpretable Deep Neural Networks for Dimensional and Categorical Emotion Recognition
in-the-wild", MSc thesis, Imperial College, 2018, arXiv 1910.05784. We could read its abstract, not
its text; "AffWildNet" is a published network of the same supervisor and time, whose code we read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from strnn_models.layers.backbone import FrameEncoder, Recurrence, one_of, valid
from torch import Tensor, nn

import strnn_kernels as sk


class Reading(NamedTuple):
    """What `CategoricalDimensional` says of a clip; the head that a mode lacks is None."""

    scores: Tensor | None  # (B, T, K), or (B, K) with per="clip"
    values: Tensor | None  # (B, T, V), zero past the end


class CategoricalDimensional(nn.Module):
    """Class scores and traces such as valence and arousal, from a CNN and a recurrence in common.

    Args:
        num_classes: K; 7 (ours, the thesis's is not known).
        num_values: V; 2, valence and arousal.
        mode: "categorical", "dimensional" or "combined": the heads there are; the thesis has a
            model of each kind, and finds categories better in a combined one.
        backbone: frames to maps or vectors; None: the compact `FrameCNN` (AffWildNet: VGG-Face or
            ResNet-50).
        pool: "mean" or "flatten", see `FrameEncoder`.
        feature_size: F, see `FrameEncoder`.
        fc_size: units of a ReLU layer between CNN and recurrence; 128 (AffWildNet with VGG-Face:
            4096; with ResNet-50: none, which is 0 here).
        dropout: after that layer, in training; 0.5 (AffWildNet).
        cell: "gru" (AffWildNet), "lstm", or "elman".
        hidden_size: H; 128 (AffWildNet).
        num_layers: 2 (AffWildNet).
        bidirectional: False (AffWildNet).
        activation: of "elman".
        per: scores for each "frame" (ours: as Aff-Wild2 is annotated), or one for a "clip", the
            mean of those of its valid frames.
        bounded: whether values go through a tanh into [-1, 1]; False (AffWildNet: linear).
        dimensional_weight: of the loss of the values, beside 1 of the categories, when
            `strnn-train` trains it; ours, the thesis's is not known.

    Raises:
        ArgumentError: an option is unknown.
    """

    def __init__(
        self,
        num_classes: int = 7,
        num_values: int = 2,
        *,
        mode: str = "combined",
        backbone: nn.Module | None = None,
        pool: str = "mean",
        feature_size: int | None = None,
        fc_size: int = 128,
        dropout: float = 0.5,
        cell: str = "gru",
        hidden_size: int = 128,
        num_layers: int = 2,
        bidirectional: bool = False,
        activation: str = "tanh",
        per: str = "frame",
        bounded: bool = False,
        dimensional_weight: float = 1.0,
    ) -> None:
        super().__init__()
        name = "CategoricalDimensional"
        one_of(name, "mode", mode, ("categorical", "dimensional", "combined"))
        one_of(name, "per", per, ("frame", "clip"))
        self.mode, self.per, self.bounded = mode, per, bounded
        self.dimensional_weight = dimensional_weight
        self.encoder = FrameEncoder(backbone, pool=pool, feature_size=feature_size)
        size = self.encoder.feature_size
        self.fc = nn.Sequential()
        if fc_size:
            self.fc = nn.Sequential(nn.Linear(size, fc_size), nn.ReLU(), nn.Dropout(dropout))
        self.recurrence = Recurrence(
            fc_size or size,
            hidden_size,
            cell=cell,
            num_layers=num_layers,
            bidirectional=bidirectional,
            activation=activation,
        )
        size = self.recurrence.output_size
        self.categories = nn.Linear(size, num_classes) if mode != "dimensional" else None
        self.traces = nn.Linear(size, num_values) if mode != "categorical" else None

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Reading:
        """Scores before the softmax, and values.

        Args:
            x: clips (B, T, C, rows, cols), or stored features (B, T, F).
            lengths: int (B,), the valid frames of each clip; None: all.

        Raises:
            ArgumentError: a shape does not fit.
        """
        states = self.recurrence(self.fc(self.encoder(x, lengths)), lengths)
        inside = valid("CategoricalDimensional", lengths, states)
        scores = values = None
        if self.categories is not None:
            scores = _within(self.categories(states), inside)
            if self.per == "clip":
                full = scores.new_full((len(scores), 1), scores.shape[1])
                count = full if inside is None else inside.sum(1, keepdim=True).clamp(min=1)
                scores = scores.sum(1) / count
        if self.traces is not None:
            values = self.traces(states)
            values = _within(values.tanh() if self.bounded else values, inside)
        return Reading(scores, values)


class CategoryMap(NamedTuple):
    """Where each of K categories lies in the space of V values; NaN for one that never occurs."""

    centres: Tensor  # (K, V), means
    spreads: Tensor  # (K, V, V), covariances over n
    counts: Tensor  # (K,), frames


def category_map(
    values: Tensor, labels: Tensor, num_classes: int, mask: Tensor | None = None
) -> CategoryMap:
    """The valence and arousal of the frames of each category, to be drawn as centres and ellipses.

    With a model's values and its own labels (`scores.argmax(-1)`) it shows how the model links its
    two readings; with annotated ones, how the annotators do.

    Args:
        values: (.., V).
        labels: int (..), of the same frames; negative: not counted.
        num_classes: K.
        mask: bool (..), the frames that count; None: all.

    Raises:
        ArgumentError: the shapes differ, or a label is not below K.
    """
    if labels.shape != values.shape[:-1]:
        raise sk.ArgumentError(
            f"category_map: labels must have shape {tuple(values.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    counted = labels >= 0 if mask is None else mask & (labels >= 0)
    values, labels = values[counted], labels[counted]
    member = labels == torch.arange(num_classes, device=labels.device)[:, None]  # (K, n)
    if int(member.sum()) != len(labels):
        raise sk.ArgumentError(f"category_map: labels must be below num_classes = {num_classes}")
    member = member.to(values)
    counts = member.sum(1)
    centres = member @ values / counts[:, None]
    offsets = values - centres[labels]  # (n, V)
    spreads = torch.einsum("kn,nv,nw->kvw", member, offsets, offsets) / counts[:, None, None]
    return CategoryMap(centres, spreads, counts)


def _within(x: Tensor, inside: Tensor | None) -> Tensor:
    return x if inside is None else torch.where(inside[..., None], x, 0)
