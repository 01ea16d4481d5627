"""Twins of the video models: clip by clip, step by step, without padding, in plain PyTorch.

Each takes a model, whose parameters it uses, and the model's arguments, and gives the model's
outputs. What the tests hold the models against; never fast. The 2-D backbone is called as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from strnn_models.attention_pooling import AttentionPooling
from strnn_models.categorical_dimensional import CategoricalDimensional
from strnn_models.cnn_irnn import CNNIRNN
from strnn_models.continuous import CNNLSTM, InflatedCNN, InflatedConv
from torch import Tensor, nn


def cnn_irnn(model: CNNIRNN, x: Tensor, lengths: Tensor | None, readout: str) -> Tensor:
    """Log-probabilities (B, K), as `CNNIRNN` gives them."""
    w_in, w = model.rnn.weight_ih_l0, model.rnn.weight_hh_l0
    rows = []
    for clip in _clips(x, lengths):
        features = _features(model.encoder, clip)
        state, states = w.new_zeros(len(w)), []
        for t in range(len(clip) - model.window + 1):
            joined = torch.cat([features[t + k] for k in range(model.window)])
            state = torch.relu(w_in @ joined + w @ state)
            states.append(state)
        scores = torch.stack(states or [state]) @ model.output.weight.T + model.output.bias
        probs = scores.exp() / scores.exp().sum(1, keepdim=True)
        if readout == "last":
            rows.append(probs[-1].log())
        elif readout == "mean":
            rows.append((sum(probs) / len(probs)).log())
        else:
            votes = torch.zeros_like(probs[0])
            for frame in probs:
                votes[frame.argmax()] += 1
            rows.append((votes / len(probs)).log())
    return torch.stack(rows)


def categorical_dimensional(
    model: CategoricalDimensional, x: Tensor, lengths: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Scores and values, as `CategoricalDimensional` gives them; without dropout."""
    scores, values = [], []
    for clip in _clips(x, lengths):
        features = _features(model.encoder, clip)
        if len(model.fc):
            features = torch.relu(features @ model.fc[0].weight.T + model.fc[0].bias)
        states = _states(model.recurrence, features)
        if model.categories is not None:
            frames = model.categories(states)
            per_clip = sum(frames, torch.zeros_like(frames[:0].sum(0))) / max(len(clip), 1)
            scores.append(per_clip if model.per == "clip" else _padded(frames, x.shape[1]))
        if model.traces is not None:
            frames = model.traces(states)
            values.append(_padded(torch.tanh(frames) if model.bounded else frames, x.shape[1]))
    return tuple(torch.stack(rows) if rows else None for rows in (scores, values))


def attention_pooling(
    model: AttentionPooling, x: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, penalties and frame weights, as `AttentionPooling` gives them."""
    w1, w2 = model.attention.hidden.weight, model.attention.heads.weight
    rows, weights, penalties = [], [], []
    for clip in _clips(x, lengths):
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
        weights.append(_padded(joint.sum(1), x.shape[1]))
    return torch.stack(rows), torch.stack(penalties), torch.stack(weights)


def cnn_lstm(model: CNNLSTM, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Traces (B, T, V), as `CNNLSTM` gives them; without dropout."""
    rows = [
        model.output(_states(model.recurrence, _features(model.encoder, clip)))
        for clip in _clips(x, lengths)
    ]
    return torch.stack([_padded(row, x.shape[1]) for row in rows])


def inflated_cnn(model: InflatedCNN, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Traces (B, T, V), as `InflatedCNN` on a `FrameCNN` gives them, by 2-D operations alone."""
    rows, T = [], x.shape[1]
    for clip in _clips(x, lengths):
        last = clip[-1:] if len(clip) else x[len(rows), :1]
        frames = torch.cat([clip, last.expand(T - len(clip), *last.shape[1:])])
        for layer in model.backbone:
            frames = _in_two_dimensions(layer, frames)
        rows.append(_padded(model.output(frames.mean((2, 3)))[: len(clip)], T))
    return torch.stack(rows)


def _clips(x: Tensor, lengths: Tensor | None) -> list[Tensor]:
    return [clip if lengths is None else clip[: int(lengths[b])] for b, clip in enumerate(x)]


def _padded(rows: Tensor, T: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(T - len(rows), *rows.shape[1:])])


def _features(encoder: nn.Module, clip: Tensor) -> Tensor:
    """(T, ..) to (T, F), one frame at a time."""
    if clip.ndim == 2:
        return clip
    rows = [torch.zeros(0, encoder.feature_size, dtype=clip.dtype)]
    for frame in clip:
        maps = encoder.backbone(frame[None])
        rows.append(maps.mean((2, 3)) if encoder.pool == "mean" else maps.reshape(1, -1))
    return torch.cat(rows)


def _states(recurrence: nn.Module, x: Tensor) -> Tensor:
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
