"""The sweep for states too wide to stay in registers: any H.

The equations, programs and chunks of sweep_kernel.py. A chunk first adds up the predecessors'
states of its rows, once, into padded rows of a scratch that lives in L2 (sums_ptr); then each block
of columns is a product of those with W, both in blocks of BLOCK_K that are fetched into shared
memory while others are multiplied; forward as many products as the cell has gates, backward one
with the rows of all gates. What is carried is added up for a block of columns when that is made. A
program computes the column blocks program_id(2), program_id(2) + num_programs(2), .. of its rows.

Two ways to run it, by launch.py: all groups in one launch, all column blocks in one program, a
barrier between groups; or, where W is so large that one program could only wait for it, one launch
for each group, the column blocks spread over programs and the launches themselves as the barrier.

Counted in the compiled code (sm_90): of the 632 instructions of an exact block (16 rows, 128
columns, 32 of K) 512 are multiply-adds, so a step of R rows takes about R H^2 / 100 cycles where a
program has a multiprocessor to itself; W comes from L2 at every step, H^2 numbers for each program.
Predicted, not measured: 10 000 cycles (5 us) for 16 rows of H = 256. Holding W of H > 128 in exact
float32 on chip takes several multiprocessors that exchange states within a step, for which Triton
has no means.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cell import GRU, saved
from .tile import (
    DERIVATIVE,
    FORWARD,
    add_h0,
    add_projected,
    finish,
    is_column,
    load_blocks,
    load_keep,
    load_rows,
    reduced,
    store_blocks,
    tables_of,
)

_SIZES = ["B", "N", "num_groups", "num_edges", "first_group", "last_group", "num_parts"]


@triton.jit
def _sum(
    total, ptr, b, N, first, count, edge_ptr, is_live, d, D: tl.constexpr, ROW: tl.constexpr,
    WIDTH: tl.constexpr, col, ACC: tl.constexpr,
):  # fmt: skip
    """Adds the columns `col` of WIDTH of the predecessors, in rows of ROW from the pointer on."""
    for p in range(tl.max(count, 0)):
        has = is_live & (p < count)
        at = tl.load(edge_ptr + first + p, mask=has, other=0)
        row = ((b * N + at) * D + d)[:, None] * ROW + col[None, :]
        mask = has[:, None] & is_column(col, WIDTH)
        total += tl.load(ptr + row, mask=mask, other=0.0).to(ACC)
    return total


@triton.jit(do_not_specialize=_SIZES)
def sweep_wide_kernel(
    x_ptr,  # as in sweep_kernel.py, here without w_ih; None: zero
    bias_ptr,
    w_ptr,
    mask_ptr,  # (B, N) or None
    h0_ptr,  # (B, D, H) or None
    c0_ptr,  # (B, D, H) or None
    entry_ptr,  # (B, D) or None
    projection_ptr,  # (D, K, N) or None
    ds_ptr,  # (B, D, K, H) or None
    dc_ptr,  # (B, N, D, H) or None
    known_ptr,  # this and what follows as in sweep_kernel.py
    state_ptr,  # where predecessors' states are read
    carry_ptr,  # read too
    sums_ptr,  # (programs, D, programs, BLOCK_J * BLOCK_R, READS H padded to BLOCK_K): their sums
    out_ptr,
    pre_ptr,
    saved_ptr,
    program_ptr,  # the sweep program
    B, N, num_groups, num_edges, first_group, last_group,
    num_parts,  # blocks of BLOCK_K in READS H; of a constant the compiler would unroll and spill
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    MODE: tl.constexpr,
    CELL: tl.constexpr,
    G: tl.constexpr,
    BLOCKS: tl.constexpr,
    HAS_CARRY: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,  # columns made at once
    BLOCK_K: tl.constexpr,  # columns of the predecessors' states read at once
    STAGES: tl.constexpr,  # blocks of W in flight
    W_CAST: tl.constexpr,  # W needs a cast, in the interpreter
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See the head of the file."""
    d = tl.program_id(1)
    m = tl.arange(0, BLOCK_J * BLOCK_R)
    b = (tl.program_id(0) * BLOCK_R + m % BLOCK_R).to(INDEX)
    in_block = tl.arange(0, BLOCK_H)
    node_ptr, _, group_ptr, pred_ptr, edge_ptr = tables_of(
        program_ptr, d, N, D, num_groups, num_edges, False
    )
    num_succ_ptr = node_ptr + 2 * D * N
    w_ptr += d.to(tl.int64) * G * H * H
    FIRST: tl.constexpr = BLOCKS - G
    IS_BACK: tl.constexpr = MODE == DERIVATIVE
    ROW: tl.constexpr = BLOCKS if IS_BACK else 1
    READS: tl.constexpr = G if IS_BACK else 1
    U: tl.constexpr = G if MODE == FORWARD else 1
    KNOWN: tl.constexpr = 5 if CELL >= GRU else 1
    IS_APART: tl.constexpr = MEAN and IS_BACK
    STATE_ROW: tl.constexpr = G if IS_APART else ROW
    STATE_FIRST: tl.constexpr = STATE_ROW - READS
    WIDTH: tl.constexpr = READS * H  # terms of a product
    W_PITCH: tl.constexpr = G * H if MODE == FORWARD else H
    PITCH: tl.constexpr = (WIDTH + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    share = (tl.program_id(0) * D + d).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    sums_ptr += share * (BLOCK_J * BLOCK_R * PITCH)

    for g in range(first_group, last_group):
        end = tl.load(group_ptr + g + 1)
        for i0 in range(tl.load(group_ptr + g), end, BLOCK_J):
            i = i0 + m // BLOCK_R
            is_live = (b < B) & (i < end)
            n = tl.load(node_ptr + i, mask=i < end, other=0)
            first = tl.load(pred_ptr + i, mask=i < end, other=0)
            count = tl.load(pred_ptr + i + 1, mask=i < end, other=0) - first
            row = b * N + n
            keep = load_keep(mask_ptr, row, is_live)
            for k0 in range(0, WIDTH, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                total = _sum(
                    tl.zeros([BLOCK_J * BLOCK_R, BLOCK_K], ACC), state_ptr + STATE_FIRST * H, b, N,
                    first, count, edge_ptr, is_live, d, D, STATE_ROW * H, WIDTH, k, ACC,
                )  # fmt: skip
                if not IS_BACK:
                    total = reduced(total, count, MEAN, ACC)
                    total = add_h0(total, h0_ptr, entry_ptr, b, n, count, is_live, d, D, H, k, ACC)
                tl.store(sums_ptr + m[:, None] * PITCH + k[None, :], total.to(DOT))
            tl.debug_barrier()
            for block in range(tl.program_id(2), tl.cdiv(H, BLOCK_H), tl.num_programs(2)):
                col = block * BLOCK_H + in_block
                u = load_blocks(x_ptr, row * D + d, U, H, col, is_live, ACC)
                a = ()
                for q in tl.static_range(BLOCKS if MODE == FORWARD else 1):
                    a_q = u[(q + U - FIRST) % U] if q < U else u[0] * 0
                    if bias_ptr is not None:
                        at = (d * BLOCKS + ((q + U - FIRST) % U if q < U else q)) * H + col
                        a_q += tl.load(bias_ptr + at, mask=col < H, other=0.0).to(ACC)[None, :]
                    if MODE != FORWARD:
                        a_q = add_projected(
                            a_q, ds_ptr, projection_ptr, b, n, is_live, d, N, D, H, K, col, ACC
                        )
                    a = a + (a_q,)  # noqa: RUF005
                for part in tl.range(0, num_parts, num_stages=STAGES):
                    k = part * BLOCK_K + tl.arange(0, BLOCK_K)
                    total = tl.load(sums_ptr + m[:, None] * PITCH + k[None, :])
                    in_w = (k < WIDTH)[:, None] & is_column(col, H)
                    sums = ()
                    for q in tl.static_range(BLOCKS if MODE == FORWARD else 1):
                        a_q = a[q]
                        if MODE != FORWARD or q >= FIRST:
                            w_at = k[:, None] * W_PITCH + col[None, :]
                            if MODE == FORWARD:
                                w_at += (q - FIRST) * H
                            w = tl.load(w_ptr + w_at, mask=in_w, other=0.0)
                            if W_CAST:
                                w = w.to(ACC).to(DOT)
                            a_q = tl.dot(total, w, a_q, input_precision=PRECISION, out_dtype=ACC)
                        sums = sums + (a_q,)  # noqa: RUF005
                    a = sums
                known = ()
                if MODE != FORWARD:
                    known = load_blocks(known_ptr, row * D + d, KNOWN, H, col, is_live, ACC)
                brought = a[0]
                if HAS_CARRY:
                    brought = _sum(
                        tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC), carry_ptr, b, N, first, count,
                        edge_ptr, is_live, d, D, H, H, col, ACC,
                    )  # fmt: skip
                    if dc_ptr is not None:
                        brought += load_rows(dc_ptr, row * D + d, H, col, is_live, ACC)
                elif CELL == GRU:
                    brought = _sum(
                        tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC), state_ptr, b, N, first, count,
                        edge_ptr, is_live, d, D, H, H, col, ACC,
                    )  # fmt: skip
                if MODE == FORWARD and CELL >= GRU:
                    brought = reduced(brought, count, MEAN, ACC)
                    start_ptr = c0_ptr if HAS_CARRY else h0_ptr
                    brought = add_h0(
                        brought, start_ptr, entry_ptr, b, n, count, is_live, d, D, H, col, ACC
                    )
                y, carried = finish(a, known, brought, keep, MODE, CELL, ROW)
                is_stored = is_live[:, None] & is_column(col, H)
                store_blocks(out_ptr, row * D + d, y, 0, ROW, H, col, is_stored)
                if pre_ptr is not None:
                    store_blocks(pre_ptr, row * D + d, a, 0, 1, H, col, is_stored)
                if saved_ptr is not None:
                    known = saved(a, brought, CELL)
                    store_blocks(saved_ptr, row * D + d, known, 0, 5, H, col, is_stored)
                num = 1
                if IS_APART:
                    num = tl.load(num_succ_ptr + i, mask=is_live, other=1)
                    handed = ()
                    for q in tl.static_range(G):
                        handed = handed + (reduced(y[ROW - G + q], num, True, ACC),)  # noqa: RUF005
                    store_blocks(state_ptr, row * D + d, handed, 0, G, H, col, is_stored)
                if HAS_CARRY:
                    handed = (reduced(carried, num, IS_APART, ACC),)
                    store_blocks(carry_ptr, row * D + d, handed, 0, 1, H, col, is_stored)
            # The next chunk overwrites the sums, and the next group reads the states.
            tl.debug_barrier()
