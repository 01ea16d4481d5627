"""The ops, once: what each backend implements, under its own namespace, with these schemas.

A backend named ``x`` registers kernels for ``strnn_x::<op>``; a new op is one record here and one
file in each backend's folder. Tensors keep the letters of :mod:`strnn_kernels.notation`:

    sweep        h = mask * act(u + w_hh sum_pred h),  u = w_ih x + bias, or x itself without w_ih
                 s = projection h
    gated_sweep  y = gate * (g + w sum_pred y)
    sparse_projection  s = weight h

``program`` and ``reversed_program`` are the tables of a topology and of its reverse (see
:class:`strnn_kernels.topology.SweepProgram`), ``program_sizes`` their (groups, slots, reversed
groups, reversed slots). ``h0`` (B, D, H) enters at node ``entry[b, d]``, or, without ``entry``, at
all nodes without predecessors. An output that is not wanted has shape (0,). What a forward leaves
for its backward is the same for every backend, so any backward can finish any forward.

``allow_tf32`` lets a sweep make its products of float32 of TF32 (cuda, triton); other backends,
and sparse projections everywhere, are exact. An argument, not a setting of the library: what a
graph was compiled with, and what a forward ran with, holds for its backward. Products that torch
makes for a backend (the GEMMs before and after a sweep of triton, derivatives under
``create_graph``) follow torch's setting when they run, as those of torch's own layers do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_PROGRAM = "Tensor program, Tensor reversed_program, int[] program_sizes"
_TF32 = "bool allow_tf32=False"
_SWEEP = (
    "Tensor? w_ih, Tensor? bias, Tensor w_hh, Tensor? mask, Tensor? h0, Tensor? entry, "
    "Tensor? projection"
)


@dataclass(frozen=True)
class Op:
    """An op: its name, its schema, and the shapes of its outputs (the fake function)."""

    name: str
    signature: str
    fake: Callable


def _sweep_fwd(
    x,
    w_ih,
    bias,
    w_hh,
    mask,
    h0,
    entry,
    projection,
    program,
    reversed_,
    sizes,
    activation,
    keep_h,
    allow_tf32=False,
):
    (B, N), (D, H) = x.shape[:2], w_hh.shape[:2]
    h = x.new_empty((B, N, D, H) if keep_h else (0,))
    s = x.new_empty((0,) if projection is None else (B, D, projection.shape[1], H))
    return h, s


def _sweep_bwd(
    dh,
    ds,
    x,
    h,
    w_ih,
    bias,
    w_hh,
    mask,
    h0,
    entry,
    projection,
    reversed_,
    sizes,
    activation,
    need_dx,
    allow_tf32=False,
):
    def like(t, is_wanted=True):
        return x.new_empty((0,) if t is None or not is_wanted else t.shape)

    return like(x, need_dx), like(w_ih), like(bias), like(w_hh), like(h0), like(projection)


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
        f"(Tensor x, {_SWEEP}, {_PROGRAM}, int activation, bool keep_h, {_TF32}) -> "
        "(Tensor h, Tensor s)",
        _sweep_fwd,
    ),
    Op(
        "sweep_bwd",
        f"(Tensor? dh, Tensor? ds, Tensor x, Tensor h, {_SWEEP}, Tensor reversed_program, "
        f"int[] program_sizes, int activation, bool need_dx, {_TF32}) -> "
        "(Tensor dx, Tensor dw_ih, Tensor dbias, Tensor dw_hh, Tensor dh0, Tensor dprojection)",
        _sweep_bwd,
    ),
    Op(
        "gated_sweep_fwd",
        f"(Tensor g, Tensor gate, Tensor w, {_PROGRAM}, {_TF32}) -> Tensor y",
        lambda g, gate, w, program, reversed_, sizes, allow_tf32=False: g.new_empty(g.shape),
    ),
    Op(
        "gated_sweep_bwd",
        f"(Tensor dy, Tensor y, Tensor g, Tensor gate, Tensor w, {_PROGRAM}, {_TF32}) -> "
        "(Tensor dg, Tensor dgate, Tensor dw)",
        _gated_sweep_bwd,
    ),
    Op(
        "sparse_projection_fwd",
        "(Tensor h, Tensor weight) -> Tensor s",
        _sparse_projection_fwd,
    ),
    Op(
        "sparse_projection_bwd",
        "(Tensor ds, Tensor h, Tensor weight) -> (Tensor dh, Tensor dweight)",
        _sparse_projection_bwd,
    ),
)
