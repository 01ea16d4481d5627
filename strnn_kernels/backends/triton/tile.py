"""What the sweep kernels share: activations, and tiles of (visits of the program) x (rows of B).

A tile has M = BLOCK_J * BLOCK_R rows: row m is visit ``i0 + m // BLOCK_R`` of sequence
``b0 + m % BLOCK_R``. All arithmetic is in ACC (float32, or float64 for float64); 16-bit values are
cast as soon as they are loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

FORWARD: tl.constexpr = tl.constexpr(0)  # h = mask * act(a)
DERIVATIVE: tl.constexpr = tl.constexpr(1)  # du = mask * act'(h) * a, the gate tile holds h
GATED: tl.constexpr = tl.constexpr(2)  # y = gate * a


@triton.jit
def tables_of(program_ptr, d, N, D, num_groups, num_edges, HAS_SLOTS: tl.constexpr):
    """Of direction d: nodes, own places, groups, ranges of predecessors, and their places.

    A place is a slot or a node.
    """
    node_ptr = program_ptr + d * N
    group_ptr = program_ptr + 3 * D * N + d * (num_groups + 1)
    pred_ptr = program_ptr + 3 * D * N + D * (num_groups + 1) + d * (N + 1)
    edge_ptr = program_ptr + 3 * D * N + D * (num_groups + 1) + D * (N + 1)
    if HAS_SLOTS:
        own_ptr = node_ptr + D * N
    else:
        own_ptr = node_ptr
        edge_ptr += num_edges
    return node_ptr, own_ptr, group_ptr, pred_ptr, edge_ptr


@triton.jit
def activate(a, ACTIVATION: tl.constexpr):
    """act(a); codes as in notation.ACTIVATIONS. A NaN stays one."""
    if ACTIVATION == 1:
        a = tl.where(a < 0, 0.0, a)
    if ACTIVATION == 2:
        # Of exp(-2|a|), which never overflows.
        e = tl.exp(-2 * tl.abs(a))
        t = (1 - e) / (1 + e)
        a = tl.where(a < 0, -t, t)
    if ACTIVATION == 3:
        a = 1 / (1 + tl.exp(-a))
    return a


@triton.jit
def derivative(h, ACTIVATION: tl.constexpr):
    """act'(a) as a function of h = act(a)."""
    if ACTIVATION == 1:
        d = tl.where(h <= 0, 0.0, 1.0).to(h.dtype)
    elif ACTIVATION == 2:
        d = 1 - h * h
    elif ACTIVATION == 3:
        d = h * (1 - h)
    else:
        d = h * 0 + 1
    return d


@triton.jit
def finish(a, gate, keep, MODE: tl.constexpr, ACTIVATION: tl.constexpr):
    """The state from what reached the node; a masked one is selected away, not multiplied."""
    if MODE == FORWARD:
        y = tl.where(keep[:, None], activate(a, ACTIVATION), 0.0)
    elif MODE == DERIVATIVE:
        y = tl.where(keep[:, None], derivative(gate, ACTIVATION) * a, 0.0)
    else:
        y = gate * a
    return y


@triton.jit
def load_rows(ptr, row, WIDTH: tl.constexpr, col, is_live, ACC: tl.constexpr):
    """Rows ``row`` (M,) of a matrix of this width, columns ``col``; zero where absent."""
    if ptr is None:
        tile = tl.zeros([row.shape[0], col.shape[0]], ACC)
    else:
        at = row[:, None] * WIDTH + col[None, :]
        tile = tl.load(ptr + at, mask=is_live[:, None] & is_column(col, WIDTH), other=0.0).to(ACC)
    return tile


@triton.jit
def load_state(ptr, offset, is_live, WIDTH: tl.constexpr, col, ACC: tl.constexpr):
    """The tile (M, BLOCK) that lies at ptr + offset; zero where absent."""
    mask = is_live[:, None] & is_column(col, WIDTH)
    return tl.load(ptr + offset, mask=mask, other=0.0).to(ACC)


@triton.jit
def is_column(col, WIDTH: tl.constexpr):
    """Which columns exist (1, BLOCK); where all do the compiler need not compare."""
    return (col < WIDTH)[None, :]


@triton.jit
def load_keep(mask_ptr, row, is_live):
    """Which rows take part (M,); row counts (b, n)."""
    keep = is_live if mask_ptr is None else tl.load(mask_ptr + row, mask=is_live, other=0) != 0
    return keep


@triton.jit
def add_h0(
    total, h0_ptr, entry_ptr, b, n, count, is_live, d, D, H: tl.constexpr, col, ACC: tl.constexpr
):  # fmt: skip
    """Adds h0 where it enters: at node entry[b, d], or at nodes without predecessors."""
    if h0_ptr is not None:
        if entry_ptr is None:
            enters = is_live & (count == 0)
        else:
            enters = is_live & (tl.load(entry_ptr + b * D + d, mask=is_live, other=-1) == n)
        total += load_rows(h0_ptr, b * D + d, H, col, enters, ACC)
    return total


@triton.jit
def add_projected(
    a, ds_ptr, projection_ptr, b, n, is_live, d, N, D, H: tl.constexpr, K, col, ACC: tl.constexpr
):  # fmt: skip
    """Adds sum_k projection[d, k, n] ds[b, d, k]; exact zeros load nothing."""
    if ds_ptr is not None:
        for k in range(K):
            g = tl.load(projection_ptr + (d * K + k) * N + n, mask=is_live, other=0.0).to(ACC)
            a += g[:, None] * load_rows(ds_ptr, (b * D + d) * K + k, H, col, g != 0, ACC)
    return a
