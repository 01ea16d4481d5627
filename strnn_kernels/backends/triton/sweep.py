"""The ops sweep_fwd and sweep_bwd (schema.py) by the kernels of this folder.

Forward: one launch, after a GEMM for u where the input is wide. Backward: the same kernel over the
reversed program gives da (of an Elman cell du) and the partial sums of dW; dx, dw_ih and dbias are
GEMMs and a sum of da. The GEMMs are torch's own: whether those of float32 are of TF32 it decides
when they run. What concerns one node of a direction, the last states and h0, is left to torch too.
"""

from __future__ import annotations

import torch
import triton

from strnn_kernels.composed import last_state, last_visit, program_of, stacked
from strnn_kernels.notation import CELLS, bias_rows, gates, saved

from . import launch
from .cell import blocks, input_gate
from .launch import Shape, Tables
from .sparse_projection import projection_forward, projection_weight_gradient
from .sweep_kernel import sweep_kernel
from .sweep_weights import weight_gradient
from .sweep_wide_kernel import sweep_wide_kernel
from .tile import DERIVATIVE, FORWARD


def run_sweep(
    shape: Shape, tables: Tables, mode, *, w, state, out, x=None, w_ih=None, bias=None, mask=None,
    h0=None, c0=None, entry=None, projection=None, ds=None, dc=None, known=None, pre=None, s=None,
    carry=None, kept=None, has_dw=False, cell=0, mean=False,
):  # fmt: skip
    """One sweep in a mode of tile.py; partial sums of dW, (programs, D, H, H), if wanted.

    Row k of `w` is what state k adds: W^T forward, W backward. Predecessors' states are read from
    `state`, which `out` is if they are made here (of a mean, and backward, a place of its own);
    without it from a scratch of the launch's own. What is carried is read from `carry`.
    """
    like = known if x is None else x
    B, D, N, G = like.shape[0], w.shape[0], tables.num_nodes, gates(cell)
    H = max(w.shape[1:]) // G
    K = 0 if projection is None else projection.shape[1]
    C = 0 if w_ih is None else w_ih.shape[2]
    is_back = mode.value == DERIVATIVE.value
    carries = G > 1 and (is_back or CELLS[cell] == "lstm")
    tiles = triton.cdiv(B, shape.block_r)
    options = {
        "MODE": mode.value,
        "CELL": cell,
        "G": G,
        "BLOCKS": blocks(G),
        "HAS_CARRY": carries,
        "MEAN": mean,
        "BLOCK_J": shape.block_j,
        "BLOCK_R": shape.block_r,
        "BLOCK_H": shape.block_h,
        "D": D,
        "H": H,
        "K": K,
        **launch.types(w.dtype, shape.precision),
    }
    widest = max(1, saved(cell)) * H
    options["INDEX"] = launch.index_type(B * max(N, K) * max(C, D * widest))
    if shape.is_wide:
        groups, rows = tables.num_groups, shape.block_j * shape.block_r
        columns, step = (triton.cdiv(H, shape.block_h), 1) if shape.is_stepwise else (1, groups)
        parts = triton.cdiv(G * H if is_back else H, shape.block_k)
        pitch = parts * shape.block_k
        sums = w.new_empty((tiles, D, columns, rows, pitch), dtype=launch.kept(w.dtype))
        # With more registers to fill, the compiler loads ahead of need until it spills.
        most = 128 if G == 1 and shape.num_warps >= 4 else 168
        limits = launch.options(shape.num_warps, most, w.device)
        for g in range(0, groups, step):
            sweep_wide_kernel[tiles, D, columns](
                x, bias, w, mask, h0, c0, entry, projection, ds, dc, known, state, carry, sums, out,
                pre, kept, tables.program, B, N, groups, tables.num_edges, g, g + step, parts,
                BLOCK_K=shape.block_k, STAGES=launch.stages(shape, 1 if is_back else G, w.dtype),
                W_CAST=w.dtype != launch.kept(w.dtype), **options, **limits,
            )  # fmt: skip
        return None
    programs, dw, frontier = tiles, None, None
    if has_dw:
        programs = launch.shared_out(tiles, launch.num_programs(w.device) // D)
        dw = w.new_empty((programs, D, H, H), dtype=launch.accumulator(w.dtype))
    is_own = state is out or (mean and is_back)
    if state is None or (state is out and not carries and launch.wants_frontier(shape, H, w.dtype)):
        slots = (tables.num_slots, shape.block_r, shape.block_h)
        frontier = w.new_empty((programs, D, *slots))
    registers = 255 if has_dw or G > 1 or shape.num_warps < 8 else 168
    sweep_kernel[programs, D](
        x, w_ih, bias, w, mask, rows_by_length(shape, mask), h0, c0, entry, projection, ds, dc,
        known, state, carry, frontier, out, pre, kept, s, dw, tables.program,
        B, N, tables.num_groups, tables.num_edges, tables.num_slots, w.shape[2],
        C=C, IS_CHAINED=shape.block_j == 1 and is_own, UNROLL=3,
        BLOCK_C=launch.block_c(C), PARTS=shape.parts,
        **options, **launch.options(shape.num_warps, registers, w.device),
    )  # fmt: skip
    return dw


def sweep_fwd(
    x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, _reversed, sizes, cell, mean,
    keep_h, keep_c, keep_last, save, allow_tf32,
):  # fmt: skip
    """h, s, c, h_n, c_n, saved as in schema.py; (0,) for what is not kept or not there."""
    is_chain = program is None
    program, sizes = program_of(x, w_hh, program, sizes, 0)
    w_ih, w_hh = stacked(cell, w_ih), stacked(cell, w_hh)
    bias = stacked(cell, bias, bias=True)
    x, w_ih, bias, w_hh, mask, h0, c0, entry, projection = _contiguous(
        x, w_ih, bias, w_hh, mask, h0, c0, entry, projection
    )
    (B, N), (D, H), G = x.shape[:2], w_hh.shape[::2], gates(cell)
    K = 0 if projection is None else projection.shape[1]
    has_c = CELLS[cell] == "lstm"
    keep_c, save = keep_c and has_c, save and saved(cell) > 0
    s = None if projection is None else x.new_empty((B, D, K, H))
    kept = x.new_empty((B, N, D, saved(cell) * H)) if save else None
    h = c = None
    if keep_h or keep_last or has_c:
        h = x.new_empty((B, N, D, H))
    if keep_c or (has_c and (keep_last or not is_chain)):
        c = x.new_empty((B, N, D, H), dtype=launch.accumulator(x.dtype))
    if B and H:
        with launch.on(x):
            tables = Tables.of(program, *sizes, N, D)
            shape = launch.sweep_shape(tables, B, D, H, G, x.dtype, x.device, allow_tf32)
            if shape.is_wide and has_c and c is None:
                c = x.new_empty((B, N, D, H), dtype=launch.accumulator(x.dtype))
            if w_ih is not None and not launch.fuses_input(shape, w_ih.shape[2], G, x.dtype):
                x, w_ih = _input(x, w_ih, bias if G == 1 else None), None
                bias = bias if G > 1 else None
            is_fused = K > 0 and launch.fuses_projection(shape, K, G)
            states = h
            if h is None and not is_fused:
                states = x.new_empty((B, N, D, H))
            run_sweep(
                shape, tables, FORWARD, w=transposed(w_hh), state=states, out=states, x=x,
                w_ih=w_ih, bias=bias, mask=mask, h0=h0, c0=c0, entry=entry,
                projection=projection if is_fused else None, s=s if is_fused else None, carry=c,
                kept=kept, cell=cell, mean=mean,
            )  # fmt: skip
            if K and not is_fused:
                projection_forward(states, projection, s)
    h_n = c_n = None
    if keep_last:
        at = _last_visits(program, mask, B, N, D)
        h_n = _last_states(h, h0, at)
        if has_c:
            c_n = _last_states(c.to(x.dtype), c0, at)
    of_nodes = (h if keep_h else None, s, c.to(x.dtype) if keep_c else None)
    return _or_empty(x, (*of_nodes, h_n, c_n, kept))


def _last_visits(program, mask, B, N, D, is_reversed=False):
    """The last node of each direction that the mask leaves, (B, D); -1 where it leaves none."""
    orders = program[: D * N].view(D, N).long()
    if is_reversed:
        orders = orders.flip(1)
    return torch.stack([last_visit(mask, order, B, program.device) for order in orders], 1)


def _last_states(states, start, at):
    """The states (D, B, H) at the nodes `at` (B, D), and where there is none, the start."""
    starts = [None if start is None else start[:, d] for d in range(states.shape[2])]
    last = [last_state(states[:, :, d], starts[d], at[:, d]) for d in range(states.shape[2])]
    return torch.stack(last)


def _with_last(gradient, last, at, like):
    """The gradient (B, N, D, H), or zero, and at the nodes `at` (B, D) that of the last states."""
    if last is None:
        return gradient
    gradient = torch.zeros_like(like) if gradient is None else gradient
    index = at.clamp(min=0)[:, None, :, None].expand(-1, 1, *like.shape[2:])
    more = torch.where((at >= 0)[..., None], last.transpose(0, 1), 0)[:, None]
    return gradient.scatter(1, index, gradient.gather(1, index) + more)


def sweep_bwd(
    dh, ds, dc, dh_n, dc_n, x, h, known, w_ih, bias, w_hh, mask, h0, c0, entry, projection,
    program, sizes, cell, mean, need_dx, allow_tf32,
):  # fmt: skip
    """Gradients dx, dw_ih, dbias, dw_hh, dh0, dc0, dprojection; (0,) for what is not there."""
    is_chain = program is None
    program, sizes = program_of(x, w_hh, program, sizes, 2)
    w_ih, w_hh = stacked(cell, w_ih), stacked(cell, w_hh)
    has_bias = len(bias) > 0
    dh, ds, dc, x, h, known, w_ih, w_hh, mask, h0, c0, entry, projection = _contiguous(
        dh, ds, dc, x, h, known, w_ih, w_hh, mask, h0, c0, entry, projection
    )
    (B, N, D, H), G = h.shape, gates(cell)
    dx = dw_ih = dbias = dh0 = dc0 = dprojection = None
    if B == 0 or H == 0:
        given = (x if need_dx else None, w_ih, dbias, w_hh, h0, c0, projection)
        dx, dw_ih, _, *found = (None if t is None else torch.zeros_like(t) for t in given)
        dbias = x.new_zeros((D, bias_rows(cell) * H)) if has_bias else None
        return _or_empty(x, (dx, dw_ih, dbias, *found))
    with launch.on(x):
        if dh_n is not None or dc_n is not None:
            at = _last_visits(program, mask, B, N, D, is_reversed=True)
            dh, dc = _with_last(dh, dh_n, at, h), _with_last(dc, dc_n, at, h)
        tables = Tables.of(program, *sizes, N, D)
        shape = launch.sweep_shape(tables, B, D, H, G, x.dtype, x.device, allow_tf32, True)
        da = h.new_empty((B, N, D, blocks(G) * H))
        state = h.new_empty((B, N, D, G * H)) if mean else da
        carry = None
        if G > 1 and (shape.is_wide or not is_chain or h0 is not None or c0 is not None):
            carry = h.new_empty((B, N, D, H), dtype=launch.accumulator(x.dtype))
        has_dw = G == 1 and launch.fuses_weights(shape, x.dtype)
        partial = run_sweep(
            shape, tables, DERIVATIVE, w=w_hh, state=state, out=da, x=dh, mask=mask,
            projection=projection if ds is not None else None, ds=ds, dc=dc,
            known=known if G > 1 else h, carry=carry, has_dw=has_dw, cell=cell, mean=mean,
        )  # fmt: skip
        if partial is None:
            partial = weight_gradient(state, h, G, tables, shape.precision)
        dw_hh = partial.sum(0)
        acc = dw_hh.dtype
        if h0 is not None:
            entered = _entered(da[..., -G * H :], entry, tables).to(acc)
            dh0 = torch.bmm(entered.transpose(0, 1), w_hh.to(acc)).transpose(0, 1)
            dw_hh += torch.einsum("bdi,bdj->dij", entered, h0.to(acc))
        if carry is not None and (c0 is not None or h0 is not None):
            entered = _entered(carry, entry, tables, mean)
            if c0 is not None:
                dc0 = entered
            elif CELLS[cell] == "gru":
                dh0 = dh0 + entered
        if dh_n is not None and h0 is not None:
            dh0 = dh0 + torch.where((at < 0)[..., None], dh_n.transpose(0, 1), 0)
        if dc_n is not None and c0 is not None:
            dc0 = dc0 + torch.where((at < 0)[..., None], dc_n.transpose(0, 1), 0)
        flat = da.view(B * N, -1)
        if w_ih is None:
            dx = _by_gate(da, G, G * H) if need_dx else None
        else:
            # A masked x may hold anything, a NaN too.
            live = x if mask is None else torch.where(mask[..., None], x, 0)
            C = w_ih.shape[2]
            dw_ih = (flat.t() @ live.reshape(B * N, C)).view(D, -1, C)
            dw_ih = _by_gate(dw_ih.transpose(1, 2), G, G * H).transpose(1, 2).contiguous()
            if need_dx:
                dx = (flat @ _by_block(w_ih, G).reshape(-1, C)).view(B, N, C)
        if has_bias:
            dbias = _by_gate(flat.sum(0, dtype=acc).view(D, -1), G, bias_rows(cell) * H)
        if projection is not None:
            has_ds = ds is not None and projection.numel()
            dprojection = (
                projection_weight_gradient(ds, h) if has_ds else torch.zeros_like(projection)
            )
        found = (dx, dw_ih, dbias, dw_hh, dh0, dc0, dprojection)
        return _or_empty(x, (None if t is None else t.to(x.dtype).contiguous() for t in found))


def _or_empty(like, values):
    """A tensor (0,) in place of each None."""
    return tuple(like.new_empty((0,)) if value is None else value for value in values)


def _by_gate(of_blocks, G, width):
    """The first `width` of what the last dimension holds by blocks of a cell, in torch's order."""
    order = sorted(range(blocks(G)), key=lambda k: input_gate(k, G))
    if order != list(range(blocks(G))):
        parts = of_blocks.chunk(blocks(G), -1)
        of_blocks = torch.cat([parts[k] for k in order], -1)
    return of_blocks[..., :width]


def _by_block(w_ih, G):
    """Rows of w_ih (D, G H, C) by blocks of a cell; zeros where x adds nothing."""
    if blocks(G) == G:
        return w_ih
    parts = (*w_ih.chunk(G, 1), torch.zeros_like(w_ih[:, : w_ih.shape[1] // G]))
    return torch.cat([parts[input_gate(k, G)] for k in range(blocks(G))], 1)


def rows_by_length(shape: Shape, mask):
    """Rows in order of how many nodes take part, the most first; None where they stay as they are.

    A tile of a chain ends with its longest row: equal lengths belong together.
    """
    if mask is None or not launch.sorts_rows(shape, *mask.shape):
        return None
    return mask.sum(1).argsort(descending=True)


def transposed(w):
    """W^T of all directions, (D, H, G H): a forward sweep reads its weights by rows too."""
    return w.transpose(1, 2).contiguous()


def _contiguous(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _input(x, w_ih, bias):
    """Pre-activations u = w_ih x + bias, (B, N, D, G H), one GEMM."""
    (B, N, C), D = x.shape, w_ih.shape[0]
    rows, columns = x.view(B * N, C), w_ih.view(-1, C).t()
    u = rows @ columns if bias is None else torch.addmm(bias.view(-1), rows, columns)
    return u.view(B, N, D, -1)


def _entered(gradient, entry, tables, is_share=False):
    """Sum over the nodes where h0 entered, (B, D, X); no size depends on data.

    Of what is a share of a mean the whole.
    """
    B, N, D, X = gradient.shape
    # The reversed program counts as successors what the forward had as predecessors.
    node, num_succ = tables.program[: D * N].view(D, N), tables.program[2 * D * N :][: D * N]
    of_node = torch.zeros_like(node).scatter_(1, node.long(), num_succ.view(D, N))
    if entry is None:
        return torch.einsum("bndh,dn->bdh", gradient, (of_node == 0).to(gradient.dtype))
    nodes = entry.clamp(0, N - 1).long()
    entered = gradient.gather(1, nodes[:, None, :, None].expand(B, 1, D, X))[:, 0]
    if is_share:
        entered = entered * of_node.gather(1, nodes.t()).t().clamp(min=1)[..., None]
    return torch.where((entry >= 0)[..., None], entered, 0)
