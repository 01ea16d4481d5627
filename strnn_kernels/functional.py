"""The public functions: checks, choice of a backend, call.

A recurrence is a topology, a weight and an activation; a time axis is the chain, a grid is a grid.
"""

from __future__ import annotations

import torch

from . import checks, reference, registration
from .backends import select
from .topology import Topology

__all__ = [
    "gated_sweep",
    "soft_threshold_",
    "sparse_projection",
    "spatial_rnn",
    "sweep",
    "temporal_rnn",
]


def sweep(
    u: torch.Tensor,
    w: torch.Tensor,
    topology: Topology,
    *,
    activation: str = "relu",
    mask: torch.Tensor | None = None,
    h0: torch.Tensor | None = None,
) -> torch.Tensor:
    """h[b, n, d] = mask[b, n] * act(u[b, n, d] + w[d] @ sum of h[b, p, d] over p in pred(d, n)).

    Args:
        u: pre-activations, shape (B, N, D, H); float32, float64, bfloat16 or float16.
        w: recurrent weights, shape (D, H, H), dtype and device of u.
        topology: the graph, with N nodes and D directions.
        activation: "identity", "relu", "tanh" or "sigmoid".
        mask: bool, shape (B, N); the state of a masked (False) node is zero, whatever its u.
        h0: states before the first step, shape (B, D, H): the predecessor of every node that has
            none.

    Returns:
        h, shape (B, N, D, H), dtype of u.

    Raises:
        ArgumentError: an argument has the wrong type, shape, dtype or device.
        BackendError: no backend accepts the call.
    """
    u, w, h0 = _autocast(u, w, h0)
    name = "sweep"
    B, N, D, H = checks.dims(name, "u", checks.tensor(name, "u", u), "B N D H")
    _check_topology(name, "u", topology, N, D)
    _check_recurrence(name, ("u", u), w, "w", activation, mask, h0, B, N, D, H)
    backend = select(name, u.device, u.dtype)
    if backend.name == "reference":
        return reference.sweep(u, w, topology, activation=activation, mask=mask, h0=h0)
    tables = registration.topology_tables(topology, u.device, backend.order)
    return registration.sweep(backend, u, None, None, w, mask, h0, None, None, tables, activation)


def gated_sweep(
    g: torch.Tensor, gate: torch.Tensor, w: torch.Tensor, topology: Topology
) -> torch.Tensor:
    """y[b, n, d] = gate[b, n, d] * (g[b, n, d] + w[d] @ sum of y[b, p, d] over p in pred(d, n)).

    The derivative of a sweep is a gated sweep on the reversed topology, with w transposed.

    Args:
        g: inputs, shape (B, N, D, H); float32, float64, bfloat16 or float16.
        gate: gates, shape, dtype and device of g.
        w: recurrent weights, shape (D, H, H).
        topology: the graph, with N nodes and D directions.

    Returns:
        y, shape (B, N, D, H), dtype of g.

    Raises:
        ArgumentError: an argument has the wrong type, shape, dtype or device.
        BackendError: no backend accepts the call.
    """
    g, gate, w = _autocast(g, gate, w)
    name = "gated_sweep"
    B, N, D, H = checks.dims(name, "g", checks.tensor(name, "g", g), "B N D H")
    _check_topology(name, "g", topology, N, D)
    checks.like(name, "gate", gate, "B N D H", (B, N, D, H), ("g", g))
    checks.like(name, "w", w, "D H H", (D, H, H), ("g", g))
    backend = select(name, g.device, g.dtype)
    if backend.name == "reference":
        return reference.gated_sweep(g, gate, w, topology)
    tables = registration.topology_tables(topology, g.device, backend.order)
    return registration.gated_sweep(backend, g, gate, w, tables)


def sparse_projection(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """s[b, d, k] = sum over n of weight[d, k, n] h[b, n, d]; exact zeros of weight cost nothing.

    Args:
        h: states, shape (B, N, D, H); float32, float64, bfloat16 or float16.
        weight: projection, shape (D, K, N), dtype and device of h.

    Returns:
        s, shape (B, D, K, H), dtype of h.

    Raises:
        ArgumentError: an argument has the wrong type, shape, dtype or device.
        BackendError: no backend accepts the call.
    """
    h, weight = _autocast(h, weight)
    name = "sparse_projection"
    _, N, D, _ = checks.dims(name, "h", checks.tensor(name, "h", h), "B N D H")
    _check_projection(name, ("h", h), weight, "weight", D, N, "N")
    backend = select(name, h.device, h.dtype)
    if backend.name == "reference":
        return reference.sparse_projection(h, weight)
    return registration.sparse_projection(backend, h, weight)


@torch.no_grad()
def soft_threshold_(weight: torch.Tensor, amount: float) -> torch.Tensor:
    """Shrinks weight in place: sign(weight) * max(|weight| - amount, 0).

    The proximal step of amount * |weight|_1; what it stops at zero is exactly zero.

    Args:
        weight: any floating-point tensor; a Parameter keeps its gradient.
        amount: how far to shrink, at least 0: learning rate x penalty.

    Returns:
        weight.

    Raises:
        ArgumentError: weight is not a floating-point tensor, or amount is negative or not a number.
    """
    checks.tensor("soft_threshold_", "weight", weight)
    amount = checks.amount("soft_threshold_", "amount", amount)
    # Not softshrink, which refuses an infinite amount and one beyond the dtype's range.
    wide = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    return weight.copy_((wide.abs() - amount).clamp_(min=0).copysign_(wide))


def spatial_rnn(
    x: torch.Tensor,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    bias: torch.Tensor | None,
    topology: Topology,
    *,
    activation: str = "relu",
    mask: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sweep of u = w_ih x + bias, fused: h = mask * act(w_ih x + bias + w_hh sum_pred h).

    With a projection, s[b, d, k] = sum over n of projection[d, k, n] h[b, n, d] is returned
    instead, and in inference h is never stored.

    Args:
        x: inputs, shape (B, N, C); float32, float64, bfloat16 or float16.
        w_ih: input weights, shape (D, H, C), dtype and device of x.
        w_hh: recurrent weights, shape (D, H, H).
        bias: shape (D, H), or None.
        topology: the graph, with N nodes and D directions.
        activation: "identity", "relu", "tanh" or "sigmoid".
        mask: bool, shape (B, N); the state of a masked (False) node is zero.
        projection: shape (D, K, N), or None.

    Returns:
        h, shape (B, N, D, H), or with a projection s, shape (B, D, K, H); dtype of x.

    Raises:
        ArgumentError: an argument has the wrong type, shape, dtype or device.
        BackendError: no backend accepts the call.

    Example:
        >>> topology = Topology.grid(8, 8)
        >>> x, w_ih, w_hh = torch.randn(2, 64, 3), torch.randn(4, 16, 3), torch.zeros(4, 16, 16)
        >>> spatial_rnn(x, w_ih, w_hh, None, topology).shape
        torch.Size([2, 64, 4, 16])
    """
    x, w_ih, w_hh, bias, projection = _autocast(x, w_ih, w_hh, bias, projection)
    name = "spatial_rnn"
    B, N, D, H = _check_inputs(name, x, "B N C", w_ih, bias)
    _check_topology(name, "x and w_ih", topology, N, D)
    _check_recurrence(name, ("x", x), w_hh, "w_hh", activation, mask, None, B, N, D, H)
    if projection is not None:
        _check_projection(name, ("x", x), projection, "projection", D, N, "N")
    backend = select(name, x.device, x.dtype)
    if backend.name == "reference":
        return reference.spatial_rnn(
            x, w_ih, w_hh, bias, topology, activation=activation, mask=mask, projection=projection
        )
    tables = registration.topology_tables(topology, x.device, backend.order)
    return registration.sweep(
        backend, x, w_ih, bias, w_hh, mask, None, None, projection, tables, activation
    )


def temporal_rnn(
    x: torch.Tensor,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activation: str = "relu",
    lengths: torch.Tensor | None = None,
    h0: torch.Tensor | None = None,
    bidirectional: bool = True,
    projection: torch.Tensor | None = None,
) -> torch.Tensor:
    """An Elman layer over time, both directions at once: the sweep of a chain of T steps.

    h[b, t, 0] = act(w_ih[0] x[b, t] + bias[0] + w_hh[0] h[b, t - 1, 0]), and direction 1 the same
    from the end of the sequence. Flattened to (B, T, D * H) it equals ``nn.RNN(batch_first=True)``.

    Args:
        x: inputs, shape (B, T, C); float32, float64, bfloat16 or float16.
        w_ih: input weights, shape (D, H, C), D = 2 if bidirectional else 1; dtype and device of x.
        w_hh: recurrent weights, shape (D, H, H).
        bias: shape (D, H) (the sum of nn.RNN's two), or None.
        activation: "identity", "relu", "tanh" or "sigmoid".
        lengths: integers in 0..T, shape (B,): steps of each sequence that count. The output is zero
            past the end, and direction 1 starts at each sequence's last valid step, as with packed
            sequences.
        h0: states before the first step of each direction, shape (B, D, H).
        bidirectional: whether there is a direction 1.
        projection: shape (D, K, T), or None.

    Returns:
        h, shape (B, T, D, H), or with a projection s, shape (B, D, K, H); dtype of x.

    Raises:
        ArgumentError: an argument has the wrong type, shape, dtype, device or value.
        BackendError: no backend accepts the call.

    Example:
        >>> x, w_ih, w_hh = torch.randn(2, 9, 3), torch.randn(2, 16, 3), torch.zeros(2, 16, 16)
        >>> temporal_rnn(x, w_ih, w_hh, None, lengths=torch.tensor([9, 4])).shape
        torch.Size([2, 9, 2, 16])
    """
    x, w_ih, w_hh, bias, h0, projection = _autocast(x, w_ih, w_hh, bias, h0, projection)
    name = "temporal_rnn"
    B, T, D, H = _check_inputs(name, x, "B T C", w_ih, bias)
    if (2 if bidirectional else 1) != D:
        raise checks.ArgumentError(
            f"{name}: w_ih must have shape (D, H, C) with D = {2 if bidirectional else 1} "
            f"(bidirectional={bidirectional}), got {tuple(w_ih.shape)}"
        )
    _check_recurrence(name, ("x", x), w_hh, "w_hh", activation, None, h0, B, T, D, H)
    if projection is not None:
        _check_projection(name, ("x", x), projection, "projection", D, T, "T")
    mask = entry = None
    if lengths is not None:
        lengths = checks.lengths(name, lengths, B, T)
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            checks.lengths_in_range(name, lengths, T)
        lengths = lengths.to(x.device)
    backend = select(name, x.device, x.dtype)
    if backend.name == "reference":
        return reference.temporal_rnn(
            x, w_ih, w_hh, bias, activation=activation, lengths=lengths, h0=h0,
            bidirectional=bidirectional, projection=projection,
        )  # fmt: skip
    if lengths is not None:
        mask = torch.arange(T, device=x.device) < lengths[:, None]
        if h0 is not None:
            # Direction 0 starts at step 0, direction 1 at the last valid step (-1, nowhere, if
            # there is none).
            starts = [torch.where(lengths > 0, 0, -1), lengths - 1][:D]
            entry = torch.stack(starts, 1).to(torch.int32)
    # len(range(T)) is T; a compiler that treats T as a symbol settles on its value there, which
    # int(T) would not make it do.
    tables = registration.chain_tables(len(range(T)), bool(bidirectional), x.device, backend.order)
    return registration.sweep(
        backend, x, w_ih, bias, w_hh, mask, h0, entry, projection, tables, activation
    )


def _autocast(*tensors):
    """Under autocast, floats in the dtype that it asks for; accumulation stays float32."""
    first = tensors[0]
    if (
        not isinstance(first, torch.Tensor)
        or first.device.type == "meta"
        or not torch.is_autocast_enabled(first.device.type)
    ):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    halves = (torch.float32, torch.bfloat16, torch.float16)
    return [
        t.to(dtype) if isinstance(t, torch.Tensor) and t.dtype in halves else t for t in tensors
    ]


def _check_inputs(name, x, letters, w_ih, bias):
    B, N, C = checks.dims(name, "x", checks.tensor(name, "x", x), letters)
    D, H, _ = checks.dims(name, "w_ih", checks.tensor(name, "w_ih", w_ih), "D H C")
    checks.like(name, "w_ih", w_ih, "D H C", (D, H, C), ("x", x))
    if bias is not None:
        checks.like(name, "bias", bias, "D H", (D, H), ("x", x))
    return B, N, D, H


def _check_topology(name, source, topology, N, D):
    checks.topology(name, topology)
    if topology.num_nodes != N or topology.num_directions != D:
        raise checks.ArgumentError(
            f"{name}: topology must have the (N, D) of {source} = ({N}, {D}), "
            f"got ({topology.num_nodes}, {topology.num_directions}) from {topology!r}"
        )


def _check_recurrence(name, first, w, w_name, activation, mask, h0, B, N, D, H):
    checks.activation(name, activation)
    checks.like(name, w_name, w, "D H H", (D, H, H), first)
    if mask is not None:
        checks.like(name, "mask", mask, "B N", (B, N), first, torch.bool)
    if h0 is not None:
        checks.like(name, "h0", h0, "B D H", (B, D, H), first)


def _check_projection(name, first, projection, projection_name, D, N, letter):
    letters = f"D K {letter}"
    K = checks.dims(
        name, projection_name, checks.tensor(name, projection_name, projection), letters
    )[1]
    checks.like(name, projection_name, projection, letters, (D, K, N), first)
