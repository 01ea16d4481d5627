"""Every op as a plain loop over nodes or time steps, in PyTorch, with native autograd.

The oracle of this package: the tests hold every backend against these functions. They work for
any floating dtype on any device, are differentiable any number of times, and are never optimised.
Arguments are taken as already checked. Letters as in `strnn_kernels.notation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strnn_kernels.topology import Topology

ACT = {"identity": lambda a: a, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


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
    _, N, D, _ = u.shape
    of_node = u.unbind(1)  # one gradient of u, not one for each node
    directions = []
    for d in range(D):
        h: dict[int, Tensor] = {}
        for level in topology.levels(d):
            for n in level:
                a = of_node[n][:, d]
                predecessors = [h[p] for p in topology.predecessors(d, n)]
                if predecessors:
                    a = a + sum(predecessors) @ w[d].T
                elif h0 is not None:
                    a = a + h0[:, d] @ w[d].T
                h[n] = _activate(a, activation, None if mask is None else mask[:, n])
        directions.append(torch.stack([h[n] for n in range(N)], dim=1))
    return torch.stack(directions, dim=2)


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
                    a = a + sum(predecessors) @ w[d].T
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
    return torch.einsum("dkn,bndh->bdkh", weight, h)


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
) -> Tensor:
    """The sweep of u = W_ih x + b, then the sparse projection if one is given.

    Args:
        x: (B, N, C).
        w_ih: (D, H, C).
        w_hh: (D, H, H).
        bias: (D, H) or None.
        topology: who precedes whom, in each of the D directions.
        activation: as in `sweep`.
        mask: bool (B, N), as in `sweep`; x is not looked at where it is False.
        projection: (D, K, N) or None.

    Returns:
        The states (B, N, D, H), or (B, D, K, H) with a projection.
    """
    if mask is not None:
        x = torch.where(mask[..., None], x, 0)
    h = sweep(_input(x, w_ih, bias), w_hh, topology, activation=activation, mask=mask)
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
) -> Tensor:
    """h[b,t,d] = act(W_ih[d] x[b,t] + b[d] + W_hh[d] h[b,t-1,d]), from t+1 in direction 1.

    Args:
        x: (B, T, C).
        w_ih: (D, H, C), where D is 2, or 1 if not bidirectional.
        w_hh: (D, H, H).
        bias: (D, H) or None.
        activation: as in `sweep`.
        lengths: int (B,), each from 0 to T. Steps past the end give 0, and x is not looked at
            there; direction 1 starts at the last step within the length.
        h0: (B, D, H), the state before the first step of each direction; zero if None.
        bidirectional: whether there is a direction 1, backward in time.
        projection: (D, K, T) or None.

    Returns:
        The states (B, T, D, H), or (B, D, K, H) with a projection.
    """
    B, T, _ = x.shape
    D, H = (2 if bidirectional else 1), w_hh.shape[-1]
    inside = None
    if lengths is not None:
        inside = torch.arange(T, device=x.device) < lengths.to(x.device)[:, None]  # (B, T)
        x = torch.where(inside[..., None], x, 0)
    u = _input(x, w_ih, bias)
    directions = []
    for d in range(D):
        state = u.new_zeros(B, H) if h0 is None else h0[:, d]
        h: dict[int, Tensor] = {}
        for t in range(T) if d == 0 else reversed(range(T)):
            a = u[:, t, d] + state @ w_hh[d].T
            if inside is None:
                state = h[t] = _activate(a, activation)
            else:
                now = inside[:, t]
                h[t] = _activate(a, activation, now)
                # Direction 1 keeps its h0 until it comes to the last valid step.
                state = torch.where(now[:, None], h[t], state)
        directions.append(torch.stack([h[t] for t in range(T)], dim=1))
    states = torch.stack(directions, dim=2)
    return states if projection is None else sparse_projection(states, projection)


def _input(x: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """u[b,n,d] = W_ih[d] x[b,n] + b[d], (B, N, D, H)."""
    u = torch.einsum("bnc,dhc->bndh", x, w_ih)
    return u if bias is None else u + bias


def _activate(a: Tensor, activation: str, keep: Tensor | None = None) -> Tensor:
    """act(a) in the rows where keep (B,) is True, 0 in the others.

    The argument is replaced as well as the result: 0 times the derivative of a NaN would be a NaN.
    """
    if keep is None:
        return ACT[activation](a)
    keep = keep[:, None]
    return torch.where(keep, ACT[activation](torch.where(keep, a, 0)), 0)
