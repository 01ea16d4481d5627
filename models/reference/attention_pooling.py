"""The twin of `AttentionPooling`: clip by clip, frame by frame, in plain PyTorch."""

from __future__ import annotations

import torch
from strnn_models.reference.clips import each_clip, pad
from strnn_models.systems.attention_pooling import AttentionPooling
from torch import Tensor


def attention_pooling(
    model: AttentionPooling, x: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, penalties and frame weights, as `AttentionPooling` gives them."""
    w1, w2 = model.attention.hidden.weight, model.attention.heads.weight
    rows, weights, penalties = [], [], []
    for clip in each_clip(x, lengths):
        scores = [model.output.bias.new_zeros(0, model.output.out_features)]
        penalties.append(scores[0].sum())
        for frame in clip:
            F_map = model.encoder.backbone(frame[None])[0].flatten(1)  # (channels, L)
            logits = (w2 @ torch.tanh(w1 @ F_map)).exp()
            A = logits / logits.sum(1, keepdim=True)
            apart = torch.dist(A @ A.T, torch.eye(len(A), dtype=A.dtype)) ** 2
            penalties[-1] = penalties[-1] + apart / len(clip)
            picked = [sum(A[r, i] * F_map[:, i] for i in range(A.shape[1])) for r in range(len(A))]
            picked = torch.cat(picked) if model.join == "concat" else sum(picked) / len(picked)
            scores.append(model.output(picked)[None])
        scores = torch.cat(scores)
        if model.pooling == "mean":
            joint = scores.softmax(1) / max(len(clip), 1)
        else:
            joint = scores.exp() / scores.exp().sum()
        equal = torch.full_like(model.output.bias, 1 / model.output.out_features)
        rows.append((joint.sum(0) if len(clip) else equal).log())
        weights.append(pad(joint.sum(1), x.shape[1]))
    return torch.stack(rows), torch.stack(penalties), torch.stack(weights)
