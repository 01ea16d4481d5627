"""The twin of `CategoricalDimensional`: clip by clip, step by step, in plain PyTorch."""

from __future__ import annotations

import torch
from strnn_models.reference.clips import each_clip, frame_features, pad, run_cells
from strnn_models.systems.categorical_dimensional import CategoricalDimensional
from torch import Tensor


def categorical_dimensional(
    model: CategoricalDimensional, x: Tensor, lengths: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Scores and values, as `CategoricalDimensional` gives them; without dropout."""
    scores, values = [], []
    for clip in each_clip(x, lengths):
        features = frame_features(model.encoder, clip)
        if len(model.fc):
            features = torch.relu(features @ model.fc[0].weight.T + model.fc[0].bias)
        states = run_cells(model.recurrence, features)
        if model.categories is not None:
            frames = model.categories(states)
            per_clip = sum(frames, torch.zeros_like(frames[:0].sum(0))) / max(len(clip), 1)
            scores.append(per_clip if model.per == "clip" else pad(frames, x.shape[1]))
        if model.traces is not None:
            frames = model.traces(states)
            values.append(pad(torch.tanh(frames) if model.bounded else frames, x.shape[1]))
    return tuple(torch.stack(rows) if rows else None for rows in (scores, values))
