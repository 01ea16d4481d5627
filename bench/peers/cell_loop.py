"""The recurrence cell by cell in Python, built as the public STRNN code is built.

A loop over time slices, in it a loop over directions, in it a loop over cells in traversal order;
per cell one `nn.Linear` for the input, a product of the cell's 0/1 neighbour row with the states so
far, one `nn.Linear` for the sum, the activation, and the states so far grown by one with
`torch.cat`. Afterwards one `nn.Linear` per direction projects over the cells. Two things differ
from that code, so that it computes the right thing: the four directions are four, and predecessors
come from the `Topology`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from strnn_kernels.topology import Topology

ACTIVATE = {"identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class CellLoop(nn.Module):
    """Spatial RNN of one time slice, with an optional projection over the cells.

    Args:
        input_size: C.
        hidden_size: H.
        topology: the graph.
        projection_size: K, 0 for none.
        activation: name of the activation.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        topology: Topology,
        projection_size: int = 0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        D, N = topology.num_directions, topology.num_nodes
        self.hidden_size = hidden_size
        self.activation = ACTIVATE[activation]()
        self.inputs = nn.ModuleList(nn.Linear(input_size, hidden_size) for _ in range(D))
        self.recurrent = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(D)
        )
        self.orders = [[n for level in topology.levels(d) for n in level] for d in range(D)]
        self.neighbours = torch.zeros(D, N, N)
        self.back = torch.zeros(D, N, dtype=torch.long)
        for d, order in enumerate(self.orders):
            for i, n in enumerate(order):
                self.back[d, n] = i
                for p in topology.predecessors(d, n):
                    self.neighbours[d, i, order.index(p)] = 1
        self.projections = nn.ModuleList(
            nn.Linear(N, projection_size, bias=False) for _ in range(D if projection_size else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, D, H), or (B, D, K, H) with a projection."""
        B, directions = x.shape[0], []
        for d, order in enumerate(self.orders):
            states = x.new_zeros(B, 0, self.hidden_size)
            for i, n in enumerate(order):
                if i == 0:
                    total = x.new_zeros(B, self.hidden_size)
                else:
                    row = self.neighbours[d, i, :i].unsqueeze(0).repeat(B, 1, 1)
                    total = torch.matmul(row, states).squeeze(1)
                state = self.activation(self.inputs[d](x[:, n]) + self.recurrent[d](total))
                states = torch.cat((states, state.unsqueeze(1)), dim=1)
            states = states[:, self.back[d]]
            if self.projections:
                directions.append(self.projections[d](states.permute(0, 2, 1)).permute(0, 2, 1))
            else:
                directions.append(states)
        return torch.stack(directions, dim=1 if self.projections else 2)


class CellLoopOverTime(nn.Module):
    """`CellLoop` applied to one time slice after the other, results stacked over time."""

    def __init__(self, cell_loop: CellLoop) -> None:
        super().__init__()
        self.slice = cell_loop

    def forward(self, x: Tensor) -> Tensor:
        """(samples, slices, N, C) -> (samples, slices, ..)."""
        return torch.stack([self.slice(x[:, t]) for t in range(x.shape[1])], dim=1)
