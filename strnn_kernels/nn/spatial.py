"""A recurrent layer over a graph as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from strnn_kernels import checks, functional
from strnn_kernels.notation import KEEP_AND_ADD, bias_rows, gates
from strnn_kernels.topology import Topology

from .projection import SparseProjection


class SpatialRNN(nn.Module):
    """h[b, n, d] = cell(W_ih[d] x[b, n] + bias[d] + W_hh[d] q), q = reduce of h[b, p, d] over p.

    p runs over pred(d, n), the nodes before n in direction d; cells and ``reduce`` as in
    :func:`strnn_kernels.spatial_rnn`.

    Elman cells start from a recurrent weight of the identity, divided by P, the largest number of
    predecessors, where these are added. A sum over P predecessors with gain 1 each would grow with
    the number of paths, that is exponentially with the grid; with gain 1 / P, or a mean, a ReLU
    state is the mean of its predecessors plus its input, which grows at most by one input per
    level, and the gradient from corner to corner of a 32 x 32 grid stays above a hundredth.

    Gated cells start from torch's weights, uniform in +-1 / sqrt(H), and from biases of zero but
    for the gate that keeps what is carried. Torch's start keeps about half of it at each step, of
    which nothing is left after the 63 levels of a 32 x 32 grid; here the gates' biases are drawn so
    that units remember for 1 to L levels, L the depth of the graph: log(u - 1), u uniform in
    2..L, and its opposite at an lstm's input gate. Without a bias the start is torch's.

    Args:
        input_size: C.
        hidden_size: H.
        topology: the graph, N nodes and D directions.
        activation: "identity", "relu", "tanh" or "sigmoid", of an Elman cell.
        bias: whether there is a bias (D, G * H), of a gru (D, 4 * H).
        projection_size: K, or None for no projection.
        cell: "elman", "gru" or "lstm".
        reduce: "sum" or "mean" of several predecessors; None: sum of Elman cells, mean of others.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        x (B, N, C) -> h (B, N, D, H), or with projection_size s (B, D, K, H).

    Raises:
        ArgumentError: an argument has the wrong type or value.

    Source: the spatial layer of STRNN; the start after Le et al., arXiv 1504.00941, divided by P,
        of gated cells after Tallec & Ollivier, arXiv 1804.11188.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        topology: Topology,
        *,
        activation: str = "relu",
        bias: bool = True,
        projection_size: int | None = None,
        cell: str = "elman",
        reduce: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        name = type(self).__name__
        C = checks.positive(name, "input_size", input_size)
        H = checks.positive(name, "hidden_size", hidden_size)
        code = checks.cell(name, cell, activation)
        checks.reduce(name, cell, reduce)
        self.topology = checks.topology(name, topology)
        self.activation, self.cell, self.reduce = activation, cell, reduce
        D, GH = topology.num_directions, gates(code) * H
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty((D, GH, C), **like))
        self.weight_hh = nn.Parameter(torch.empty((D, GH, H), **like))
        self.bias = nn.Parameter(torch.empty((D, bias_rows(code) * H), **like)) if bias else None
        self.projection = (
            None
            if projection_size is None
            else SparseProjection(D, topology.num_nodes, projection_size, **like)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        H, C = self.weight_hh.shape[2], self.weight_ih.shape[2]
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.cell == "elman":
            nn.init.uniform_(self.weight_ih, -(C**-0.5), C**-0.5)
            is_sum = not checks.reduce("SpatialRNN", self.cell, self.reduce)
            self.weight_hh.copy_(
                torch.eye(H) / (max(1, self.topology.max_predecessors) if is_sum else 1)
            )
        else:
            for weight in (self.weight_ih, self.weight_hh):
                nn.init.uniform_(weight, -(H**-0.5), H**-0.5)
            if self.bias is not None:
                keep, add = KEEP_AND_ADD[self.cell]
                of_gate = self.bias.unflatten(1, (-1, H))
                deepest = max(2, self.topology.num_levels)
                log = torch.empty_like(of_gate[:, keep]).uniform_(1, deepest - 1).log_()
                of_gate[:, keep] = log
                if add is not None:
                    of_gate[:, add] = -log
        if self.projection is not None:
            self.projection.reset_parameters()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Sweeps x (B, N, C); mask: bool (B, N), states of False nodes are zero."""
        checks.last_size("SpatialRNN", "x", x, "B N C", self.weight_ih.shape[2])
        return functional.spatial_rnn(
            x,
            self.weight_ih,
            self.weight_hh,
            self.bias,
            self.topology,
            activation=self.activation,
            mask=mask,
            projection=None if self.projection is None else self.projection.weight,
            cell=self.cell,
            reduce=self.reduce,
        )

    def extra_repr(self) -> str:
        """The sizes and options."""
        C, H = self.weight_ih.shape[2], self.weight_hh.shape[2]
        kind = f"activation={self.activation}" if self.cell == "elman" else f"cell={self.cell}"
        reduce = "" if self.reduce is None else f", reduce={self.reduce}"
        return f"{C}, {H}, {self.topology!r}, {kind}, bias={self.bias is not None}{reduce}"
