"""`torch.nn.RNN`, what a temporal recurrence is written with; packed where lengths differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class TorchRNN(nn.Module):
    """nn.RNN with batch_first, then the projection over time as an einsum where there is one.

    Args:
        input_size: C.
        hidden_size: H.
        num_directions: 1 or 2.
        activation: "relu" or "tanh".
        projection: (D, K, T) or None.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_directions: int,
        activation: str,
        projection: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.rnn = nn.RNN(
            input_size,
            hidden_size,
            nonlinearity=activation,
            batch_first=True,
            bidirectional=num_directions == 2,
        )
        self.projection = None if projection is None else nn.Parameter(projection)

    def forward(self, x: Tensor, lengths: Tensor | None = None, h0: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, D*H), or (B, D, K, H) with a projection; h0 is (D, B, H)."""
        T = x.shape[1]
        if lengths is None:
            h, _ = self.rnn(x, h0)
        else:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            h, _ = pad_packed_sequence(self.rnn(packed, h0)[0], batch_first=True, total_length=T)
        if self.projection is None:
            return h
        states = h.view(h.shape[0], T, -1, self.rnn.hidden_size)
        return torch.einsum("dkt,btdh->bdkh", self.projection, states)
