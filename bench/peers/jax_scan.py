"""The recurrence as a JAX user writes it: `lax.scan` over the dependency levels, compiled by XLA.

Levels are filled up to one width M so that the scan has one shape. The carry is not the whole state
buffer, which reverse mode would save once per level, but the last few levels: as many as the
longest edge spans. A chain is the case M = 1 with a span of 1. U x and the projection are outside
the scan, each one einsum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from strnn_kernels.topology import Topology

try:
    import jax
    from jax import lax
    from jax import numpy as jnp
except ImportError:
    jax = None


def absent() -> str | None:
    """Why this peer cannot run here, or None."""
    return "jax is not installed" if jax is None else None


@lru_cache(maxsize=64)
def plan(topology: Topology) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """The tables of a topology, and the span of the window in levels.

    Node (L, D, M); whether it is one (L, D, M); its predecessors' rows in the window (L, D, M, P),
    where row span*M is the zero state; place of each node among all L*M (D, N).
    """
    D, N, L = topology.num_directions, topology.num_nodes, topology.num_levels
    members = [topology.levels(d) for d in range(D)]
    M = max(len(level) for levels in members for level in levels)
    place = [
        {n: (k, i) for k, lv in enumerate(members[d]) for i, n in enumerate(lv)} for d in range(D)
    ]
    edges = [(d, n, p) for d in range(D) for n in range(N) for p in topology.predecessors(d, n)]
    span = max((place[d][n][0] - place[d][p][0] for d, n, p in edges), default=1)
    P = max(1, *(len(topology.predecessors(d, n)) for d in range(D) for n in range(N)))
    node = np.zeros((L, D, M), np.int32)
    real = np.zeros((L, D, M), bool)
    pred = np.full((L, D, M, P), span * M, np.int32)
    where = np.zeros((D, N), np.int32)
    for d in range(D):
        for n, (k, i) in place[d].items():
            node[k, d, i], real[k, d, i], where[d, n] = n, True, k * M + i
            for j, p in enumerate(topology.predecessors(d, n)):
                source, slot = place[d][p]
                pred[k, d, i, j] = (span - (k - source)) * M + slot
    return node, real, pred, where, span


def spatial_rnn(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    bias: Any,
    topology: Topology,
    *,
    activation: str = "relu",
    projection: Any = None,
) -> Any:
    """As `strnn_kernels.spatial_rnn`, on JAX arrays."""
    act = {
        "identity": lambda a: a,
        "relu": jax.nn.relu,
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
    }[activation]
    node, real, pred, where, span = plan(topology)
    L, D, M, _ = pred.shape
    B, H = x.shape[0], w_hh.shape[-1]
    directions = np.arange(D)[:, None]
    u = jnp.einsum("bnc,dhc->dnbh", x, w_ih) + (0 if bias is None else bias[:, None, None])
    u = u[directions[None], node] * real[..., None, None]  # (L, D, M, B, H)

    def step(window: Any, level: Any) -> tuple[Any, Any]:
        a, live, sources = level
        full = jnp.concatenate(
            [window.reshape(D, span * M, B, H), jnp.zeros((D, 1, B, H), x.dtype)], axis=1
        )
        total = full[directions[..., None], sources].sum(axis=2)  # (D, M, B, H)
        state = act(a + jnp.einsum("dmbj,dij->dmbi", total, w_hh)) * live[..., None, None]
        return jnp.concatenate([window[:, 1:], state[:, None]], axis=1), state

    window = jnp.zeros((D, span, M, B, H), x.dtype)
    _, h = lax.scan(step, window, (u, real, pred))  # (L, D, M, B, H)
    h = h.transpose(1, 0, 2, 3, 4).reshape(D, L * M, B, H)[directions, where]  # (D, N, B, H)
    if projection is None:
        return h.transpose(2, 1, 0, 3)
    return jnp.einsum("dkn,dnbh->bdkh", projection, h)


def chain_rnn(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    bias: Any,
    *,
    activation: str = "relu",
    cell: str = "elman",
    projection: Any = None,
) -> Any:
    """As `strnn_kernels.temporal_rnn` without lengths and first states; directions side by side."""
    act = {
        "identity": lambda a: a,
        "relu": jax.nn.relu,
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
    }[activation]
    D, _, H = w_hh.shape
    u = jnp.einsum("btc,dgc->tdbg", x, w_ih)
    of_state = 0  # a gru's bias b_hn
    if bias is not None:
        u = u + bias[:, None, : w_hh.shape[1]]
        of_state = bias[:, None, w_hh.shape[1] :]
    if D == 2:
        u = jnp.stack([u[:, 0], u[::-1, 1]], axis=1)

    def step(state: Any, a: Any) -> tuple[Any, Any]:
        h, c = state
        b = jnp.einsum("dbj,dgj->dbg", h, w_hh)
        if cell == "gru":
            rx, zx, nx = jnp.split(a, 3, -1)
            rh, zh, nh = jnp.split(b, 3, -1)
            r, z = jax.nn.sigmoid(rx + rh), jax.nn.sigmoid(zx + zh)
            h = (1 - z) * jnp.tanh(nx + r * (nh + of_state)) + z * h
        elif cell == "lstm":
            i, f, g, o = jnp.split(a + b, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        else:
            h = act(a + b)
        return (h, c), h

    zeros = jnp.zeros((D, x.shape[0], H), x.dtype)
    _, h = lax.scan(step, (zeros, zeros), u)  # (T, D, B, H)
    if D == 2:
        h = jnp.stack([h[:, 0], h[::-1, 1]], axis=1)
    if projection is None:
        return h.transpose(2, 0, 1, 3)
    return jnp.einsum("dkt,tdbh->bdkh", projection, h)
