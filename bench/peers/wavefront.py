"""The recurrence as well as plain PyTorch can do it: level by level, all directions at once.

Nodes of one dependency level are independent, so a level is one batched product over the
directions. States lie as (direction, position in level order, B, H): a level is one slice, a node
is one row of B x H numbers, and the sum over predecessors is an embedding bag over rows. One GEMM
makes U x for all nodes and directions. All index tables are made once per topology; the loop holds
nothing but the bag, the product and the activation.

Signatures and layouts are those of `strnn_kernels`. Gradients are PyTorch's own. Where no gradient
is wanted the states may overwrite U x, which saves every copy; autograd does not allow that, so it
is a second loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from strnn_kernels.notation import CELLS
from strnn_kernels.reference import split_bias
from strnn_kernels.reference import step as cell_step
from strnn_kernels.topology import Topology

ACTIVATE = {
    "identity": lambda a: a,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
ACTIVATE_ = {
    "identity": lambda a: a,
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
}


@dataclass(frozen=True)
class Bag:
    """Rows to add for each node of a level: those of node i are rows[ends[i - 1]:ends[i]]."""

    rows: Tensor
    starts: Tensor
    is_identity: bool

    @classmethod
    def of(cls, rows: list[list[int]], num_source_rows: int) -> Bag:
        """One bag per node of the level; a level that equals its source needs none."""
        starts = [0]
        for row in rows[:-1]:
            starts.append(starts[-1] + len(row))
        is_identity = rows == [[i] for i in range(num_source_rows)]
        return cls(
            torch.tensor([r for row in rows for r in row]), torch.tensor(starts), is_identity
        )

    def counts(self) -> Tensor:
        """Rows of each bag."""
        return torch.diff(self.starts, append=torch.tensor([len(self.rows)]))

    def sum(self, source: Tensor) -> Tensor:
        """(source rows, B*H) -> (nodes of the level, B*H)."""
        if self.is_identity:
            return source
        return F.embedding_bag(self.rows, source, self.starts, mode="sum")


@dataclass(frozen=True)
class Level:
    """One dependency level: its place, and its predecessors in the buffer and level by level."""

    start: int
    width: int
    in_buffer: Bag
    in_levels: tuple[tuple[int, Bag], ...]


@dataclass(frozen=True)
class Plan:
    """What is known before the numbers: order of nodes, levels, and the way back."""

    levels: tuple[Level, ...]
    node: Tensor  # (D, R) node at each position; positions that fill up a level hold node 0
    position: Tensor  # (D, N) position of each node
    source: Tensor  # (D*R) row of a (D*N, ..) tensor that belongs at each position
    directions: Tensor  # (D, 1)

    @property
    def widths(self) -> list[int]:
        """Nodes of each level, the widest direction counting."""
        return [level.width for level in self.levels]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def plan(topology: Topology) -> Plan:
    """The tables of a topology; a level is as wide as in its widest direction.

    Made outside inference mode: they are cached, and autograd refuses to save inference tensors
    later.
    """
    D, N, L = topology.num_directions, topology.num_nodes, topology.num_levels
    members = [[list(level) for level in topology.levels(d)] for d in range(D)]
    for d in range(D):
        members[d] += [[]] * (L - len(members[d]))
    widths = [max(len(members[d][level]) for d in range(D)) for level in range(L)]
    first = [sum(widths[:level]) for level in range(L)]
    R = sum(widths)
    node = torch.zeros(D, R, dtype=torch.long)
    position = torch.zeros(D, N, dtype=torch.long)
    place: list[dict[int, tuple[int, int]]] = [{} for _ in range(D)]
    for d in range(D):
        for level in range(L):
            for i, n in enumerate(members[d][level]):
                node[d, first[level] + i], position[d, n], place[d][n] = (
                    n,
                    first[level] + i,
                    (level, i),
                )

    levels = []
    for level in range(L):
        in_buffer: list[list[int]] = []
        in_levels: dict[int, list[list[int]]] = {}
        for d in range(D):
            for i in range(widths[level]):
                in_buffer.append([])
                known = i < len(members[d][level])
                for p in topology.predecessors(d, members[d][level][i]) if known else ():
                    source, j = place[d][p]
                    in_buffer[-1].append(d * R + first[source] + j)
                    bags = in_levels.setdefault(source, [[] for _ in range(D * widths[level])])
                    bags[d * widths[level] + i].append(d * widths[source] + j)
        levels.append(
            Level(
                first[level],
                widths[level],
                Bag.of(in_buffer, 0),
                tuple((s, Bag.of(rows, D * widths[s])) for s, rows in sorted(in_levels.items())),
            )
        )
    directions = torch.arange(D)[:, None]
    return Plan(tuple(levels), node, position, (directions * N + node).flatten(), directions)


def _states(
    u: Tensor,
    w: Tensor,
    table: Plan,
    activation: str,
    mask: Tensor | None,
    h0: Tensor | None,
    step: Callable[..., Tensor],
) -> Tensor:
    """(D, R, B, H) -> (D, R, B, H), differentiable: one new tensor per level, made by `step`."""
    D, _, B, H = u.shape
    wt = w.transpose(1, 2)
    starts = None if h0 is None else torch.bmm(h0.transpose(0, 1), wt)  # (D, B, H)
    keep = None if mask is None else mask.t()[table.node].to(u.dtype).unsqueeze(-1)  # (D, R, B, 1)
    h: list[Tensor] = []
    for level, a in zip(table.levels, u.split(table.widths, dim=1), strict=True):
        a = a.reshape(D, level.width * B, H)
        if starts is not None:
            a = _add_start(a, starts, level, B)
        kept = None
        if keep is not None:
            kept = keep[:, level.start : level.start + level.width].reshape(D, level.width * B, 1)
        sources = [(h[source].reshape(-1, B * H), bag) for source, bag in level.in_levels]
        h.append(step(a, sources, wt, kept, activation))
    return torch.cat([a.view(D, -1, B, H) for a in h], dim=1)


def level(
    a: Tensor, sources: list[tuple[Tensor, Bag]], wt: Tensor, keep: Tensor | None, activation: str
) -> Tensor:
    """A level of states, (D, width*B, H): keep * act(a + (sum of predecessors) wt)."""
    total = _total(sources)
    if total is not None:
        a = torch.baddbmm(a, total.view_as(a), wt)
    a = ACTIVATE[activation](a)
    return a if keep is None else a * keep


def _total(sources: list[tuple[Tensor, Bag]]) -> Tensor | None:
    total = None
    for states, bag in sources:
        part = bag.sum(states)
        total = part if total is None else total + part
    return total


def _gated_states(
    a: Tensor, w: Tensor, bias: Tensor, table: Plan, cell: str, is_mean: bool
) -> Tensor:
    """(D, R, B, G*H) -> (D, R, B, H): the loop of `_states` for a gru or an lstm."""
    D, _, B, _ = a.shape
    H, wt, number = w.shape[2], w.transpose(1, 2), CELLS.index(cell)
    h: list[Tensor] = []
    carried: list[Tensor] = []
    for level, of_input in zip(table.levels, a.split(table.widths, dim=1), strict=True):
        q, m = (
            _total([(of[source].reshape(-1, B * H), bag) for source, bag in level.in_levels])
            for of in (h, carried)
        )
        if q is None or m is None:
            q = m = a.new_zeros(D, level.width * B, H)
        elif is_mean:
            share = 1 / level.in_buffer.counts().clamp(min=1).to(a.dtype)[:, None]
            q, m = q * share, m * share
        q, m = q.view(D, -1, H), m.view(D, -1, H)
        of_state = torch.baddbmm(bias[:, None], q, wt)
        state = cell_step(number, of_input.reshape(D, level.width * B, -1), of_state, m)
        h.append(state[0])
        carried.append(state[1])
    return torch.cat([level.view(D, -1, B, H) for level in h], dim=1)


def _states_in_place(u: Tensor, w: Tensor, table: Plan, activation: str) -> Tensor:
    """(D, R, B, H) -> (D, R, B, H), in the memory of u."""
    D, R, B, H = u.shape
    act_, wt, rows = ACTIVATE_[activation], w.transpose(1, 2), u.view(D * R, B * H)
    for level in table.levels:
        a = u[:, level.start : level.start + level.width].view(D, level.width * B, H)
        if level.in_levels:
            a.baddbmm_(level.in_buffer.sum(rows).view(D, level.width * B, H), wt)
        act_(a)
    return u


def _add_start(a: Tensor, starts: Tensor, level: Level, B: int) -> Tensor:
    is_root = (level.in_buffer.counts() == 0).view(a.shape[0], level.width, 1, 1)
    return a + (is_root * starts[:, None]).view_as(a)


def _input(x: Tensor, w_ih: Tensor, bias: Tensor | None, table: Plan) -> Tensor:
    """U x + b of all nodes and directions in one product, then in level order: (D, R, B, G*H)."""
    (B, N, C), (D, GH, _) = x.shape, w_ih.shape
    rows = x.transpose(0, 1).reshape(1, N * B, C).expand(D, -1, -1)
    wt = w_ih.transpose(1, 2)
    u = torch.bmm(rows, wt) if bias is None else torch.baddbmm(bias[:, None], rows, wt)
    return u.view(D * N, B * GH).index_select(0, table.source).view(D, -1, B, GH)


def _in_node_order(h: Tensor, table: Plan) -> Tensor:
    return h[table.directions, table.position].permute(2, 1, 0, 3)


def _project(h: Tensor, projection: Tensor, table: Plan) -> Tensor:
    """Brings the projection to level order: cheaper than the states to node order."""
    (D, R, B, H), K = h.shape, projection.shape[1]
    index = table.position[:, None].expand(D, K, -1)
    columns = projection.new_zeros(D, K, R).scatter(2, index, projection)
    return torch.bmm(columns, h.view(D, R, B * H)).view(D, K, B, H).permute(2, 0, 1, 3)


@lru_cache(maxsize=64)
def _chain(length: int, bidirectional: bool) -> Topology:
    return Topology.chain(length, bidirectional=bidirectional)


@dataclass(frozen=True)
class Wavefront:
    """The functions, with the signatures of `strnn_kernels`.

    Args:
        reuses_memory: whether states overwrite U x where no gradient is wanted; a user has to
            write the loop a second time for that.
        step: what computes a level: `level`, or the same compiled.
    """

    reuses_memory: bool = False
    step: Callable[..., Tensor] = level

    def sweep(
        self,
        u: Tensor,
        w: Tensor,
        topology: Topology,
        *,
        activation: str = "relu",
        mask: Tensor | None = None,
        h0: Tensor | None = None,
    ) -> Tensor:
        """As `strnn_kernels.sweep`."""
        table = plan(topology)
        ordered = u.permute(2, 1, 0, 3)[table.directions, table.node].contiguous()
        return _in_node_order(self._recur(ordered, w, table, activation, mask, h0), table)

    def spatial_rnn(
        self,
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias: Tensor | None,
        topology: Topology,
        *,
        activation: str = "relu",
        mask: Tensor | None = None,
        h0: Tensor | None = None,
        projection: Tensor | None = None,
        cell: str = "elman",
        reduce: str | None = None,
    ) -> Tensor:
        """As `strnn_kernels.spatial_rnn`, with the h0 that `temporal_rnn` needs.

        Gated cells without a mask and h0; Elman cells with sums.
        """
        table = plan(topology)
        if cell == "elman":
            h = self._recur(_input(x, w_ih, bias, table), w_hh, table, activation, mask, h0)
        else:
            of_input, of_state = split_bias(CELLS.index(cell), bias, w_hh)
            a = _input(x, w_ih, of_input, table)
            h = _gated_states(a, w_hh, of_state, table, cell, reduce != "sum")
        return _in_node_order(h, table) if projection is None else _project(h, projection, table)

    def temporal_rnn(
        self,
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias: Tensor | None,
        *,
        activation: str = "relu",
        lengths: Tensor | None = None,
        h0: Tensor | None = None,
        bidirectional: bool = True,
        projection: Tensor | None = None,
        cell: str = "elman",
    ) -> Tensor:
        """As `strnn_kernels.temporal_rnn`; not for h0 together with lengths."""
        T = x.shape[1]
        return self.spatial_rnn(
            x,
            w_ih,
            w_hh,
            bias,
            _chain(T, bidirectional),
            activation=activation,
            mask=None if lengths is None else torch.arange(T) < lengths[:, None],
            h0=h0,
            projection=projection,
            cell=cell,
        )

    def _recur(
        self,
        u: Tensor,
        w: Tensor,
        table: Plan,
        activation: str,
        mask: Tensor | None,
        h0: Tensor | None,
    ) -> Tensor:
        can_overwrite = not torch.is_grad_enabled() and mask is None and h0 is None
        if self.reuses_memory and can_overwrite:
            return _states_in_place(u, w, table, activation)
        return _states(u, w, table, activation, mask, h0, self.step)
