"""The sweep in one launch: W and the running state on chip (H up to 128, see launch.py).

    a[b,n,d] = u[b,n,d] + W[d] sum_{p in pred(d,n)} y[b,p,d]      u = w_ih x + bias, or given
    y        = mask * cell(a, m)  |  mask * cell'(dh) with dh = a  |  gate * a  (MODE, tile.py)

The last two are the derivative, on the reversed program and with W transposed: no second kernel.
A gated cell has G blocks of H in a where it has one in y, and its derivative the other way round;
m, the sum over the predecessors of what is carried, is one block more (cell.py).

One program = (direction d, tiles of BLOCK_R rows of B). It follows the sweep program: a chunk is up
to BLOCK_J visits of one group, which do not depend on each other, so M = BLOCK_J * BLOCK_R rows
share one product with W. BLOCK_J = 1 suits chains, a larger one grids; launch.py chooses.

Triton has no addressable fast memory, so predecessors' states are read back from global memory (the
output itself, or, where it is not kept or its rows are odd, a scratch of slots in padded rows that
lives in L2): the program wrote them itself, and a barrier between groups orders that. With
BLOCK_J = 1 the state of the visit just made stays in registers, and nothing is read back along a
chain. Inputs that are tiles are loaded before the chunk ahead of them is computed.

A masked chain begins and ends a tile where its rows do (`_part`); rows of equal length share tiles.

W is held once per program. In exact float32 with one row to a program a thread has one column of W
in its registers and one sum to make: PARTS cuts that sum into four that do not wait for each other,
so the chain of multiply-adds is H / 4 long. With more rows W lies in shared memory, rows along n: a
warp's reads then fall on different banks (along k, as W lies in memory, all on the same ones:
that cost 16 turns for each read).

Instructions of a warp for one step, counted in the compiled code (sm_90, Triton 3.9; 3.6 differs by
a few percent), outside the branch for more than three predecessors:

    SEED forward, relu      400 (148 multiply-adds), tile 8 x 2, 4 warps
    the same, tanh, K = 10  454 (188); before: 1790 for the 32 rows of 8 x 4, twice as many a row
    SEED backward           583 (256, dW included), 4 warps; before, with mask and K: about 1000 for
                            the 32 rows of 8 x 4 on 8 warps
    chain, H = 30           146, 1 row, 1 warp; before: 560, 16 rows, 8 warps
    chain, H = 128          224 (128), 1 row, 4 warps, 4 barriers; before: the wide kernel
    chain, H = 128, bfloat16   about 170, 16 rows, 8 warps
    image, H = 128, bfloat16   529, 32 rows, 8 warps

Predicted from these, not measured. SEED forward: 576 programs on 132 multiprocessors, five on the
busiest, 20 warps on 4 schedulers, 13 steps: 5 * 400 * 13 = 26 000 cycles, 13 us at 1.98 GHz, and a
transposed copy of W before it; the aim of 12 us is missed by the count. What is left are tables (a
count and three edges for each row), addresses of gathered rows and the 40 % of rows in which a
level has no visit. SEED backward: 5 * 583 * 13 = 38 000 cycles, 19 us, then the sum of the parts of
dW and the GEMMs for dw_ih and dx: within the aim of 30 us if those stay under 10. A chain of
H = 128 in exact float32: per step 128 multiply-adds on each scheduler, four barriers and a round
through shared memory, 300 to 400 cycles: 0.2 us, 100 us for T = 512. Bytes never bind here: SEED
moves 9 MB (2 us), the chain 34 MB (7 us).

Weight gradients (dw_ptr): dW = sum_n (sum of successors' du)[n] (x) h[n], both at hand here; each
program writes its partial sum, and the caller adds those in order. A tile of fewer than 16 rows
leaves them to sweep_weights.py.
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
    load_state,
    reduced,
    store_blocks,
    tables_of,
)

# Sizes of the call: a new value must never compile a new kernel.
_SIZES = ["B", "N", "num_groups", "num_edges", "num_slots", "w_stride"]


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
    i0, end, visit, b, in_b, d, j, col, N, D: tl.constexpr, C: tl.constexpr, H: tl.constexpr,
    node_ptr, x_ptr, w_ih_ptr, known_ptr, MODE: tl.constexpr, U: tl.constexpr,
    KNOWN: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The chunk's rows of x (or of U blocks of u) and of what is known, loaded as tiles."""
    i = i0 + j
    is_live = in_b & (i < end)
    n = visit + j if BLOCK_J == 1 else tl.load(node_ptr + i, mask=i < end, other=0)
    row = b * N + n
    x, known = (), ()
    if w_ih_ptr is None:
        x = load_blocks(x_ptr, row * D + d, U, H, col, is_live, ACC)
    elif BLOCK_C > 0:
        x = (load_rows(x_ptr, row, C, tl.arange(0, BLOCK_C), is_live, ACC),)
    if MODE != FORWARD:
        known = load_blocks(known_ptr, row * D + d, KNOWN, H, col, is_live, ACC)
    return x, known


@triton.jit
def _read(
    read_ptr, carry_ptr, at, is_live, STRIDE: tl.constexpr, STEP: tl.constexpr,
    WIDTH: tl.constexpr, CARRY_STRIDE: tl.constexpr, H: tl.constexpr, col, READS: tl.constexpr,
    HAS_CARRY: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of the states at the places `at`: the blocks, then what is carried."""
    found = ()
    for k in tl.static_range(READS):
        tile = load_state(read_ptr + k * STEP, at * STRIDE, is_live, WIDTH, col, ACC)
        found = found + (tile,)  # noqa: RUF005
    if HAS_CARRY:
        if carry_ptr is None:
            found = found + (found[0] * 0,)  # noqa: RUF005
        else:
            tile = load_state(carry_ptr, at * CARRY_STRIDE, is_live, H, col, ACC)
            found = found + (tile,)  # noqa: RUF005
    return found


@triton.jit
def _plus(total, more, NUM: tl.constexpr):
    """Both tuples, added."""
    sums = ()
    for k in tl.static_range(NUM):
        sums = sums + (total[k] + more[k],)  # noqa: RUF005
    return sums


@triton.jit
def _part(mask_ptr, node_ptr, b, in_b, N):
    """The visits [first, last + 1) outside which no row of the tile takes part."""
    first, stop = N, N * 0
    for i0 in range(0, N, 64):
        i = i0 + tl.arange(0, 64)
        n = tl.load(node_ptr + i, mask=i < N, other=0)
        at = (b * N)[:, None] + n[None, :]
        is_on = tl.load(mask_ptr + at, mask=in_b[:, None] & (i < N)[None, :], other=0) != 0
        first = tl.minimum(first, tl.min(tl.min(tl.where(is_on, i[None, :], N), 1), 0))
        stop = tl.maximum(stop, tl.max(tl.max(tl.where(is_on, i[None, :] + 1, 0), 1), 0))
    return tl.minimum(first, stop), stop


@triton.jit
def _fill(
    first, stop, b, in_b, d, col, node_ptr, N, D: tl.constexpr, H: tl.constexpr, ROW: tl.constexpr,
    out_ptr,
):  # fmt: skip
    """Zeros at the visits [first, stop), in rows of ROW blocks."""
    if out_ptr is not None:
        for i in range(first, stop):
            row = (b * N + tl.load(node_ptr + i)) * D + d
            for k in tl.static_range(ROW):
                at = row[:, None] * (ROW * H) + k * H + col[None, :]
                tl.store(out_ptr + at, 0.0, mask=in_b[:, None] & is_column(col, H))


@triton.jit
def _add_product(
    a, total, w, FIRST_W: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds total times the block of W whose PARTS begin at FIRST_W.

    Four parts, of exact products only, are sums that do not wait for each other.
    """
    if PARTS == 1:
        a = tl.dot(total.to(DOT), w[FIRST_W], a, input_precision=PRECISION, out_dtype=ACC)
    else:
        quarters = tl.permute(tl.reshape(total, [BLOCK_M, 2, 2, BLOCK_H // 4]), 0, 3, 1, 2)
        even, odd = tl.split(quarters)
        t_0, t_2 = tl.split(even)
        t_1, t_3 = tl.split(odd)
        a = tl.dot(t_0, w[FIRST_W], a, input_precision="ieee", out_dtype=ACC)
        a_1 = tl.dot(t_1, w[FIRST_W + 1], input_precision="ieee", out_dtype=ACC)
        a_2 = tl.dot(t_2, w[FIRST_W + 2], input_precision="ieee", out_dtype=ACC)
        a_3 = tl.dot(t_3, w[FIRST_W + 3], input_precision="ieee", out_dtype=ACC)
        a = (a + a_1) + (a_2 + a_3)
    return a


@triton.jit(do_not_specialize=_SIZES)
def sweep_kernel(
    x_ptr,  # (B, N, C), or u (B, N, D, G H) without w_ih, or dh (B, N, D, H); None: zero
    w_ih_ptr,  # (D, H, C), of an Elman cell, or None
    bias_ptr,  # (D, G H), of a gru (D, 4 H); or None
    w_ptr,  # (D, H, G H) forward, W[d]^T, (D, G H, H) backward: row k is what state k adds
    mask_ptr,  # (B, N) or None
    rows_ptr,  # (B,): the order in which tiles take the rows of B; None: as they are
    h0_ptr,  # (B, D, H) or None
    c0_ptr,  # (B, D, H) or None
    entry_ptr,  # (B, D) or None
    projection_ptr,  # (D, K, N) or None
    ds_ptr,  # (B, D, K, H) or None
    dc_ptr,  # (B, N, D, H) or None
    known_ptr,  # (B, N, D, H), h or gate by MODE; of a gated cell (B, N, D, 5 H), what was saved
    state_ptr,  # where predecessors' states are read, in rows as of out; None: from the frontier
    carry_ptr,  # (B, N, D, H) of ACC or None: what is carried; on a chain not read from memory
    frontier_ptr,  # (programs, D, num_slots, BLOCK_R, BLOCK_H) or None
    out_ptr,  # (B, N, D, ROW H), state_ptr itself if there is a recurrence; None: not kept
    pre_ptr,  # (B, N, D, H) or None: a
    saved_ptr,  # (B, N, D, 5 H) or None
    s_ptr,  # (B, D, K, H) or None
    dw_ptr,  # (programs, D, H, H) or None
    program_ptr,  # the sweep program
    B, N, num_groups, num_edges, num_slots, w_stride,
    D: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    MODE: tl.constexpr,
    CELL: tl.constexpr,
    G: tl.constexpr,  # gates
    BLOCKS: tl.constexpr,  # of a row of the cell
    HAS_CARRY: tl.constexpr,  # more is handed on than what W is applied to
    MEAN: tl.constexpr,
    IS_CHAINED: tl.constexpr,  # the last visit's state stays in registers (one visit, a recurrence)
    UNROLL: tl.constexpr,  # predecessors that are loaded at once
    BLOCK_J: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,  # 0: column by column
    PARTS: tl.constexpr,  # 1, or 4: quarters of the states apart, for a thread with one column
    INDEX: tl.constexpr,  # holds the number of any element
    ACC: tl.constexpr,
    DOT: tl.constexpr,  # dtype of the products' operands
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See the head of the file."""
    d = tl.program_id(1)
    m = tl.arange(0, BLOCK_J * BLOCK_R)
    j = m // BLOCK_R
    col = tl.arange(0, BLOCK_H)
    in_h = is_column(col, H)
    FIRST: tl.constexpr = BLOCKS - G  # of the blocks, the first that W adds to
    IS_BACK: tl.constexpr = MODE == DERIVATIVE
    ROW: tl.constexpr = BLOCKS if IS_BACK else 1  # blocks of a row of out
    READS: tl.constexpr = G if IS_BACK else 1  # blocks that W is applied to
    NUM: tl.constexpr = READS + HAS_CARRY
    U: tl.constexpr = G if MODE == FORWARD else 1  # blocks of u
    KNOWN: tl.constexpr = 5 if CELL >= GRU else 1
    # What successors of a mean take is a share: not what is given, so it has a place of its own.
    IS_APART: tl.constexpr = MEAN and IS_BACK
    STATE_ROW: tl.constexpr = G if IS_APART else ROW
    STATE_FIRST: tl.constexpr = STATE_ROW - READS
    node_ptr, own_ptr, group_ptr, pred_ptr, edge_ptr = tables_of(
        program_ptr, d, N, D, num_groups, num_edges, frontier_ptr is not None
    )

    # The stride is an argument so that its divisors are unknown: a thread then loads single
    # numbers, in the layout in which the product takes them, and where it takes no others W stays
    # in registers; else in shared memory, in rows along n, which a warp reads without conflicts.
    w_ptr += d * G * H * H
    w = ()  # Triton has no unpacking: tuples grow by addition
    for k in tl.static_range(G * PARTS):
        of = tl.arange(0, BLOCK_H // PARTS) + k % PARTS * (BLOCK_H // PARTS)
        w_at = of[:, None] * w_stride + col[None, :] + k // PARTS * (H * H if IS_BACK else H)
        block = tl.load(w_ptr + w_at, mask=tl.trans(is_column(of, H)) & in_h, other=0.0)
        w = w + (block.to(ACC).to(DOT),)  # noqa: RUF005
    w_ih = ()
    if w_ih_ptr is not None:
        w_ih_ptr += d * H * C
        if BLOCK_C == 0:
            for c in tl.static_range(C):
                column = tl.load(w_ih_ptr + col * C + c, mask=col < H, other=0.0)
                w_ih = w_ih + (column.to(ACC),)  # noqa: RUF005
        else:
            in_c = tl.arange(0, BLOCK_C)
            is_inside = tl.trans(is_column(in_c, C)) & in_h
            block = tl.load(w_ih_ptr + col[None, :] * C + in_c[:, None], mask=is_inside, other=0.0)
            w_ih = (block.to(ACC).to(DOT),)
    bias = ()
    if bias_ptr is not None:
        for k in tl.static_range(BLOCKS):
            row_of_bias = tl.load(bias_ptr + (d * BLOCKS + k) * H + col, mask=col < H, other=0.0)
            bias = bias + (row_of_bias.to(ACC),)  # noqa: RUF005
    if dw_ptr is not None:
        dw = tl.zeros([BLOCK_H, BLOCK_H], ACC)
    num_succ_ptr = node_ptr + 2 * D * N
    if frontier_ptr is not None:
        share = (tl.program_id(0) * D + d).to(tl.int64) * num_slots
        frontier_ptr += share * (BLOCK_R * BLOCK_H)

    # Partial sums are kept over several tiles; without them a program takes one.
    tiles = tl.program_id(0) + 1 if dw_ptr is None else tl.cdiv(B, BLOCK_R)
    tile = tl.program_id(0)
    while tile < tiles:
        b = (tile * BLOCK_R + m % BLOCK_R).to(INDEX)
        in_b = b < B
        if rows_ptr is not None:
            b = tl.load(rows_ptr + b, mask=in_b, other=0).to(INDEX)
        # State p of the rows lies at read_ptr + p * STRIDE.
        if frontier_ptr is not None:
            read_ptr = frontier_ptr + (m % BLOCK_R)[:, None] * BLOCK_H + col[None, :]
            STRIDE: tl.constexpr = BLOCK_R * BLOCK_H
            WIDTH: tl.constexpr = BLOCK_H
        else:
            read_ptr = state_ptr + (b * N * D + d)[:, None] * (STATE_ROW * H) + col[None, :]
            read_ptr += STATE_FIRST * H
            STRIDE: tl.constexpr = D * STATE_ROW * H
            WIDTH: tl.constexpr = H
        carried_ptr = carry_ptr
        if carry_ptr is not None:
            carried_ptr = carry_ptr + (b * N * D + d)[:, None] * H + col[None, :]
        s = ()
        if s_ptr is not None:
            for _ in tl.static_range(K):
                s = s + (tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC),)  # noqa: RUF005
        last_own = -1
        last = ()
        if IS_CHAINED:
            for _ in tl.static_range(NUM):
                last = last + (tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC),)  # noqa: RUF005

        if BLOCK_J == 1:
            # Every visit is a chunk; those at which no row of the tile takes part are left out.
            i0, stop = num_groups * 0, N
            if mask_ptr is not None:
                i0, stop = _part(mask_ptr, node_ptr, b, in_b, N)
                _fill(0, i0, b, in_b, d, col, node_ptr, N, D, H, ROW, out_ptr)
                _fill(0, i0, b, in_b, d, col, node_ptr, N, D, H, 1, carry_ptr)
                if IS_APART:
                    _fill(0, i0, b, in_b, d, col, node_ptr, N, D, H, G, state_ptr)
                if frontier_ptr is not None:
                    for skipped in range(0, i0):  # not i: that name is a vector below
                        if tl.load(num_succ_ptr + skipped) > 0:
                            slot = tl.load(own_ptr + skipped) * BLOCK_R + m
                            at = slot[:, None] * BLOCK_H + col[None, :]
                            tl.store(frontier_ptr + at, 0.0)
                _fill(stop, N, b, in_b, d, col, node_ptr, N, D, H, ROW, out_ptr)
                _fill(stop, N, b, in_b, d, col, node_ptr, N, D, H, 1, carry_ptr)
                if IS_APART:
                    _fill(stop, N, b, in_b, d, col, node_ptr, N, D, H, G, state_ptr)
                tl.debug_barrier()
            end = stop
        else:
            i0, stop = tl.load(group_ptr), N
            end = tl.load(group_ptr + 1)
        g = num_groups * 0 + 1
        visit, v_own, v_first, v_count, v_edge = _visit(
            i0, node_ptr, own_ptr, pred_ptr, edge_ptr, N, BLOCK_J
        )
        x, known = _inputs(
            i0, end, visit, b, in_b, d, j, col, N, D, C, H,
            node_ptr, x_ptr, w_ih_ptr, known_ptr, MODE, U, KNOWN, BLOCK_J, BLOCK_C, ACC,
        )  # fmt: skip
        while i0 < stop:
            # Only scalars and tiles are carried: vectors would be moved between layouts.
            i = i0 + j
            is_visit = i < end
            is_live = in_b & is_visit
            if BLOCK_J == 1:
                n, own, first, count = visit + j, v_own + j, v_first + j, v_count + j
            else:
                n = tl.load(node_ptr + i, mask=is_visit, other=0)
                own = tl.load(own_ptr + i, mask=is_visit, other=0)
                first = tl.load(pred_ptr + i, mask=is_visit, other=0)
                count = tl.load(pred_ptr + i + 1, mask=is_visit, other=0) - first
            row = b * N + n
            keep = load_keep(mask_ptr, row, is_live)

            # The sum of the predecessors' states, and of what they carry.
            total = ()
            for _ in tl.static_range(NUM):
                total = total + (tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC),)  # noqa: RUF005
            if BLOCK_J == 1:
                # All scalars: what is in registers is not loaded as well.
                at = v_edge
                for p in range(v_count):
                    if IS_CHAINED and at == last_own:
                        total = _plus(total, last, NUM)
                    else:
                        more = _read(
                            read_ptr, carried_ptr, at.to(INDEX), in_b, STRIDE, H, WIDTH, D * H, H,
                            col, READS, HAS_CARRY, ACC,
                        )  # fmt: skip
                        total = _plus(total, more, NUM)
                    at = tl.load(edge_ptr + v_first + p + 1, mask=p + 1 < v_count, other=0)
            else:
                for p in tl.static_range(UNROLL):
                    has = is_live & (p < count)
                    at = tl.load(edge_ptr + first + p, mask=has, other=0).to(INDEX)
                    more = _read(
                        read_ptr, carried_ptr, at[:, None], has, STRIDE, H, WIDTH, D * H, H, col,
                        READS, HAS_CARRY, ACC,
                    )  # fmt: skip
                    total = _plus(total, more, NUM)
                for p in range(UNROLL, tl.max(count, 0)):
                    has = is_live & (p < count)
                    at = tl.load(edge_ptr + first + p, mask=has, other=0).to(INDEX)
                    more = _read(
                        read_ptr, carried_ptr, at[:, None], has, STRIDE, H, WIDTH, D * H, H, col,
                        READS, HAS_CARRY, ACC,
                    )  # fmt: skip
                    total = _plus(total, more, NUM)
            if not IS_BACK:
                reached = reduced(total[0], count, MEAN, ACC)
                reached = add_h0(
                    reached, h0_ptr, entry_ptr, b, n, count, is_live, d, D, H, col, ACC
                )
                brought = reached
                if HAS_CARRY:
                    brought = reduced(total[1], count, MEAN, ACC)
                    brought = add_h0(
                        brought, c0_ptr, entry_ptr, b, n, count, is_live, d, D, H, col, ACC
                    )
                total = (reached,)
            elif HAS_CARRY:
                brought = total[READS]
                if dc_ptr is not None:
                    brought += load_rows(dc_ptr, row * D + d, H, col, is_live, ACC)
            else:
                brought = total[0]

            # The next chunk, and its inputs.
            next_i0 = tl.minimum(i0 + BLOCK_J, end)
            next_g, next_end = g, end
            if BLOCK_J > 1:
                next_g = tl.where(next_i0 == end, g + 1, g)
                next_end = tl.load(group_ptr + tl.minimum(next_g, num_groups))
            next_visit, next_own, next_first, next_count, next_edge = _visit(
                next_i0, node_ptr, own_ptr, pred_ptr, edge_ptr, N, BLOCK_J
            )
            next_x, next_known = _inputs(
                next_i0, next_end, next_visit, b, in_b, d, j, col, N, D, C, H,
                node_ptr, x_ptr, w_ih_ptr, known_ptr, MODE, U, KNOWN, BLOCK_J, BLOCK_C, ACC,
            )  # fmt: skip

            a = ()
            for k in tl.static_range(BLOCKS if MODE == FORWARD else 1):
                if w_ih_ptr is None and k < U:
                    a_k = x[(k + U - FIRST) % U]
                else:
                    a_k = tl.zeros([BLOCK_J * BLOCK_R, BLOCK_H], ACC)
                if bias_ptr is not None:
                    a_k += bias[(k + U - FIRST) % U if k < U else k][None, :]
                if w_ih_ptr is not None:
                    if BLOCK_C == 0:
                        for c in tl.static_range(C):
                            x_c = tl.load(x_ptr + row * C + c, mask=is_live, other=0.0).to(ACC)
                            a_k += x_c[:, None] * w_ih[c][None, :]
                    else:
                        a_k = tl.dot(
                            x[0].to(DOT), w_ih[0], a_k, input_precision=PRECISION, out_dtype=ACC
                        )
                if MODE == FORWARD:
                    if k >= FIRST:
                        a_k = _add_product(
                            a_k, total[0], w, (k - FIRST) * PARTS, PARTS, BLOCK_J * BLOCK_R,
                            BLOCK_H, ACC, DOT, PRECISION,
                        )  # fmt: skip
                else:
                    a_k = add_projected(
                        a_k, ds_ptr, projection_ptr, b, n, is_live, d, N, D, H, K, col, ACC
                    )
                    for r in tl.static_range(READS):
                        a_k = _add_product(
                            a_k, total[r], w, r * PARTS, PARTS, BLOCK_J * BLOCK_R, BLOCK_H, ACC,
                            DOT, PRECISION,
                        )  # fmt: skip
                a = a + (a_k,)  # noqa: RUF005
            if frontier_ptr is not None:
                # What nothing reads is not stored: two nodes of a group may have one slot then.
                is_read = tl.load(num_succ_ptr + i, mask=is_live, other=0) > 0
                own = tl.load(own_ptr + i, mask=is_read, other=-1)
            y, carried = finish(a, known, brought, keep, MODE, CELL, ROW)

            is_stored = is_live[:, None] & in_h
            if out_ptr is not None:
                store_blocks(out_ptr, row * D + d, y, 0, ROW, H, col, is_stored)
            if pre_ptr is not None:
                store_blocks(pre_ptr, row * D + d, a, 0, 1, H, col, is_stored)
            if saved_ptr is not None:
                store_blocks(
                    saved_ptr, row * D + d, saved(a, brought, CELL), 0, 5, H, col, is_stored
                )
            handed = ()
            if HAS_CARRY or IS_CHAINED or IS_APART:
                num = 1
                if IS_APART:
                    num = tl.load(num_succ_ptr + i, mask=is_live, other=1)
                for k in tl.static_range(READS):
                    handed = handed + (reduced(y[ROW - READS + k], num, IS_APART, ACC),)  # noqa: RUF005
                if HAS_CARRY:
                    handed = handed + (reduced(carried, num, IS_APART, ACC),)  # noqa: RUF005
            if IS_APART:
                store_blocks(state_ptr, row * D + d, handed, 0, G, H, col, is_stored)
            if carry_ptr is not None:
                store_blocks(carry_ptr, row * D + d, handed, READS, 1, H, col, is_stored)
            if frontier_ptr is not None:
                tl.debug_barrier()  # a slot that a predecessor leaves here may be taken here
                at = (own * BLOCK_R + m % BLOCK_R)[:, None] * BLOCK_H + col[None, :]
                stored = y[0].to(frontier_ptr.dtype.element_ty)
                tl.store(frontier_ptr + at, stored, mask=(own >= 0)[:, None])
            if dw_ptr is not None:
                product = tl.dot(
                    tl.trans(total[0].to(DOT)),
                    known[0].to(DOT),
                    input_precision=PRECISION,
                    out_dtype=ACC,
                )
                dw += product
            if s_ptr is not None:
                sums = ()
                for k in tl.static_range(K):
                    g_at = (d * K + k) * N + n
                    weight = tl.load(projection_ptr + g_at, mask=is_live, other=0.0).to(ACC)
                    read = tl.where((weight != 0)[:, None], y[0], 0.0)
                    sums = sums + (s[k] + weight[:, None] * read,)  # noqa: RUF005
                s = sums
            tl.debug_barrier()  # what is read by the next group has been written

            if IS_CHAINED:
                last = handed
                last_own = v_own
            i0 = next_i0
            g = next_g
            end = next_end
            visit, v_own, v_first, v_count, v_edge = (
                next_visit, next_own, next_first, next_count, next_edge,
            )  # fmt: skip
            x, known = next_x, next_known

        if s_ptr is not None:
            r = tl.arange(0, BLOCK_R)
            b_s = (tile * BLOCK_R + r).to(tl.int64)
            is_stored = (b_s < B)[:, None] & in_h
            if rows_ptr is not None:
                b_s = tl.load(rows_ptr + b_s, mask=b_s < B, other=0).to(tl.int64)
            for k in tl.static_range(K):
                rows = tl.sum(tl.reshape(s[k], [BLOCK_J, BLOCK_R, BLOCK_H]), 0)
                at = ((b_s * D + d) * K + k)[:, None] * H + col[None, :]
                tl.store(s_ptr + at, rows.to(s_ptr.dtype.element_ty), mask=is_stored)
        tile += tl.num_programs(0)
    if dw_ptr is not None:
        at = ((tl.program_id(0) * D + d) * H + col[:, None]) * H + col[None, :]
        tl.store(dw_ptr + at, dw, mask=tl.trans(in_h) & in_h)
