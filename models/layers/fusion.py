"""Fusion of modalities: of their features by a network, of their decisions by weights for classes.

As in Ebrahimi Kahou et al., ICMI 2015, see `cnn_irnn`; "code" is the authors' published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

import strnn_kernels as sk


class FeatureFusion(nn.Module):
    """A network over the features of several modalities: one layer each, joined, one layer, scores.

    Args:
        sizes: features of each modality.
        hidden: units of each modality's layer; 100, 10, 50 for CNN, audio and RNN (code).
        fused: units of the common layer; 70 (code).
        num_classes: 7 (code).
        dropout: after the common layer; 0.3 (code).
        penalty_weight: 3e-5 (code).

    Raises:
        ArgumentError: sizes and hidden differ in number.

    The activation is max(0, tanh) (code). The code trains by SGD, rate 0.1, batches of 128.

    Source: Fusion/fusion.py of the code, after Wu et al., "Modeling Spatial-Temporal Clues in a
        Hybrid Deep Learning Framework for Video Classification".
    """

    def __init__(
        self,
        sizes: Sequence[int],
        hidden: Sequence[int] = (100, 10, 50),
        fused: int = 70,
        num_classes: int = 7,
        *,
        dropout: float = 0.3,
        penalty_weight: float = 3e-5,
    ) -> None:
        super().__init__()
        if len(sizes) != len(hidden):
            raise sk.ArgumentError(
                f"FeatureFusion: hidden must have {len(sizes)} entries, one for each modality, "
                f"got {len(hidden)}"
            )
        self.sizes, self.penalty_weight = tuple(sizes), penalty_weight
        self.modalities = nn.ModuleList(map(nn.Linear, sizes, hidden))
        self.fusion = nn.Linear(sum(hidden), fused)
        self.output = nn.Linear(fused, num_classes)
        self.dropout = nn.Dropout(dropout)
        for layer in (*self.modalities, self.fusion, self.output):
            nn.init.zeros_(layer.bias)  # the code's start; its weights' is torch.nn's own

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class scores (B, num_classes) of one tensor (B, size) for each modality."""
        if tuple(f.shape[-1] for f in features) != self.sizes:
            raise sk.ArgumentError(
                f"FeatureFusion: features must have shapes (B, size) with sizes {self.sizes}, "
                f"got {[tuple(f.shape) for f in features]}"
            )
        hidden = [
            layer(f).tanh().relu() for layer, f in zip(self.modalities, features, strict=True)
        ]
        return self.output(self.dropout(self.fusion(torch.cat(hidden, 1)).tanh().relu()))

    def penalty(self) -> Tensor:
        """penalty_weight * (||W||^2 of all weights + L1 and L21 of the modalities'), a loss term.

        L21 is the sum over input features of the norm of the weights that leave it: it lets go of
        features as a whole.
        """
        weights = [layer.weight for layer in self.modalities]
        squares = sum(w.square().sum() for w in [*weights, self.fusion.weight, self.output.weight])
        # The slope of a norm at zero is taken as zero by clamping its square away from zero.
        groups = sum(w.square().sum(0).clamp(min=1e-24).sqrt().sum() for w in weights)
        return self.penalty_weight * (squares + sum(w.abs().sum() for w in weights) + groups)


class DecisionFusion(NamedTuple):
    """Weights (M, K) of M modalities for K classes, whose names, and the accuracy they reached."""

    names: tuple[str, ...]
    weights: Tensor
    accuracy: float


def fuse_decisions(probabilities: Tensor, weights: Tensor) -> Tensor:
    """The sum over m of weights[m, k] probabilities[m, n, k]: (M, n, K), (M, K) to (n, K)."""
    return torch.einsum("mnk,mk->nk", probabilities, weights)


def search_decision_weights(
    probabilities: Mapping[str, Tensor],
    labels: Tensor,
    *,
    samples: int = 100_000,
    local_samples: int = 100_000,
    std: float = 0.5,
    decay: float = 0.9,
    smallest: float = 1e-4,
    generator: torch.Generator | None = None,
) -> DecisionFusion:
    """Weights per class and modality of the highest accuracy that a random search finds.

    Weights of a class sum to 1 over the modalities. Uniform samples come first, then rounds of
    normal samples around the best, of smaller and smaller deviation. Where the search starts from,
    each modality alone and equal weights, is ours; with it, the result is at least as good as any
    of these. Accuracy on the clips that it was searched on is no estimate of anything: keep others.

    Args:
        probabilities: of each modality, (n, K), for the same n clips.
        labels: int (n,).
        samples: uniform samples; 100,000 (code).
        local_samples: normal samples in each round; 100,000 (code).
        std: deviation in the first round; 0.5 (code).
        decay: what it is multiplied by after each round; 0.9 (code).
        smallest: rounds end when the deviation falls to this; 1e-4 (code).
        generator: source of the random numbers.

    Raises:
        ArgumentError: shapes do not fit.

    Source: RandomSearch/ of the code.
    """
    names = tuple(probabilities)
    shapes = [tuple(p.shape) for p in probabilities.values()]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2 or shapes[0][0] != len(labels):
        raise sk.ArgumentError(
            "search_decision_weights: probabilities must all have shape (n, K) with n = "
            f"{len(labels)}, got {shapes}"
        )
    stacked = torch.stack(list(probabilities.values()))
    M, _, K = stacked.shape
    options = {"generator": generator, "dtype": stacked.dtype, "device": stacked.device}
    alone = torch.eye(M).to(stacked)[..., None].expand(M, M, K)
    best, accuracy = _best(stacked, labels, torch.cat([alone.mean(0, keepdim=True), alone]))
    candidates = torch.rand((samples, M, K), **options)
    while True:
        sums = candidates.sum(1, keepdim=True)
        found = _best(stacked, labels, torch.where(sums > 0, candidates / sums, 1 / M))
        if found[1] > accuracy:
            best, accuracy = found
        if accuracy == 1 or std <= smallest:
            return DecisionFusion(names, best, accuracy)
        candidates = best + std * torch.randn((local_samples, M, K), **options)
        candidates = candidates.clamp(min=0)
        std *= decay


def search_subsets(
    probabilities: Mapping[str, Tensor], labels: Tensor, **options: object
) -> list[DecisionFusion]:
    """`search_decision_weights` over every subset of two modalities or more, best first (code)."""
    names = list(probabilities)
    subsets = [s for size in range(2, len(names) + 1) for s in combinations(names, size)]
    found = [
        search_decision_weights({n: probabilities[n] for n in subset}, labels, **options)
        for subset in subsets
    ]
    return sorted(found, key=lambda fusion: -fusion.accuracy)


def _best(stacked: Tensor, labels: Tensor, candidates: Tensor) -> tuple[Tensor, float]:
    """The first of the candidates (S, M, K) with the highest accuracy, piece by piece."""
    piece = max(1, 2_000_000 // max(1, stacked[0].numel()))
    hits = torch.cat(
        [
            (torch.einsum("smk,mnk->snk", w, stacked).argmax(2) == labels).sum(1)
            for w in candidates.split(piece)
        ]
    )
    at = int(hits.argmax())
    return candidates[at], int(hits[at]) / len(labels)
