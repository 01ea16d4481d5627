"""dW of a sweep for any H: dW[d] = sum_{b,n} (sum of the successors' du)[b,n,d] (x) h[b,n,d].

With G gates du has as many blocks, which lie at the end of its rows. A plain sum over all (b, n),
so no order of visits matters. A program takes a share of the rows and one BLOCK_H x BLOCK_H block
of dW[d], and writes its partial sum; those are added in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch
from .tile import is_column, load_rows

_SIZES = ["B", "N", "num_groups", "num_edges", "rows_per_program"]


@triton.jit(do_not_specialize=_SIZES)
def sweep_weights_kernel(
    du_ptr,  # (B, N, D, ROW)
    h_ptr,  # (B, N, D, H)
    dw_ptr,  # (programs, D, G H, H)
    program_ptr,  # the reversed sweep program
    B, N, num_groups, num_edges, rows_per_program,
    D: tl.constexpr,
    H: tl.constexpr,
    GH: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See the head of the file."""
    d = tl.program_id(1)
    num_blocks = tl.cdiv(H, BLOCK_H)
    to = tl.program_id(2) // num_blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    of = tl.program_id(2) % num_blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    node_ptr = program_ptr + d * N
    pred_ptr = program_ptr + 3 * D * N + D * (num_groups + 1) + d * (N + 1)
    edge_ptr = program_ptr + 3 * D * N + D * (num_groups + 1) + D * (N + 1) + num_edges
    dw = tl.zeros([BLOCK_H, BLOCK_H], ACC)
    start = tl.program_id(0).to(tl.int64) * rows_per_program
    num_rows = tl.minimum(rows_per_program, B.to(tl.int64) * N - start)
    for step in range(0, num_rows, BLOCK_M):
        m = step + tl.arange(0, BLOCK_M)
        is_live = m < num_rows
        b = (start + m) // N
        i = (start + m) % N
        n = tl.load(node_ptr + i, mask=is_live, other=0)
        first = tl.load(pred_ptr + i, mask=is_live, other=0)
        count = tl.load(pred_ptr + i + 1, mask=is_live, other=0) - first
        total = tl.zeros([BLOCK_M, BLOCK_H], ACC)
        for p in range(tl.max(count, 0)):
            has = is_live & (p < count)
            at = tl.load(edge_ptr + first + p, mask=has, other=0)
            du_at = ((b * N + at) * D + d)[:, None] * ROW + (ROW - GH) + to[None, :]
            mask = has[:, None] & is_column(to, GH)
            total += tl.load(du_ptr + du_at, mask=mask, other=0.0).to(ACC)
        h = load_rows(h_ptr, (b * N + n) * D + d, H, of, is_live, ACC)
        dw += tl.dot(tl.trans(total.to(DOT)), h.to(DOT), input_precision=PRECISION, out_dtype=ACC)
    at = ((tl.program_id(0) * D + d).to(tl.int64) * GH + to[:, None]) * H + of[None, :]
    tl.store(dw_ptr + at, dw, mask=(to < GH)[:, None] & (of < H)[None, :])


def weight_gradient(
    du: torch.Tensor, h: torch.Tensor, G: int, tables: launch.Tables, precision: str
) -> torch.Tensor:
    """Partial sums of dW, (programs, D, G H, H), from the tables of the reversed program."""
    B, N, D, H = h.shape
    types = launch.types(h.dtype, precision)
    block_h, block_m, num_warps = launch.weights_shape(H, h.dtype, precision)
    blocks = triton.cdiv(G * H, block_h) * triton.cdiv(H, block_h)
    rows = B * N
    programs = min(
        triton.cdiv(rows, 4 * block_m), max(1, launch.num_programs(h.device) // (D * blocks))
    )
    share = triton.cdiv(triton.cdiv(rows, programs), block_m) * block_m
    partial = h.new_empty((programs, D, G * H, H), dtype=launch.accumulator(h.dtype))
    sweep_weights_kernel[programs, D, blocks](
        du, h, partial, tables.program, B, N, tables.num_groups, tables.num_edges, share, D=D, H=H,
        GH=G * H, ROW=du.shape[-1],
        BLOCK_M=block_m, BLOCK_H=block_h, **types, **launch.options(num_warps, 168, h.device),
    )  # fmt: skip
    return partial
