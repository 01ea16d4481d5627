"""What the sweep kernels share: tiles of (visits of the program) x (rows of B), and their loads.

A tile has M = BLOCK_J * BLOCK_R rows: row m is visit ``i0 + m // BLOCK_R`` of sequence
``b0 + m % BLOCK_R``. All arithmetic is in ACC (float32, or float64 for float64); 16-bit values are
cast as soon as they are loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cell import GRU, backward, forward

FORWARD: tl.constexpr = tl.constexpr(0)  # h, carried = mask * cell(a, m)
DERIVATIVE: tl.constexpr = tl.constexpr(1)  # da, dm = mask * its gradients, a is dh
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
def finish(a, known, m, keep, MODE: tl.constexpr, CELL: tl.constexpr, ROW: tl.constexpr):
    """The ROW blocks that a node gives, and what it carries, from what reached it.

    What is masked is selected away, not multiplied.
    """
    if MODE == GATED:
        row, carried = (known[0] * a[0],), m
    else:
        if MODE == FORWARD:
            h, carried = forward(a, m, CELL)
            made = (h,)
        elif CELL == GRU:
            made, carried = backward(known, a[0] + m, m, CELL)
        else:
            made, carried = backward(known, a[0], m, CELL)
        row = ()
        for k in tl.static_range(ROW):
            row = row + (tl.where(keep[:, None], made[k], 0.0),)  # noqa: RUF005
        carried = tl.where(keep[:, None], carried, 0.0)
    return row, carried


@triton.jit
def reduced(tile, count, MEAN: tl.constexpr, ACC: tl.constexpr):
    """The tile, or over so many rows of a mean."""
    if MEAN:
        tile = tile * (1 / tl.maximum(count, 1).to(ACC))[:, None]
    return tile


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
def load_blocks(
    ptr, row, NUM: tl.constexpr, H: tl.constexpr, col, is_live, ACC: tl.constexpr
):  # fmt: skip
    """The NUM blocks of rows of NUM H, as a tuple."""
    tiles = ()
    for k in tl.static_range(NUM):
        if ptr is None:
            tile = load_rows(None, row, H, col, is_live, ACC)
        else:
            tile = load_rows(ptr + k * H, row * NUM, H, col, is_live, ACC)
        tiles = tiles + (tile,)  # noqa: RUF005
    return tiles


@triton.jit
def store_blocks(
    ptr, row, tiles, FIRST: tl.constexpr, NUM: tl.constexpr, H: tl.constexpr, col, is_stored
):  # fmt: skip
    """Writes rows of NUM H, whose blocks are the tiles from FIRST on."""
    for k in tl.static_range(NUM):
        at = (row * NUM)[:, None] * H + k * H + col[None, :]
        tl.store(ptr + at, tiles[FIRST + k].to(ptr.dtype.element_ty), mask=is_stored)


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
