"""The twins of `CNNLSTM`, step by step, and of `InflatedCNN`, by 2-D operations alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from strnn_models.reference.clips import each_clip, frame_features, pad, run_cells
from strnn_models.systems.continuous import CNNLSTM, InflatedCNN, InflatedConv
from torch import Tensor, nn


def cnn_lstm(model: CNNLSTM, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Traces (B, T, V), as `CNNLSTM` gives them; without dropout."""
    rows = [
        model.output(run_cells(model.recurrence, frame_features(model.encoder, clip)))
        for clip in each_clip(x, lengths)
    ]
    return torch.stack([pad(row, x.shape[1]) for row in rows])


def inflated_cnn(model: InflatedCNN, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Traces (B, T, V), as `InflatedCNN` on a `FrameCNN` gives them, by 2-D operations alone."""
    rows, T = [], x.shape[1]
    for clip in each_clip(x, lengths):
        last = clip[-1:] if len(clip) else x[len(rows), :1]
        frames = torch.cat([clip, last.expand(T - len(clip), *last.shape[1:])])
        for layer in model.backbone:
            frames = _in_two_dimensions(layer, frames)
        rows.append(pad(model.output(frames.mean((2, 3)))[: len(clip)], T))
    return torch.stack(rows)


def _in_two_dimensions(layer: nn.Module, frames: Tensor) -> Tensor:
    """A layer of an inflated network, on the frames (T, C, rows, cols) of one video."""
    T = len(frames)
    if isinstance(layer, InflatedConv):
        taps, out = layer.kernel_size[0], []
        for t in range(T):
            total = 0
            for k in range(taps):
                at = t + k - taps // 2
                if 0 <= at < T or layer.time_padding == "replicate":
                    frame = frames[min(max(at, 0), T - 1)][None]
                    total = total + F.conv2d(frame, layer.weight[:, :, k], padding=layer.padding[1])
            out.append(total if layer.bias is None else total + layer.bias[:, None, None])
        return torch.cat(out)
    if isinstance(layer, nn.GroupNorm):
        groups = frames.transpose(0, 1).reshape(layer.num_groups, -1)
        mean, var = groups.mean(1, keepdim=True), groups.var(1, correction=0, keepdim=True)
        groups = (groups - mean) / (var + layer.eps).sqrt()
        frames = groups.reshape(frames.transpose(0, 1).shape).transpose(0, 1)
        return frames * layer.weight[:, None, None] + layer.bias[:, None, None]
    if isinstance(layer, nn.MaxPool3d):
        return F.max_pool2d(frames, layer.kernel_size[1:])
    return layer(frames)
