"""What the twins of the video models share: clips without padding, the cells' equations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def each_clip(x: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """The clips (T, ..) of a batch without what lies past their ends."""
    return [clip if lengths is None else clip[: int(lengths[b])] for b, clip in enumerate(x)]


def pad(rows: Tensor, T: int) -> Tensor:
    """Rows of the valid frames as (T, ..), zero past the end."""
    return torch.cat([rows, rows.new_zeros(T - len(rows), *rows.shape[1:])])


def frame_features(encoder: nn.Module, clip: Tensor) -> Tensor:
    """(T, ..) to (T, F), one frame at a time."""
    if clip.ndim == 2:
        return clip
    rows = [torch.zeros(0, encoder.feature_size, dtype=clip.dtype)]
    for frame in clip:
        maps = encoder.backbone(frame[None])
        rows.append(maps.mean((2, 3)) if encoder.pool == "mean" else maps.reshape(1, -1))
    return torch.cat(rows)


def run_cells(recurrence: nn.Module, x: Tensor) -> Tensor:
    """States (T, D * H) of one clip (T, F), by the equations of the cells."""
    for layer in recurrence.layers:
        directions = []
        for suffix in ["", "_reverse"] if layer.bidirectional else [""]:
            w_ih, w_hh, b_ih, b_hh = (
                getattr(layer, f"{name}_l0{suffix}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = c = w_hh.new_zeros(w_hh.shape[1])
            states = []
            for step in x.flip(0) if suffix else x:
                a, r = w_ih @ step + b_ih, w_hh @ h + b_hh
                h, c = _cell(layer, a, r, h, c)
                states.append(h)
            states = torch.stack(states) if states else h.new_zeros(0, len(h))
            directions.append(states.flip(0) if suffix else states)
        x = torch.cat(directions, 1)
    return x


def _cell(layer: nn.Module, a: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step from what input (a) and state (r) put in: a GRU, an LSTM or an Elman cell."""
    if layer.mode == "GRU":
        (a_r, a_z, a_n), (r_r, r_z, r_n) = a.chunk(3), r.chunk(3)
        reset, update = torch.sigmoid(a_r + r_r), torch.sigmoid(a_z + r_z)
        return (1 - update) * torch.tanh(a_n + reset * r_n) + update * h, c
    if layer.mode == "LSTM":
        i, f, g, o = (a + r).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    return getattr(torch, layer.activation)(a + r), c
