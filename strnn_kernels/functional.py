"""The public functions: checks, choice of a backend, call.

A recurrence is a topology, weights and a cell; a time axis is the chain, a grid is a grid.
"""

from __future__ import annotations

from typing import Any

import torch

from . import checks, composed, reference, registration
from .backends import select
from .notation import CELLS, bias_rows, gates
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
    cell = checks.cell(name, "elman", activation)
    checks.like(name, "w", w, "D H H", (D, H, H), ("u", u))
    _check_states(name, ("u", u), mask, h0, None, B, N, D, H)
    backend = select(name, u.device, u.dtype)
    if backend.name == "reference":
        return reference.sweep(u, w, topology, activation=activation, mask=mask, h0=h0)
    tables = registration.tables_for(topology, u, backend.order)
    return registration.sweep(
        backend, u, [], [], [w], mask, h0, None, None, None, tables, cell
    ).output


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
    tables = registration.tables_for(topology, g, backend.order)
    return registration.gated_sweep(backend, g, gate, w, tables)


def sparse_projection(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """s[b, d, k] = sum over n of weight[d, k, n] h[b, n, d]; exact zeros of weight cost nothing.

    A weight that is exactly zero does not read its state: behind it an infinity or a NaN has no
    effect, as if the sum were over the other n. The same holds for every `projection`.

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
    """Shrinks weight in place: ``sign(weight) * max(|weight| - amount, 0)``.

    The proximal step of ``amount * |weight|_1``; what it stops at zero is exactly zero.

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
    cell: str = "elman",
    reduce: str | None = None,
) -> torch.Tensor:
    """The sweep of u = w_ih x + bias, fused: h = mask * act(w_ih x + bias + w_hh sum_pred h).

    Gated cells read q = reduce of h over the predecessors, and m = reduce of what they carry (h of
    a gru, c of an lstm), with gates in torch's order::

        gru:  r, z = sigmoid of theirs;  n = tanh(W_in x + b_in + r * (W_hn q + b_hn))
              h = (1 - z) * n + z * m
        lstm: c = sigmoid(f) * m + sigmoid(i) * tanh(g);  h = sigmoid(o) * tanh(c)

    With a projection, s[b, d, k] = sum over n of projection[d, k, n] h[b, n, d] is returned
    instead, and in inference h is never stored.

    Args:
        x: inputs, shape (B, N, C); float32, float64, bfloat16 or float16.
        w_ih: input weights, shape (D, G * H, C), G = 1, 3 (gru) or 4 (lstm); dtype and device of x.
        w_hh: recurrent weights, shape (D, G * H, H).
        bias: shape (D, G * H), of a gru (D, 4 * H): r, z, n of the input, n of the state; or None.
        topology: the graph, with N nodes and D directions.
        activation: "identity", "relu", "tanh" or "sigmoid", of an Elman cell.
        mask: bool, shape (B, N); the state of a masked (False) node is zero.
        projection: shape (D, K, N), or None.
        cell: "elman", "gru" or "lstm".
        reduce: "sum" or "mean" of several predecessors. None: the sum for an Elman cell (STRNN's
            equation), the mean for gated ones: a sum of what they carry grows with the number of
            paths, exponentially with a grid, a mean stays within the largest of its terms.

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
    code = checks.cell(name, cell, activation)
    mean = checks.reduce(name, cell, reduce)
    B, N, D, H = _check_inputs(name, x, "B N C", w_ih, w_hh, bias, code)
    _check_topology(name, "x and w_ih", topology, N, D)
    _check_states(name, ("x", x), mask, None, None, B, N, D, H)
    if projection is not None:
        _check_projection(name, ("x", x), projection, "projection", D, N, "N")
    mean = mean and topology.max_predecessors > 1
    backend = select(name, x.device, x.dtype)
    if backend.name == "reference":
        return reference.spatial_rnn(
            x, w_ih, w_hh, bias, topology, activation=activation, mask=mask, projection=projection,
            cell=cell, reduce=reduce,
        )  # fmt: skip
    tables = registration.tables_for(topology, x, backend.order)
    return registration.sweep(
        backend, x, [w_ih], [] if bias is None else [bias], [w_hh], mask, None, None, None,
        projection, tables, code, mean,
    ).output  # fmt: skip


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
    cell: str = "elman",
    c0: torch.Tensor | None = None,
    return_carry: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """A recurrent layer over time, both directions at once: the sweep of a chain of T steps.

    h[b, t, 0] = act(w_ih[0] x[b, t] + bias[0] + w_hh[0] h[b, t - 1, 0]), and direction 1 the same
    from the end of the sequence; gated cells as in :func:`spatial_rnn`. Flattened to (B, T, D * H)
    it equals ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` with ``batch_first=True``.

    Args:
        x: inputs, shape (B, T, C); float32, float64, bfloat16 or float16.
        w_ih: input weights, shape (D, G * H, C), D = 2 if bidirectional else 1, G = 1, 3 (gru) or 4
            (lstm); dtype and device of x.
        w_hh: recurrent weights, shape (D, G * H, H).
        bias: shape (D, G * H) (the sum of torch's two), of a gru (D, 4 * H): r, z, n of the input,
            n of the state; or None.
        activation: "identity", "relu", "tanh" or "sigmoid", of an Elman cell.
        lengths: integers in 0..T, shape (B,): steps of each sequence that count. The output is zero
            past the end, and direction 1 starts at each sequence's last valid step, as with packed
            sequences.
        h0: states before the first step of each direction, shape (B, D, H).
        bidirectional: whether there is a direction 1.
        projection: shape (D, K, T), or None.
        cell: "elman", "gru" or "lstm".
        c0: of an lstm, what is carried before the first step of each direction, shape (B, D, H).
        return_carry: whether an lstm's c is returned too.

    Returns:
        h, shape (B, T, D, H), or with a projection s, shape (B, D, K, H); with return_carry a pair,
        c, shape (B, T, D, H), second; dtype of x.

    Raises:
        ArgumentError: an argument has the wrong type, shape, dtype, device or value.
        BackendError: no backend accepts the call.

    Example:
        >>> x, w_ih, w_hh = torch.randn(2, 9, 3), torch.randn(2, 16, 3), torch.zeros(2, 16, 16)
        >>> temporal_rnn(x, w_ih, w_hh, None, lengths=torch.tensor([9, 4])).shape
        torch.Size([2, 9, 2, 16])
    """
    x, w_ih, w_hh, bias, h0, c0, projection = _autocast(x, w_ih, w_hh, bias, h0, c0, projection)
    name = "temporal_rnn"
    code = checks.cell(name, cell, activation)
    B, T, D, H = _check_inputs(name, x, "B T C", w_ih, w_hh, bias, code)
    if (2 if bidirectional else 1) != D:
        raise checks.ArgumentError(
            f"{name}: w_ih must have shape (D, G * H, C) with D = {2 if bidirectional else 1} "
            f"(bidirectional={bidirectional}), got {tuple(w_ih.shape)}"
        )
    _check_states(name, ("x", x), None, h0, c0, B, T, D, H)
    if (c0 is not None or return_carry) and cell != "lstm":
        raise checks.ArgumentError(
            f"{name}: c0 and return_carry belong to cell='lstm', got cell={cell!r}"
        )
    if projection is not None:
        _check_projection(name, ("x", x), projection, "projection", D, T, "T")
    states = layer(
        name, x, [w_ih], [] if bias is None else [bias], [w_hh], code, lengths, h0, c0, projection,
        keep_c=return_carry,
    )  # fmt: skip
    return (states.output, states.c) if return_carry else states.output


def layer(
    name: str, x, w_ih, bias, w_hh, cell: int, lengths=None, h0=None, c0=None, projection=None, *,
    keep_c=False, keep_last=False,
) -> registration.States:  # fmt: skip
    """One layer over time, of checked arguments: the way in for modules.

    Weights are lists as in :mod:`strnn_kernels.schema`: a module's own Parameters, unstacked.
    """
    if is_autocast(x):
        x, h0, c0, projection, *weights = _autocast(x, h0, c0, projection, *w_ih, *bias, *w_hh)
        i, j = len(w_ih), len(w_ih) + len(bias)
        w_ih, bias, w_hh = weights[:i], weights[i:j], weights[j:]
    mask = entry = None
    if lengths is not None:
        B, T, _ = x.shape
        lengths = checks.lengths(name, lengths, B, T).to(x.device)
    backend = select(name, x.device, x.dtype)
    if backend.name == "reference":
        return _reference_layer(
            x, w_ih, bias, w_hh, cell, lengths, h0, c0, projection, keep_c, keep_last
        )
    if lengths is not None:
        mask = torch.arange(T, device=x.device) < lengths[:, None]
        if h0 is not None or c0 is not None:
            # Direction 0 starts at step 0, direction 1 at the last valid step (-1, nowhere, if
            # there is none).
            D = 2 if len(w_hh) == 2 or (w_hh[0].dim() == 3 and w_hh[0].shape[0] == 2) else 1
            starts = [torch.where(lengths > 0, 0, -1), lengths - 1][:D]
            entry = torch.stack(starts, 1).to(torch.int32)
    return registration.sweep(
        backend, x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, registration.NO_TABLES,
        cell, keep_c=keep_c, keep_last=keep_last,
    )  # fmt: skip


def _reference_layer(
    x, w_ih, bias, w_hh, cell, lengths, h0, c0, projection, keep_c, keep_last
) -> registration.States:
    w_ih, w_hh = composed.stacked(cell, w_ih), composed.stacked(cell, w_hh)
    name = CELLS[cell]
    options = {"cell": name} if name in ("gru", "lstm") else {"activation": name}
    D = w_hh.shape[0]

    def run(**more):
        return reference.temporal_rnn(
            x, w_ih, w_hh, composed.stacked(cell, bias, bias=True), lengths=lengths, h0=h0, c0=c0,
            bidirectional=D == 2, **options, **more,
        )  # fmt: skip

    c: Any = None
    h_n: Any = None
    c_n: Any = None
    if name == "lstm":
        h, c = run(return_carry=True)
    else:
        h = run()
    if keep_last:
        mask = None
        if lengths is not None:
            mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        h_n = registration.last_of_chain(h, mask, h0)
        c_n = None if c is None else registration.last_of_chain(c, mask, c0)
    output = h if projection is None else reference.sparse_projection(h, projection)
    return registration.States(output, c, h_n, c_n)


def is_autocast(x) -> bool:
    """Whether a call with x chooses its own dtype."""
    return (
        torch._C._is_any_autocast_enabled()  # quicker than to ask for a device's
        and isinstance(x, torch.Tensor)
        and x.device.type != "meta"
        and torch.is_autocast_enabled(x.device.type)
    )


def _autocast(*tensors):
    """Under autocast, floats in the dtype that it asks for; accumulation stays float32."""
    first = tensors[0]
    if not is_autocast(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    halves = (torch.float32, torch.bfloat16, torch.float16)
    return [
        t.to(dtype) if isinstance(t, torch.Tensor) and t.dtype in halves else t for t in tensors
    ]


def _check_inputs(name, x, letters, w_ih, w_hh, bias, cell):
    B, N, C = checks.dims(name, "x", checks.tensor(name, "x", x), letters)
    G = gates(cell)
    rows = "H" if G == 1 else f"{G}*H"
    D, GH, _ = checks.dims(name, "w_ih", checks.tensor(name, "w_ih", w_ih), f"D {rows} C")
    if GH % G:
        raise checks.ArgumentError(
            f"{name}: w_ih must have shape (D, {rows}, C), got {tuple(w_ih.shape)}"
        )
    H = GH // G
    checks.like(name, "w_ih", w_ih, f"D {rows} C", (D, GH, C), ("x", x))
    checks.like(name, "w_hh", w_hh, f"D {rows} H", (D, GH, H), ("x", x))
    if bias is not None:
        of_bias = bias_rows(cell)
        letters = "D H" if of_bias == 1 else f"D {of_bias}*H"
        checks.like(name, "bias", bias, letters, (D, of_bias * H), ("x", x))
    return B, N, D, H


def _check_topology(name, source, topology, N, D):
    checks.topology(name, topology)
    if topology.num_nodes != N or topology.num_directions != D:
        raise checks.ArgumentError(
            f"{name}: topology must have the (N, D) of {source} = ({N}, {D}), "
            f"got ({topology.num_nodes}, {topology.num_directions}) from {topology!r}"
        )


def _check_states(name, first, mask, h0, c0, B, N, D, H):
    if mask is not None:
        checks.like(name, "mask", mask, "B N", (B, N), first, torch.bool)
    for state_name, state in (("h0", h0), ("c0", c0)):
        if state is not None:
            checks.like(name, state_name, state, "B D H", (B, D, H), first)


def _check_projection(name, first, projection, projection_name, D, N, letter):
    letters = f"D K {letter}"
    K = checks.dims(
        name, projection_name, checks.tensor(name, projection_name, projection), letters
    )[1]
    checks.like(name, projection_name, projection, letters, (D, K, N), first)
