"""The sweep of a program's tables in differentiable PyTorch, level by level.

What stands in where a derivative has no kernel: second derivatives and tangents of gated cells and
of means. It follows the same tables as the backends, so it needs no Topology, and computes a level
at a time; :mod:`strnn_kernels.reference`, the oracle, computes a node at a time from a Topology.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .notation import CELLS
from .reference import live, sparse_projection, split_bias, step
from .schema import directions
from .topology import Topology


class States(NamedTuple):
    """What a sweep gives, in the order of the op sweep_fwd."""

    h: Tensor
    s: Tensor | None
    c: Tensor
    h_n: Tensor
    c_n: Tensor


class Visits(NamedTuple):
    """One direction of a program as lists: nodes by level, and the predecessors of each node."""

    levels: list[list[int]]
    before: dict[int, list[int]]

    @property
    def order(self) -> list[int]:
        """The nodes in the order of their visits."""
        return [n for level in self.levels for n in level]


def program_of(x: Tensor, w_hh, program: Tensor | None, sizes, first: int) -> tuple[Tensor, list]:
    """A program and its (groups, slots): those given, or without any the chain's.

    Args:
        x: (B, N, ...).
        w_hh: the list of recurrent weights.
        program: the table that an op was given (schema.py).
        sizes: of the op.
        first: 0 for the program, 2 for the reversed one.
    """
    if program is not None:
        return program, sizes[first : first + 2]
    topology = Topology.chain(x.shape[1], bidirectional=directions(w_hh) == 2)
    chain = (topology.reversed() if first else topology).program("levels")
    return chain.table(x.device), [chain.num_groups, chain.num_slots]


def visits(program: Tensor, N: int, D: int, groups: int) -> list[Visits]:
    """Every direction of a program (csrc/common/program.h)."""
    table = program.tolist()
    group_at = 3 * D * N
    pred_at = group_at + D * (groups + 1)
    edges_at = pred_at + D * (N + 1)
    nodes_at = edges_at + (len(table) - edges_at) // 2
    found = []
    for d in range(D):
        node = table[d * N : (d + 1) * N]
        group = table[group_at + d * (groups + 1) :][: groups + 1]
        pred = table[pred_at + d * (N + 1) :][: N + 1]
        found.append(
            Visits(
                [node[a:b] for a, b in pairwise(group) if b > a],
                {n: table[nodes_at + pred[i] : nodes_at + pred[i + 1]] for i, n in enumerate(node)},
            )
        )
    return found


def stacked(cell: int, weights, bias=None) -> Tensor | None:
    """A list of weights (schema.py) as one tensor (D, ...); None for none.

    With `bias`, the weights are biases: b_ih and b_hh of every direction in turn.
    """
    if not weights:
        return None
    if len(weights) == 1 and weights[0].dim() == (2 if bias else 3):
        return weights[0]
    if not bias:
        return torch.stack(list(weights))
    rows = []
    for b_ih, b_hh in zip(weights[::2], weights[1::2], strict=True):
        if CELLS[cell] == "gru":
            H = b_ih.shape[0] // 3
            rows.append(torch.cat([b_ih[: 2 * H] + b_hh[: 2 * H], b_ih[2 * H :], b_hh[2 * H :]]))
        else:
            rows.append(b_ih + b_hh)
    return torch.stack(rows)


def last_visit(mask: Tensor | None, order: list[int] | Tensor, B: int, device) -> Tensor:
    """The last node in the order that the mask (B, N) leaves, (B,); -1 where it leaves none."""
    nodes = torch.as_tensor(order, device=device)
    if mask is None:
        return nodes[-1:].expand(B)
    position = torch.where(mask[:, nodes], torch.arange(1, len(order) + 1, device=device), 0)
    at = position.amax(1)
    return torch.where(at > 0, nodes[(at - 1).clamp(min=0)], -1)


def last_state(states: Tensor, start: Tensor | None, at: Tensor) -> Tensor:
    """The states (B, N, H) at node `at` (B,), and where that is -1 the start (B, H) or zero."""
    index = at.clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
    value = states.gather(1, index)[:, 0]
    return torch.where((at >= 0)[:, None], value, 0 if start is None else start)


def sweep(
    x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, sizes, cell, mean
) -> States:
    """The op sweep_fwd (schema.py) with all of its outputs, differentiable any number of times."""
    w_ih, w_hh = stacked(cell, w_ih), stacked(cell, w_hh)
    bias = stacked(cell, bias, bias=True)
    B, N, D, H = *x.shape[:2], w_hh.shape[0], w_hh.shape[2]
    carries = CELLS[cell] == "lstm"
    of_input_bias, of_state_bias = split_bias(cell, bias, w_hh)
    if w_ih is None:
        of_input = live(None if mask is None else mask[..., None], x)
    else:
        of_input = torch.einsum("bnc,dgc->bndg", live(mask, x), w_ih) + of_input_bias
    # Of an lstm h and c, of other cells, which carry h, that alone.
    starts = (h0, c0) if carries else (h0,)
    every: list[list[Tensor]] = [[] for _ in starts]
    last: list[list[Tensor]] = [[] for _ in starts]
    for d, direction in enumerate(visits(program, N, D, sizes[0])):
        known: list[list[Tensor]] = [[] for _ in starts]  # of each level so far, (B, nodes, H)
        row = {n: i for i, n in enumerate(direction.order)}
        for level in direction.levels:
            before = [[row[p] for p in direction.before[n]] for n in level]
            reached = []
            for states, start in zip(known, starts, strict=True):
                total = _sum_predecessors(states, before, mean, of_input[:, :1, d, :H])
                if start is not None:
                    enters = _entering(entry, d, level, before, x.device)
                    total = total + torch.where(enters, start[:, None, d], 0)
                reached.append(total)
            of_state = reached[0] @ w_hh[d].T + of_state_bias[d]
            state = step(cell, of_input[:, level, d], of_state, reached[-1])
            for states, value in zip(known, state, strict=False):
                states.append(live(None if mask is None else mask[:, level], value))
        at = last_visit(mask, direction.order, B, x.device)
        nodes = torch.tensor([row[n] for n in range(N)], device=x.device)
        for k, start in enumerate(starts):
            every[k].append(torch.cat(known[k], 1).index_select(1, nodes))
            last[k].append(last_state(every[k][-1], None if start is None else start[:, d], at))
    h, c = torch.stack(every[0], 2), torch.stack(every[-1], 2)
    s = None if projection is None else sparse_projection(h, projection)
    return States(h, s, c, torch.stack(last[0]), torch.stack(last[-1]))


def _sum_predecessors(states, before, mean, like):
    """Sums or means (B, nodes, H) over the rows `before` of each node; rows count from level 0.

    `like` (B, 1, H) is what a state looks like.
    """
    nothing = torch.zeros_like(like)
    P = max(map(len, before))
    if P == 0:
        return nothing.expand(-1, len(before), -1)
    # Only the levels that are read, with a row of zeros in front for nodes with fewer than P.
    first, skipped = 0, 0
    while skipped + states[first].shape[1] <= min(min(rows) for rows in before if rows):
        skipped += states[first].shape[1]
        first += 1
    known = torch.cat([nothing, *states[first:]], 1)
    index = [[r - skipped + 1 for r in rows] + [0] * (P - len(rows)) for rows in before]
    read = known.index_select(1, torch.tensor(index, device=known.device).flatten())
    total = read.unflatten(1, (len(before), P)).sum(2)
    if not mean:
        return total
    counts = [[max(1, len(rows))] for rows in before]
    return total / torch.tensor(counts, device=total.device, dtype=total.dtype)


def _entering(entry, d, level, before, device):
    """Where h0 and c0 enter a level, bool (B or 1, nodes, 1)."""
    if entry is None:
        return torch.tensor([[[not rows] for rows in before]], device=device)
    return (entry[:, d, None] == torch.tensor(level, device=device))[..., None]
