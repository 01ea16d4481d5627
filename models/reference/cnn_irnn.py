"""The twin of `CNNIRNN`: clip by clip, step by step, without padding, in plain PyTorch."""

from __future__ import annotations

import torch
from strnn_models.reference.clips import each_clip, frame_features
from strnn_models.systems.cnn_irnn import CNNIRNN
from torch import Tensor


def cnn_irnn(model: CNNIRNN, x: Tensor, lengths: Tensor | None, readout: str) -> Tensor:
    """Log-probabilities (B, K), as `CNNIRNN` gives them."""
    w_in, w = model.rnn.weight_ih_l0, model.rnn.weight_hh_l0
    rows = []
    for clip in each_clip(x, lengths):
        features = frame_features(model.encoder, clip)
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
