"""Twins of the models, from torch.nn and the reference loops alone: same parameters, same results.

What the tests hold the models against. Never fast.
"""

from __future__ import annotations

from typing import Any

import torch
from strnn_models.systems.strnn import electrodes
from torch import Tensor, nn

from strnn_kernels import reference


class STRNN(nn.Module):
    """The twin of `strnn_models.STRNN`: same arguments, state_dict and shapes, slice by slice."""

    def __init__(
        self,
        num_electrodes: int | None = None,
        in_channels: int = 5,
        num_classes: int = 3,
        sample_length: int = 9,
        sp_hidden: int = 30,
        tp_hidden: int = 30,
        sp_projection: int = 10,
        tp_projection: int = 5,
        *,
        topology: Any = None,
        mask: Any = None,
        neighbourhood: str = "corner",
        activation: str = "relu",
        combine: str = "full",
        head: str = "full",
        bias: str = "recurrent",
        cell: str | tuple[str, str] = "elman",
        lambda1: float = 1e-3,
        lambda2: float = 1e-3,
    ) -> None:
        super().__init__()
        self.topology = electrodes(num_electrodes, topology, mask, neighbourhood)
        self.activation, self.lambda1, self.lambda2 = activation, lambda1, lambda2
        D, N, C, H = self.topology.num_directions, self.topology.num_nodes, in_channels, sp_hidden
        K, Kt, Ht = sp_projection, tp_projection, tp_hidden
        recurrent, everywhere = bias != "none", bias == "all"

        self.cell, of_time = (cell, cell) if isinstance(cell, str) else cell
        gates, rows = {"elman": (1, 1), "gru": (3, 4), "lstm": (4, 4)}[self.cell]
        self.spatial = nn.Module()
        self.spatial.weight_ih = _parameter(D, gates * H, C)
        self.spatial.weight_hh = _parameter(D, gates * H, H)
        self.spatial.bias = _parameter(D, rows * H) if recurrent else None
        self.spatial.projection = nn.Module()
        self.spatial.projection.weight = _parameter(D, K, N)
        self.spatial_bias = _parameter(D, K) if everywhere else None

        width = D * K * H if combine == "full" else D * K
        self.combine = nn.Module()
        self.combine.linear = nn.Linear(width, H if combine == "full" else 1, bias=everywhere)

        make = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[of_time]
        self.temporal = make(H, Ht, bias=recurrent, bidirectional=True)
        self.temporal_projection = nn.Module()
        self.temporal_projection.weight = _parameter(2, Kt, sample_length)
        self.temporal_bias = _parameter(2, Kt) if everywhere else None

        self.head = nn.Module()
        if head == "rank1":
            self.head.hidden = nn.ModuleList([nn.Linear(Ht, 1, bias=False) for _ in range(2)])
        width = 2 * Kt * Ht if head == "full" else 2 * Kt
        self.head.linear = nn.Linear(width, num_classes, bias=everywhere)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Class scores, (batch, num_classes), as `strnn_models.STRNN` gives them."""
        if x.ndim == 5:  # (B, T, C, rows, cols)
            places = self.topology.positions.tolist()
            x = torch.stack([x[:, :, :, row, col] for row, col in places], dim=2)
        B, T, N, _ = x.shape
        good = torch.ones(B, T, N, dtype=torch.bool, device=x.device)
        if mask is not None:
            good &= mask if mask.ndim == 3 else mask[:, None]
        for b in range(B if lengths is not None else 0):
            good[b, lengths[b] :] = False
        m = torch.stack([self._slice(x[:, t], good[:, t]) for t in range(T)], dim=1)
        q = self._time(m, lengths)
        if hasattr(self.head, "hidden"):
            q = torch.cat([layer(q[:, d]) for d, layer in enumerate(self.head.hidden)], dim=1)
        return self.head.linear(q.flatten(1))

    def penalty(self) -> Tensor:
        """lambda1 * sum of |G| + lambda2 * sum of |Q|."""
        G, Q = self.spatial.projection.weight, self.temporal_projection.weight
        return self.lambda1 * G.abs().sum() + self.lambda2 * Q.abs().sum()

    def _slice(self, x: Tensor, good: Tensor) -> Tensor:
        """Features m of one slice, (B, N, C) -> (B, H)."""
        rnn = self.spatial
        s = reference.spatial_rnn(
            x,
            rnn.weight_ih,
            rnn.weight_hh,
            rnn.bias,
            self.topology,
            activation=self.activation,
            mask=good,
            projection=rnn.projection.weight,
            cell=self.cell,
        )
        if self.spatial_bias is not None:
            s = s + self.spatial_bias[:, :, None]
        if self.combine.linear.out_features > 1:
            return self.combine.linear(s.flatten(1))
        return self.combine.linear(s.flatten(1, 2).transpose(1, 2))[..., 0]

    def _time(self, m: Tensor, lengths: Tensor | None) -> Tensor:
        """q, (B, T, H) -> (B, 2, K, H)."""
        rnn, T = self.temporal, m.shape[1]
        Q = self.temporal_projection.weight[:, :, :T]
        if not isinstance(rnn, nn.RNN):
            rows = []
            for b, clip in enumerate(m):
                n = T if lengths is None else int(lengths[b])
                h = rnn(clip[:n])[0] if n else clip.new_zeros(0, 2 * rnn.hidden_size)
                rows.append(torch.einsum("dkt,tdh->dkh", Q[:, :, :n], h.unflatten(1, (2, -1))))
            q = torch.stack(rows)
            return q if self.temporal_bias is None else q + self.temporal_bias[:, :, None]
        bias = None
        if rnn.bias:
            bias = torch.stack(
                [rnn.bias_ih_l0 + rnn.bias_hh_l0, rnn.bias_ih_l0_reverse + rnn.bias_hh_l0_reverse]
            )
        q = reference.temporal_rnn(
            m,
            torch.stack([rnn.weight_ih_l0, rnn.weight_ih_l0_reverse]),
            torch.stack([rnn.weight_hh_l0, rnn.weight_hh_l0_reverse]),
            bias,
            activation=self.activation,
            lengths=lengths,
            projection=Q,
        )
        return q if self.temporal_bias is None else q + self.temporal_bias[:, :, None]


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)
