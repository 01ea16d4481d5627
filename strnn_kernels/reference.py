"""Every op as a plain loop over nodes or time steps, in PyTorch, with native autograd.

The oracle of this package: the tests hold every backend against these functions. They work for
any floating dtype on any device, are differentiable any number of times, and are never optimised.
Arguments are taken as already checked. Letters as in `strnn_kernels.notation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strnn_kernels.notation import CELLS, gates
from strnn_kernels.topology import Topology

ACT = {"identity": lambda a: a, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def step(cell: int, of_input: Tensor, of_state: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """A node's state, and what it carries, from what reaches it: the cells' formulas.

    Args:
        cell: its place in `strnn_kernels.notation.CELLS`.
        of_input: w_ih x + its bias, (..., G * H).
        of_state: w_hh q, of a gru with the bias b_hn, (..., G * H).
        m: what the predecessors carry, (..., H).

    Returns:
        h and what is carried, (..., H) each; what an Elman cell and a gru carry is h.
    """
    name, G = CELLS[cell], gates(cell)
    if name == "gru":
        (rx, zx, nx), (rh, zh, nh) = of_input.chunk(G, -1), of_state.chunk(G, -1)
        r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
        n = torch.tanh(nx + r * nh)
        h = (1 - z) * n + z * m
        return h, h
    if name == "lstm":
        i, f, g, o = (of_input + of_state).chunk(G, -1)
        c = torch.sigmoid(f) * m + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    h = ACT[name](of_input + of_state)
    return h, h


def split_bias(cell: int, bias: Tensor | None, w_hh: Tensor) -> tuple[Tensor, Tensor]:
    """What of a bias (D, rows) belongs to the input's side and what to the state's, (D, G * H)."""
    zeros = w_hh.new_zeros(w_hh.shape[:2])
    if bias is None:
        return zeros, zeros
    if CELLS[cell] != "gru":
        return bias, zeros
    H = w_hh.shape[2]
    r_z_n, of_state = bias[:, : 3 * H], bias[:, 3 * H :]
    return r_z_n, torch.cat([torch.zeros_like(r_z_n[:, : 2 * H]), of_state], 1)


def live(mask: Tensor | None, value: Tensor) -> Tensor:
    """The value (B, ..., X) where mask (B, ...) is True, else 0 without a gradient."""
    return value if mask is None else torch.where(mask[..., None], value, 0)


def _recur(
    cell: int,
    of_input: Tensor,
    w_hh: Tensor,
    bias: Tensor,
    topology: Topology,
    mean: bool,
    mask: Tensor | None = None,
    h0: Tensor | None = None,
) -> Tensor:
    """The states (B, N, D, H) over a graph; of_input (B, N, D, G * H), bias (D, G * H)."""
    B, N, D, _ = of_input.shape
    # A masked argument is replaced as well as its result: 0 times the derivative of a NaN is a NaN.
    of_node = live(None if mask is None else mask[..., None], of_input).unbind(1)
    directions = []
    for d in range(D):
        zero = of_input.new_zeros(B, w_hh.shape[2])
        start = zero if h0 is None else h0[:, d]
        h: dict[int, Tensor] = {}
        carried: dict[int, Tensor] = {}
        for level in topology.levels(d):
            for n in level:
                before = topology.predecessors(d, n)
                q, m = (sum((of[p] for p in before), zero) for of in (h, carried))
                if mean and before:
                    q, m = q / len(before), m / len(before)
                if not before:
                    q, m = start, zero if CELLS[cell] == "lstm" else start
                of_state = q @ w_hh[d].T + bias[d]
                state = step(cell, of_node[n][:, d], of_state, m)
                h[n], carried[n] = (live(None if mask is None else mask[:, n], v) for v in state)
        directions.append(torch.stack([h[n] for n in range(N)], dim=1))
    return torch.stack(directions, dim=2)


def sweep(
    u: Tensor,
    w: Tensor,
    topology: Topology,
    *,
    activation: str = "relu",
    mask: Tensor | None = None,
    h0: Tensor | None = None,
) -> Tensor:
    """h[b,n,d] = mask[b,n] * act(u[b,n,d] + W[d] @ sum over p in pred(d,n) of h[b,p,d]).

    Args:
        u: pre-activations, (B, N, D, H).
        w: recurrent weights, (D, H, H).
        topology: who precedes whom, in each of the D directions.
        activation: "identity", "relu", "tanh" or "sigmoid".
        mask: bool (B, N). Where False the state is exactly 0, whatever u holds there, and no
            gradient passes.
        h0: (B, D, H), the predecessor of every node that has no other.

    Returns:
        The states h, (B, N, D, H).
    """
    bias = split_bias(CELLS.index(activation), None, w)[1]
    return _recur(CELLS.index(activation), u, w, bias, topology, False, mask, h0)


def gated_sweep(g: Tensor, gate: Tensor, w: Tensor, topology: Topology) -> Tensor:
    """y[b,n,d] = gate[b,n,d] * (g[b,n,d] + W[d] @ sum over p in pred(d,n) of y[b,p,d]).

    Args:
        g: (B, N, D, H).
        gate: (B, N, D, H).
        w: (D, H, H).
        topology: who precedes whom; reversed, and with W transposed, it gives the derivative of a
            sweep.

    Returns:
        y, (B, N, D, H).
    """
    _, N, D, _ = g.shape
    of_node, gate_of_node = g.unbind(1), gate.unbind(1)
    directions = []
    for d in range(D):
        y: dict[int, Tensor] = {}
        for level in topology.levels(d):
            for n in level:
                a = of_node[n][:, d]
                predecessors = [y[p] for p in topology.predecessors(d, n)]
                if predecessors:
                    a = a + sum(predecessors[1:], predecessors[0]) @ w[d].T
                y[n] = gate_of_node[n][:, d] * a
        directions.append(torch.stack([y[n] for n in range(N)], dim=1))
    return torch.stack(directions, dim=2)


def sparse_projection(h: Tensor, weight: Tensor) -> Tensor:
    """s[b,d,k] = sum over n of G[d,k,n] * h[b,n,d].

    Args:
        h: states, (B, N, D, H).
        weight: G, (D, K, N).

    Returns:
        s, (B, D, K, H).
    """
    # A weight of zero does not read its state, which may be infinite.
    s = torch.einsum("dkn,bndh->bdkh", weight, torch.where(h.isfinite(), h, 0))
    unfinite = torch.where(h.isfinite(), 0, h)
    for n in range(h.shape[1]):
        read = weight[:, :, n] != 0
        s = s + torch.where(read[..., None], weight[:, :, n, None] * unfinite[:, n, :, None], 0)
    return s


def spatial_rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    topology: Topology,
    *,
    activation: str = "relu",
    mask: Tensor | None = None,
    projection: Tensor | None = None,
    cell: str = "elman",
    reduce: str | None = None,
) -> Tensor:
    """The sweep of a cell, then the sparse projection if one is given.

    Args:
        x: (B, N, C).
        w_ih: (D, G * H, C).
        w_hh: (D, G * H, H).
        bias: (D, G * H), of a gru (D, 4 * H), or None.
        topology: who precedes whom, in each of the D directions.
        activation: as in `sweep`, of an Elman cell.
        mask: bool (B, N), as in `sweep`; x is not looked at where it is False.
        projection: (D, K, N) or None.
        cell: "elman", "gru" or "lstm".
        reduce: "sum" or "mean" of several predecessors; None: sum of Elman cells, else mean.

    Returns:
        The states (B, N, D, H), or (B, D, K, H) with a projection.
    """
    code = CELLS.index(activation if cell == "elman" else cell)
    of_input_bias, of_state_bias = split_bias(code, bias, w_hh)
    of_input = torch.einsum("bnc,dgc->bndg", live(mask, x), w_ih) + of_input_bias
    mean = reduce == "mean" or (reduce is None and cell != "elman")
    h = _recur(code, of_input, w_hh, of_state_bias, topology, mean, mask)
    return h if projection is None else sparse_projection(h, projection)


def temporal_rnn(
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
    c0: Tensor | None = None,
    return_carry: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """A layer over time: the cell at t reads x[b,t] and the state of t-1, of t+1 in direction 1.

    Args:
        x: (B, T, C).
        w_ih: (D, G * H, C), where D is 2, or 1 if not bidirectional.
        w_hh: (D, G * H, H).
        bias: (D, G * H), of a gru (D, 4 * H), or None.
        activation: as in `sweep`, of an Elman cell.
        lengths: int (B,), each from 0 to T. Steps past the end give 0, and x is not looked at
            there; direction 1 starts at the last step within the length.
        h0: (B, D, H), the state before the first step of each direction; zero if None.
        bidirectional: whether there is a direction 1, backward in time.
        projection: (D, K, T) or None.
        cell: "elman", "gru" or "lstm".
        c0: (B, D, H), of an lstm, what is carried before the first step.
        return_carry: whether an lstm's c is returned too.

    Returns:
        The states (B, T, D, H), or (B, D, K, H) with a projection; with return_carry a pair, c
        (B, T, D, H) second.
    """
    B, T, _ = x.shape
    D, H = (2 if bidirectional else 1), w_hh.shape[-1]
    code = CELLS.index(activation if cell == "elman" else cell)
    inside = None
    if lengths is not None:
        inside = torch.arange(T, device=x.device) < lengths.to(x.device)[:, None]  # (B, T)
    of_input_bias, of_state_bias = split_bias(code, bias, w_hh)
    of_input = torch.einsum("btc,dgc->btdg", live(inside, x), w_ih) + of_input_bias
    states, carries = [], []
    for d in range(D):
        h = of_input.new_zeros(B, H) if h0 is None else h0[:, d]
        c = (of_input.new_zeros(B, H) if c0 is None else c0[:, d]) if cell == "lstm" else h
        of_time: dict[int, tuple[Tensor, Tensor]] = {}
        for t in range(T) if d == 0 else reversed(range(T)):
            of_state = h @ w_hh[d].T + of_state_bias[d]
            new_h, new_c = step(code, of_input[:, t, d], of_state, c)
            now = None if inside is None else inside[:, t]
            of_time[t] = live(now, new_h), live(now, new_c)
            if now is None:
                h, c = new_h, new_c
            else:
                # Direction 1 keeps its h0 until it comes to the last valid step.
                h, c = torch.where(now[:, None], new_h, h), torch.where(now[:, None], new_c, c)
        states.append(torch.stack([of_time[t][0] for t in range(T)], dim=1))
        carries.append(torch.stack([of_time[t][1] for t in range(T)], dim=1))
    h = torch.stack(states, dim=2)
    out = h if projection is None else sparse_projection(h, projection)
    return (out, torch.stack(carries, dim=2)) if return_carry else out
