"""The ops, once: what each backend implements, under its own namespace, with these schemas.

A backend named ``x`` registers kernels for ``strnn_x::<op>``; a new op is one record here and one
file in each backend's folder. Tensors keep the letters of :mod:`strnn_kernels.notation`:

    sweep        h, carried = mask * cell(w_ih x + bias + w_hh q, m), or without w_ih: x + w_hh q
                 q = sum_pred h, m = sum_pred carried, or means;  s = projection h
    gated_sweep  y = gate * (g + w sum_pred y)
    sparse_projection  s = weight h

A cell is a number, its place in :data:`strnn_kernels.notation.CELLS`. Weights are a list: one
tensor for all directions, (D, G H, C), or one for each, (G H, C), as modules hold them (not cuda;
the gradients always come in one piece). ``bias`` is empty, one tensor (D, G H), of a gru (D, 4 H),
or b_ih and b_hh, (G H) each, of every direction in turn.

``program`` and ``reversed_program`` are the tables of a topology and of its reverse (see
:class:`strnn_kernels.topology.SweepProgram`), ``program_sizes`` their (groups, slots, reversed
groups, reversed slots); without them the topology is the chain of as many steps as x has nodes.
``h0`` and ``c0`` (B, D, H) enter at node ``entry[b, d]``, or, without ``entry``, at all nodes
without predecessors. ``h_n`` and ``c_n`` are the states (D, B, H) of the last node that each
direction visits and the mask leaves, ``saved`` what the backward needs beside h
(csrc/common/sweep.h). ``save`` says that a backward will follow.
An output that is not wanted has shape (0,). What a forward leaves for its backward is the same for
every backend, so any backward can finish any forward.

``allow_tf32`` lets a sweep make its products of float32 of TF32 (triton); other backends,
and sparse projections everywhere, are exact. An argument, not a setting of the library: what a
graph was compiled with, and what a forward ran with, holds for its backward. Products that torch
makes for a backend (the GEMMs before and after a sweep of triton, derivatives under
``create_graph``) follow torch's setting when they run, as those of torch's own layers do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .notation import CELLS, bias_rows, gates, saved

_PROGRAM = "Tensor program, Tensor reversed_program, int[] program_sizes"
# Not a default of ops that take lists: what a call leaves out, torch's autograd of lists misses.
_TF32 = "bool allow_tf32=False"
_SWEEP = (
    "Tensor[] w_ih, Tensor[] bias, Tensor[] w_hh, Tensor? mask, Tensor? h0, Tensor? c0, "
    "Tensor? entry, Tensor? projection"
)


@dataclass(frozen=True)
class Op:
    """An op: its name, its schema, the shapes of its outputs (the fake function), and its cost.

    ``flops`` counts products and additions as :mod:`torch.utils.flop_counter` does: two for each
    term of a matrix product, nothing for the rest; a projection's zeros count as well.
    """

    name: str
    signature: str
    fake: Callable
    flops: Callable


def _sweep_fwd(
    x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, reversed_, sizes, cell, mean,
    keep_h, keep_c, keep_last, save, allow_tf32,
):  # fmt: skip
    B, N, D, H = *x.shape[:2], directions(w_hh), w_hh[0].shape[-1]
    carries = CELLS[cell] == "lstm"

    def new(is_wanted, *shape):
        return x.new_empty(shape if is_wanted else (0,))

    K = 0 if projection is None else projection.shape[1]
    return (
        new(keep_h, B, N, D, H),
        new(projection is not None, B, D, K, H),
        new(keep_c and carries, B, N, D, H),
        new(keep_last, D, B, H),
        new(keep_last and carries, D, B, H),
        new(save, B, N, D, saved(cell) * H),
    )


def _sweep_bwd(
    dh, ds, dc, dh_n, dc_n, x, h, saved, w_ih, bias, w_hh, mask, h0, c0, entry, projection,
    reversed_, sizes, cell, mean, need_dx, allow_tf32,
):  # fmt: skip
    D, H = directions(w_hh), w_hh[0].shape[-1]
    G = gates(cell)

    def new(is_wanted, *shape):
        return x.new_empty(shape if is_wanted else (0,))

    def like(t):
        return x.new_empty((0,) if t is None else t.shape)

    return (
        like(x if need_dx else None),
        new(w_ih, D, G * H, w_ih[0].shape[-1] if w_ih else 0),
        new(bias, D, bias_rows(cell) * H),
        x.new_empty((D, G * H, H)),
        like(h0),
        like(c0),
        like(projection),
    )


def _sweep_flops(x, w_ih, bias, w_hh, mask=None, h0=None, c0=None, entry=None, projection=None):
    B, N, D, H = *x.shape[:2], directions(w_hh), w_hh[0].shape[-1]
    G, C = w_hh[0].shape[-2] // H, w_ih[0].shape[-1] if w_ih else 0
    K = 0 if projection is None else projection.shape[1]
    return 2 * B * N * D * H * (G * (C + H) + K)


def directions(w_hh) -> int:
    """D, from a list of weights."""
    return w_hh[0].shape[0] if len(w_hh) == 1 and w_hh[0].dim() == 3 else len(w_hh)


def _gated_sweep_bwd(dy, y, g, gate, w, program, reversed_, sizes, allow_tf32=False):
    return g.new_empty(g.shape), g.new_empty(gate.shape), g.new_empty(w.shape)


def _sparse_projection_fwd(h, weight):
    B, _, D, H = h.shape
    return h.new_empty((B, D, weight.shape[1], H))


def _sparse_projection_bwd(ds, h, weight):
    return h.new_empty(h.shape), h.new_empty(weight.shape)


OPS = (
    Op(
        "sweep_fwd",
        f"(Tensor x, {_SWEEP}, Tensor? program, Tensor? reversed_program, int[] program_sizes, "
        "int cell, bool mean, bool keep_h, bool keep_c, bool keep_last, bool save, bool allow_tf32"
        ") -> "
        "(Tensor h, Tensor s, Tensor c, Tensor h_n, Tensor c_n, Tensor saved)",
        _sweep_fwd,
        lambda *args, **_: _sweep_flops(*args[:4], projection=args[8]),
    ),
    Op(
        "sweep_bwd",
        "(Tensor? dh, Tensor? ds, Tensor? dc, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor h, "
        f"Tensor saved, {_SWEEP}, Tensor? reversed_program, int[] program_sizes, int cell, "
        "bool mean, bool need_dx, bool allow_tf32) -> (Tensor dx, Tensor dw_ih, Tensor dbias, "
        "Tensor dw_hh, Tensor dh0, Tensor dc0, Tensor dprojection)",
        _sweep_bwd,
        lambda *args, **_: 2 * _sweep_flops(args[5], *args[8:11], projection=args[15]),
    ),
    Op(
        "gated_sweep_fwd",
        f"(Tensor g, Tensor gate, Tensor w, {_PROGRAM}, {_TF32}) -> Tensor y",
        lambda g, gate, w, program, reversed_, sizes, allow_tf32=False: g.new_empty(g.shape),
        lambda g, gate, w, *_, **__: _sweep_flops(g, [], [], [w]),
    ),
    Op(
        "gated_sweep_bwd",
        f"(Tensor dy, Tensor y, Tensor g, Tensor gate, Tensor w, {_PROGRAM}, {_TF32}) -> "
        "(Tensor dg, Tensor dgate, Tensor dw)",
        _gated_sweep_bwd,
        # What the gate was applied to is made once more.
        lambda dy, y, g, gate, w, *_, **__: 3 * _sweep_flops(g, [], [], [w]),
    ),
    Op(
        "sparse_projection_fwd",
        "(Tensor h, Tensor weight) -> Tensor s",
        _sparse_projection_fwd,
        lambda h, weight, **_: 2 * h.numel() * weight.shape[1],
    ),
    Op(
        "sparse_projection_bwd",
        "(Tensor ds, Tensor h, Tensor weight) -> (Tensor dh, Tensor dweight)",
        _sparse_projection_bwd,
        lambda ds, h, weight, **_: 4 * h.numel() * weight.shape[1],
    ),
)
