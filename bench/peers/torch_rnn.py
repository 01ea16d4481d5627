"""`torch.nn.RNN`, `GRU` and `LSTM`, what a temporal recurrence is written with.

Packed where lengths differ. The same around the layers of this package, which have torch's manners.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from strnn_kernels.testing import Case


class LayerOverTime(nn.Module):
    """A layer with batch_first, then the projection over time as an einsum where there is one.

    Args:
        layers: `torch.nn` or `strnn_kernels`.
        case: sizes, cell and directions.
        projection: (D, K, T) or None.
    """

    def __init__(self, layers: ModuleType, case: Case, projection: Tensor | None = None) -> None:
        super().__init__()
        options: dict[str, Any] = {"batch_first": True, "bidirectional": case.D == 2}
        if case.cell == "elman":
            self.rnn = layers.RNN(case.C, case.H, nonlinearity=case.activation, **options)
        else:
            self.rnn = {"gru": layers.GRU, "lstm": layers.LSTM}[case.cell](
                case.C, case.H, **options
            )
        self.is_packed = layers is nn
        self.projection = None if projection is None else nn.Parameter(projection)

    def forward(self, x: Tensor, lengths: Tensor | None = None, hx: Any = None) -> Tensor:
        """(B, T, C) -> (B, T, D*H), or (B, D, K, H) with a projection; hx as torch's."""
        T = x.shape[1]
        if lengths is None:
            h, _ = self.rnn(x, hx)
        elif self.is_packed:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            h, _ = pad_packed_sequence(self.rnn(packed, hx)[0], batch_first=True, total_length=T)
        else:
            h, _ = self.rnn(x, hx, lengths=lengths)
        if self.projection is None:
            return h
        states = h.view(h.shape[0], T, -1, self.rnn.hidden_size)
        return torch.einsum("dkt,btdh->bdkh", self.projection, states)
