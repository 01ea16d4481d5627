"""The sweep in one launch: W and the running state on chip (H up to 128, see launch.py).

    a[b,n,d] = u[b,n,d] + W[d] sum_{p in pred(d,n)} y[b,p,d]      u = w_ih x + bias, or given
    y        = mask * act(a)  |  mask * act'(h) * a  |  gate * a  (MODE, tile.py)

The last two are the derivative, on the reversed program and with W transposed: no second kernel.

One program = (direction d, tiles of BLOCK_R rows of B). It follows the sweep program: a chunk is up
to BLOCK_J visits of one group, which do not depend on each other, so M = BLOCK_J * BLOCK_R rows
share one product with W. BLOCK_J = 1 suits chains, a larger one grids; launch.py chooses.

Triton has no addressable fast memory, so predecessors' states are read back from global memory (the
output itself, or, where it is not kept, a scratch of slots, which lives in L2): the program wrote
them itself, and a barrier between groups orders that. With BLOCK_J = 1 the state of the visit just
made stays in registers: a chain reads nothing back. Tables and inputs of the next chunk are loaded
before this one is computed, since their latency would otherwise add to every step.

Floor of a step, counted in the compiled code (sm_90, Triton 3.9), not measured: a multiprocessor
issues four instructions a cycle, so a step takes at least a quarter of instructions of a warp x
warps in cycles, and two to ten barriers (changes of layout go through shared memory). On a chain a
warp issues about 560 instructions (H = 30, float32, 4 warps), 390 forward and 320 backward (H =
128, bfloat16, 8 warps); of a chunk of 8 visits x 4 rows of a grid 1790 forward with a projection
(H = 30, float32, 4 warps; 510 of them are the products), 950 backward (8 warps); of 32 x 1 (H =
128, bfloat16, 8 warps) 830 and 690. The rest of a grid's step is one read of L2 after the barrier.

Weight gradients (dw_ptr): dW = sum_n (sum of successors' du)[n] (x) h[n], both at hand here; each
program writes its partial sum, and the caller adds those in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile import FORWARD, add_h0, add_projected, finish, load_keep, load_rows

# Sizes of the call: a new value must never compile a new kernel.
_SIZES = ["B", "N", "C", "K", "num_groups", "num_edges", "num_states"]


@triton.jit
def _visit(i0, node_ptr, own_ptr, pred_ptr, edge_ptr, N, BLOCK_J: tl.constexpr):
    """The tables' entries of visit i0, as scalars: all of a chunk with one visit, else unused."""
    n, own, first, count, edge = i0, i0, i0, i0, i0
    if BLOCK_J == 1:
        at = tl.minimum(i0, N - 1)
        n = tl.load(node_ptr + at)
        own = tl.load(own_ptr + at)
        first = tl.load(pred_ptr + at)
        count = tl.load(pred_ptr + at + 1) - first
        edge = tl.load(edge_ptr + first, mask=count > 0, other=-2)
    return n, own, first, count, edge


@triton.jit
def _inputs(
    i0, end, visit, b, in_b, d, j, col, in_c, N, D, C, H, node_ptr, x_ptr, w_ih_ptr, gate_ptr,
    MODE: tl.constexpr, ACC: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The chunk's rows of x (or u) and of the gate."""
    i = i0 + j
    is_live = in_b & (i < end)
    n = visit + j if BLOCK_J == 1 else tl.load(node_ptr + i, mask=i < end, other=0)
    row = b * N + n
    if w_ih_ptr is None:
        u = load_rows(x_ptr, row * D + d, H, col, is_live, ACC)
    else:
        u = load_rows(x_ptr, row, C, in_c, is_live, ACC)
    gate = i0 if MODE == FORWARD else load_rows(gate_ptr, row * D + d, H, col, is_live, ACC)
    return u, gate


@triton.jit(do_not_specialize=_SIZES)
def sweep_kernel(
    x_ptr,  # (B, N, C), or u (B, N, D, H) without w_ih; None: zero
    w_ih_ptr,  # (D, H, C) or None
    bias_ptr,  # (D, H) or None
    w_ptr,  # (D, H, H)
    mask_ptr,  # (B, N) or None
    h0_ptr,  # (B, D, H) or None
    entry_ptr,  # (B, D) or None
    projection_ptr,  # (D, K, N) or None
    ds_ptr,  # (B, D, K, H) or None
    gate_ptr,  # (B, N, D, H): h or gate, by MODE
    state_ptr,  # (B, num_states, D, H): where predecessors' states are read
    out_ptr,  # (B, num_states, D, H): where this one goes; the same, if there is a recurrence
    pre_ptr,  # (B, N, D, H) or None: a
    s_ptr,  # (B, D, K, H) or None
    dw_ptr,  # (programs, D, H, H) or None
    program_ptr,  # the sweep program
    B, N, D, C, H, K, num_groups, num_edges, num_states,
    MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # W[d]^T in place of W[d]
    SLOTS: tl.constexpr,  # num_states counts slots, not nodes
    CARRY: tl.constexpr,  # the last visit's state stays in registers (BLOCK_J = 1 and out is state)
    UNROLL: tl.constexpr,  # predecessors that are loaded at once
    BLOCK_J: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,  # dtype of the products' operands
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See the head of the file."""
    d = tl.program_id(1)
    m = tl.arange(0, BLOCK_J * BLOCK_R)
    j = m // BLOCK_R
    col = tl.arange(0, BLOCK_H)
    in_c = tl.arange(0, BLOCK_C)
    in_k = tl.arange(0, BLOCK_K)
    in_h = col < H

    node_ptr = program_ptr + d * N
    group_ptr = program_ptr + 3 * D * N + d * (num_groups + 1)
    pred_ptr = program_ptr + 3 * D * N + D * (num_groups + 1) + d * (N + 1)
    edge_ptr = program_ptr + 3 * D * N + D * (num_groups + 1) + D * (N + 1)
    own_ptr = node_ptr
    if SLOTS:
        own_ptr += D * N
    else:
        edge_ptr += num_edges

    # w[k, n]: what state k adds to n.
    w_at = col[:, None] * H + col[None, :] if TRANSPOSED else col[None, :] * H + col[:, None]
    w = tl.load(w_ptr + d * H * H + w_at, mask=in_h[:, None] & in_h[None, :], other=0.0)
    w = w.to(ACC).to(DOT)
    if w_ih_ptr is not None:
        u_at = (d * H + col[None, :]) * C + in_c[:, None]
        w_ih = tl.load(w_ih_ptr + u_at, mask=(in_c < C)[:, None] & in_h[None, :], other=0.0)
        w_ih = w_ih.to(ACC).to(DOT)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + d * H + col, mask=in_h, other=0.0).to(ACC)
    if dw_ptr is not None:
        dw = tl.zeros([BLOCK_H, BLOCK_H], ACC)

    # Partial sums are kept over several tiles; without them a program takes one.
    if dw_ptr is None:
        tiles, step = tl.program_id(0) + 1, 1
    else:
        tiles, step = tl.cdiv(B, BLOCK_R), tl.num_programs(0)
    for tile in range(tl.program_id(0), tiles, step):
        b = (tile * BLOCK_R + m % BLOCK_R).to(tl.int64)
        in_b = b < B
        if s_ptr is not None:
            s = tl.zeros([BLOCK_K, BLOCK_R * BLOCK_H], ACC)
        if CARRY:
            last_own = m * 0 - 1
            last = tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC)

        i0 = tl.load(group_ptr)
        end = tl.load(group_ptr + 1)
        g = i0 + 1
        visit, v_own, v_first, v_count, v_edge = _visit(
            i0, node_ptr, own_ptr, pred_ptr, edge_ptr, N, BLOCK_J
        )
        u, gate = _inputs(
            i0, end, visit, b, in_b, d, j, col, in_c, N, D, C, H,
            node_ptr, x_ptr, w_ih_ptr, gate_ptr, MODE, ACC, BLOCK_J,
        )  # fmt: skip
        while i0 < N:
            # Only scalars and tiles are carried: vectors would be moved between layouts.
            i = i0 + j
            is_visit = i < end
            is_live = in_b & is_visit
            if BLOCK_J == 1:
                n, own, first, count, edge = (
                    visit + j, v_own + j, v_first + j, v_count + j, v_edge + j,
                )  # fmt: skip
                most = v_count
            else:
                n = tl.load(node_ptr + i, mask=is_visit, other=0)
                own = tl.load(own_ptr + i, mask=is_visit, other=0)
                first = tl.load(pred_ptr + i, mask=is_visit, other=0)
                count = tl.load(pred_ptr + i + 1, mask=is_visit, other=0) - first
                edge = tl.load(edge_ptr + first, mask=count > 0, other=-2)
                most = tl.max(count, 0)
            row = b * N + n
            keep = load_keep(mask_ptr, row, is_live)

            # The sum of the predecessors' states.
            total = tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC)
            for p in tl.static_range(UNROLL):
                has = is_live & (p < count)
                at = edge if p == 0 else tl.load(edge_ptr + first + p, mask=has, other=-2)
                if CARRY:
                    is_last = has & (at == last_own)
                    total += tl.where(is_last[:, None], last, 0.0)
                    has = has & (at != last_own)
                total += load_rows(state_ptr, (b * num_states + at) * D + d, H, col, has, ACC)
            for p in range(UNROLL, most):
                has = is_live & (p < count)
                at = tl.load(edge_ptr + first + p, mask=has, other=-2)
                total += load_rows(state_ptr, (b * num_states + at) * D + d, H, col, has, ACC)
            total = add_h0(total, h0_ptr, entry_ptr, b, n, count, is_live, d, D, H, col, ACC)

            # The next chunk, and its inputs.
            next_i0 = tl.minimum(i0 + BLOCK_J, end)
            next_g = tl.where(next_i0 == end, g + 1, g)
            next_end = tl.load(group_ptr + tl.minimum(next_g, num_groups))
            next_visit, next_own, next_first, next_count, next_edge = _visit(
                next_i0, node_ptr, own_ptr, pred_ptr, edge_ptr, N, BLOCK_J
            )
            next_u, next_gate = _inputs(
                next_i0, next_end, next_visit, b, in_b, d, j, col, in_c, N, D, C, H,
                node_ptr, x_ptr, w_ih_ptr, gate_ptr, MODE, ACC, BLOCK_J,
            )  # fmt: skip

            if w_ih_ptr is None:
                a = u
            else:
                a = tl.dot(u.to(DOT), w_ih, input_precision=PRECISION, out_dtype=ACC)
            if bias_ptr is not None:
                a += bias[None, :]
            a = add_projected(a, ds_ptr, projection_ptr, b, n, is_live, d, N, D, H, K, col, ACC)
            a = tl.dot(total.to(DOT), w, a, input_precision=PRECISION, out_dtype=ACC)
            y = finish(a, gate, keep, MODE, ACTIVATION)

            if SLOTS:
                tl.debug_barrier()  # a slot that a predecessor leaves here may be taken here
            is_stored = is_live[:, None] & in_h[None, :]
            at = ((b * num_states + own) * D + d)[:, None] * H + col[None, :]
            tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=is_stored)
            if pre_ptr is not None:
                at = (row * D + d)[:, None] * H + col[None, :]
                tl.store(pre_ptr + at, a.to(pre_ptr.dtype.element_ty), mask=is_stored)
            if dw_ptr is not None:
                product = tl.dot(
                    tl.trans(total.to(DOT)), gate.to(DOT), input_precision=PRECISION, out_dtype=ACC
                )
                dw += product
            if s_ptr is not None:
                at = i0 + tl.arange(0, BLOCK_J)
                nodes = tl.load(node_ptr + at, mask=at < end, other=0)
                g_at = (d * K + in_k)[:, None] * N + nodes[None, :]
                g_mask = (in_k < K)[:, None] & (at < end)[None, :]
                weight = tl.load(projection_ptr + g_at, mask=g_mask, other=0.0).to(ACC)
                states = tl.reshape(y, [BLOCK_J, BLOCK_R * BLOCK_H])
                if BLOCK_J == 1:
                    s += weight * states
                else:
                    # Without the zero Triton 3.6 makes a product in TF32 of this.
                    s += tl.sum(weight[:, :, None] * states[None, :, :] + 0.0, 1)
            tl.debug_barrier()  # what is read by the next group has been written

            if CARRY:
                last = y
                last_own = own
            i0 = next_i0
            g = next_g
            end = next_end
            visit, v_own, v_first, v_count, v_edge = (
                next_visit, next_own, next_first, next_count, next_edge,
            )  # fmt: skip
            u, gate = next_u, next_gate

        if s_ptr is not None:
            rh = tl.arange(0, BLOCK_R * BLOCK_H)
            b_s = (tile * BLOCK_R + rh // BLOCK_H).to(tl.int64)
            c_s = rh % BLOCK_H
            at = ((b_s * D + d)[None, :] * K + in_k[:, None]) * H + c_s[None, :]
            is_stored = (in_k < K)[:, None] & ((b_s < B) & (c_s < H))[None, :]
            tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=is_stored)
    if dw_ptr is not None:
        at = ((tl.program_id(0) * D + d) * H + col[:, None]) * H + col[None, :]
        tl.store(dw_ptr + at, dw, mask=in_h[:, None] & in_h[None, :])
