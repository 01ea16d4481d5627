"""The ops gated_sweep_fwd and gated_sweep_bwd (schema.py): the sweep kernels in their gated mode.

    y = gate * (g + w sum_pred y)
    t = dy + w^T sum_succ dg        dg = gate * t
    dgate = t * (g + w sum_pred y)  dw = sum (sum_succ dg) (x) y

dgate is a third gated sweep: t in place of the gate, and states that are read from y, not made.
"""

from __future__ import annotations

import torch

from . import launch
from .launch import Tables
from .sweep import run_sweep, transposed
from .sweep_weights import weight_gradient
from .tile import GATED


def gated_sweep_fwd(g, gate, w, program, _reversed, sizes, allow_tf32=False):
    """States y, (B, N, D, H)."""
    y = g.new_empty(g.shape)
    if y.numel():
        B, N, D, H = g.shape
        with launch.on(g):
            tables = Tables.of(program, sizes[0], sizes[1], N, D)
            shape = launch.sweep_shape(tables, B, D, H, 1, g.dtype, g.device, allow_tf32)
            run_sweep(
                shape, tables, GATED, w=transposed(w), state=y, out=y, x=g.contiguous(),
                known=gate.contiguous(),
            )  # fmt: skip
    return y


def gated_sweep_bwd(dy, y, g, gate, w, program, reversed_program, sizes, allow_tf32=False):
    """Gradients dg, dgate (B, N, D, H), dw (D, H, H)."""
    dy, y, g, gate, w = (t.contiguous() for t in (dy, y, g, gate, w))
    dg, dgate, t = torch.empty_like(g), torch.empty_like(g), torch.empty_like(g)
    if g.numel() == 0:
        return dg, dgate, torch.zeros_like(w)
    B, N, D, H = g.shape
    with launch.on(g):
        back = Tables.of(reversed_program, sizes[2], sizes[3], N, D)
        forth = Tables.of(program, sizes[0], sizes[1], N, D)
        shape = launch.sweep_shape(back, B, D, H, 1, g.dtype, g.device, allow_tf32)
        run_sweep(shape, back, GATED, w=w, state=dg, out=dg, x=dy, known=gate, pre=t)
        run_sweep(shape, forth, GATED, w=transposed(w), state=y, out=dgate, x=g, known=t)
        dw = weight_gradient(dg, y, 1, back, shape.precision).sum(0).to(w.dtype)
    return dg, dgate, dw
