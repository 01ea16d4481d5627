"""The sweep for states too wide to stay in registers: any H.

The equations, programs and chunks of sweep_kernel.py. A chunk first adds up the predecessors'
states of its rows, once, into padded rows of a scratch that lives in L2 (sums_ptr); then each block
of columns is a product of those with W, both in blocks of BLOCK_K that are fetched into shared
memory while others are multiplied. A program computes the column blocks program_id(2),
program_id(2) + num_programs(2), .. of its rows.

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

from .tile import (
    FORWARD,
    add_h0,
    add_projected,
    finish,
    is_column,
    load_keep,
    load_rows,
    tables_of,
)

_SIZES = ["B", "N", "num_groups", "num_edges", "first_group", "last_group", "num_parts"]


@triton.jit(do_not_specialize=_SIZES)
def sweep_wide_kernel(
    x_ptr,  # (B, N, D, H) u; None: zero
    w_ptr,  # (D, H, H), as in sweep_kernel.py
    mask_ptr,  # (B, N) or None
    h0_ptr,  # (B, D, H) or None
    entry_ptr,  # (B, D) or None
    projection_ptr,  # (D, K, N) or None
    ds_ptr,  # (B, D, K, H) or None
    gate_ptr,  # (B, N, D, H): h or gate, by MODE
    state_ptr,  # (B, N, D, H): where predecessors' states are read
    sums_ptr,  # (programs, D, programs, BLOCK_J * BLOCK_R, H padded to BLOCK_K): their sums
    out_ptr,  # (B, N, D, H)
    pre_ptr,  # (B, N, D, H) or None: a
    program_ptr,  # the sweep program
    B, N, num_groups, num_edges, first_group, last_group,
    num_parts,  # blocks of BLOCK_K in H; were it a constant, the compiler would unroll and spill
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
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
    w_ptr += d.to(tl.int64) * H * H
    PITCH: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K * BLOCK_K
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
            most = tl.max(count, 0)
            for k0 in range(0, H, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                total = tl.zeros([BLOCK_J * BLOCK_R, BLOCK_K], ACC)
                for p in range(most):
                    has = is_live & (p < count)
                    at = tl.load(edge_ptr + first + p, mask=has, other=0)
                    total += load_rows(state_ptr, (b * N + at) * D + d, H, k, has, ACC)
                total = add_h0(total, h0_ptr, entry_ptr, b, n, count, is_live, d, D, H, k, ACC)
                tl.store(sums_ptr + m[:, None] * PITCH + k[None, :], total.to(DOT))
            tl.debug_barrier()
            for block in range(tl.program_id(2), tl.cdiv(H, BLOCK_H), tl.num_programs(2)):
                col = block * BLOCK_H + in_block
                a = load_rows(x_ptr, row * D + d, H, col, is_live, ACC)
                a = add_projected(a, ds_ptr, projection_ptr, b, n, is_live, d, N, D, H, K, col, ACC)
                for part in tl.range(0, num_parts, num_stages=STAGES):
                    k = part * BLOCK_K + tl.arange(0, BLOCK_K)
                    total = tl.load(sums_ptr + m[:, None] * PITCH + k[None, :])
                    w_at = k[:, None] * H + col[None, :]
                    in_w = (k < H)[:, None] & is_column(col, H)
                    w = tl.load(w_ptr + w_at, mask=in_w, other=0.0)
                    if W_CAST:
                        w = w.to(ACC).to(DOT)
                    a = tl.dot(total, w, a, input_precision=PRECISION, out_dtype=ACC)
                if MODE == FORWARD:
                    gate = a
                else:
                    gate = load_rows(gate_ptr, row * D + d, H, col, is_live, ACC)
                y = finish(a, gate, keep, MODE, ACTIVATION)
                at = (row * D + d)[:, None] * H + col[None, :]
                is_stored = is_live[:, None] & is_column(col, H)
                tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=is_stored)
                if pre_ptr is not None:
                    tl.store(pre_ptr + at, a.to(pre_ptr.dtype.element_ty), mask=is_stored)
            # The next chunk overwrites the sums, and the next group reads the states.
            tl.debug_barrier()
