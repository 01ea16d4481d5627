"""The ops sweep_fwd and sweep_bwd (schema.py) by the kernels of this folder.

Forward: one launch, after a GEMM for u where the input is wide. Backward: the same kernel over the
reversed program gives du and the partial sums of dW; dx, dw_ih and dbias are GEMMs and a sum of du.
The GEMMs are torch's own: whether those of float32 are of TF32 it decides when they run.
"""

from __future__ import annotations

import torch
import triton

from strnn_kernels.composed import program_of
from strnn_kernels.notation import ACTIVATIONS, CELLS

from . import launch
from .launch import Shape, Tables
from .sparse_projection import projection_forward, projection_weight_gradient
from .sweep_kernel import sweep_kernel
from .sweep_weights import weight_gradient
from .sweep_wide_kernel import sweep_wide_kernel
from .tile import DERIVATIVE, FORWARD


def run_sweep(
    shape: Shape, tables: Tables, mode, *, w, state, out, x=None, w_ih=None, bias=None, mask=None,
    h0=None, entry=None, projection=None, ds=None, gate=None, pre=None, s=None, has_dw=False,
    activation=0,
):  # fmt: skip
    """One sweep in a mode of tile.py; partial sums of dW, (programs, D, H, H), if wanted.

    Row k of `w` is what state k adds: W^T forward, W backward. Predecessors' states are read from
    `state`, which `out` is if they are made here; without it from a scratch of the launch's own.
    """
    like = gate if x is None else x
    B, D, H, N = like.shape[0], w.shape[0], w.shape[1], tables.num_nodes
    K = 0 if projection is None else projection.shape[1]
    C = 0 if w_ih is None else w_ih.shape[2]
    tiles = triton.cdiv(B, shape.block_r)
    options = {
        "MODE": mode.value,
        "ACTIVATION": activation,
        "BLOCK_J": shape.block_j,
        "BLOCK_R": shape.block_r,
        "BLOCK_H": shape.block_h,
        "D": D,
        "H": H,
        "K": K,
        **launch.types(w.dtype, shape.precision),
    }
    options["INDEX"] = launch.index_type(B * max(N, K) * max(C, D * H))
    if shape.is_wide:
        groups, rows = tables.num_groups, shape.block_j * shape.block_r
        blocks, step = (triton.cdiv(H, shape.block_h), 1) if shape.is_stepwise else (1, groups)
        parts = triton.cdiv(H, shape.block_k)
        pitch = parts * shape.block_k
        sums = w.new_empty((tiles, D, blocks, rows, pitch), dtype=launch.kept(w.dtype))
        # With more registers to fill, the compiler loads ahead of need until it spills.
        limits = launch.options(shape.num_warps, 128 if shape.num_warps >= 4 else 168, w.device)
        for g in range(0, groups, step):
            sweep_wide_kernel[tiles, D, blocks](
                x, w, mask, h0, entry, projection, ds, gate, state, sums, out, pre, tables.program,
                B, N, groups, tables.num_edges, g, g + step, parts,
                BLOCK_K=shape.block_k, STAGES=launch.stages(shape, w.dtype),
                W_CAST=w.dtype != launch.kept(w.dtype), **options, **limits,
            )  # fmt: skip
        return None
    programs, dw, frontier = tiles, None, None
    if has_dw:
        programs = launch.shared_out(tiles, launch.num_programs(w.device) // D)
        dw = w.new_empty((programs, D, H, H), dtype=launch.accumulator(w.dtype))
    if state is None or (out is state and launch.wants_frontier(shape, H, w.dtype)):
        slots = (tables.num_slots, shape.block_r, shape.block_h)
        frontier = w.new_empty((programs, D, *slots))
    registers = 255 if has_dw or shape.num_warps < 8 else 168
    sweep_kernel[programs, D](
        x, w_ih, bias, w, mask, rows_by_length(shape, mask), h0, entry, projection, ds, gate, state,
        frontier, out, pre, s, dw, tables.program,
        B, N, tables.num_groups, tables.num_edges, tables.num_slots, H,
        C=C, CARRY=shape.block_j == 1 and out is state, UNROLL=3,
        BLOCK_C=launch.block_c(C), PARTS=shape.parts,
        **options, **launch.options(shape.num_warps, registers, w.device),
    )  # fmt: skip
    return dw


def sweep_fwd(
    x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, _reversed, sizes, cell, mean,
    keep_h, keep_c, keep_last, save, allow_tf32,
):  # fmt: skip
    """States h (B, N, D, H), and s (B, D, K, H); (0,) for what is not kept or not there."""
    h, s = _states(
        x, *_of_elman(cell, mean, keep_last, w_ih, bias, w_hh), mask, h0, entry, projection,
        *program_of(x, w_hh, program, sizes, 0), cell, keep_h, allow_tf32,
    )  # fmt: skip
    return h, s, *(x.new_empty((0,)) for _ in range(4))


def _of_elman(cell, mean, keep_last, *weights):
    """The weights of an Elman cell, each in one piece or None; nothing else has kernels here."""
    if cell >= len(ACTIVATIONS) or mean or keep_last or any(len(w) > 1 for w in weights):
        raise NotImplementedError(
            "strnn_triton: gru, lstm, means, last states and weights in several pieces have no "
            f"kernels, got cell {CELLS[cell]!r}, mean {mean}, keep_last {keep_last}, "
            f"{[len(w) for w in weights]} pieces"
        )
    return [w[0] if w else None for w in weights]


def _states(
    x, w_ih, bias, w_hh, mask, h0, entry, projection, program, sizes, activation, keep_h, allow_tf32
):
    x, w_ih, bias, w_hh, mask, h0, entry, projection = _contiguous(
        x, w_ih, bias, w_hh, mask, h0, entry, projection
    )
    (B, N), (D, H) = x.shape[:2], w_hh.shape[:2]
    K = 0 if projection is None else projection.shape[1]
    h, s = x.new_empty((B, N, D, H) if keep_h else (0,)), x.new_empty((B, D, K, H) if K else (0,))
    if projection is not None and K == 0:
        s = x.new_empty((B, D, 0, H))
    if B == 0 or H == 0:
        return h, s
    with launch.on(x):
        tables = Tables.of(program, *sizes, N, D)
        shape = launch.sweep_shape(tables, B, D, H, x.dtype, x.device, allow_tf32)
        if w_ih is not None and not launch.fuses_input(shape, w_ih.shape[2], x.dtype):
            x, w_ih, bias = _input(x, w_ih, bias), None, None
        is_fused = K > 0 and launch.fuses_projection(shape, K)
        states = h if keep_h else None
        if not keep_h and not is_fused:
            states = x.new_empty((B, N, D, H))
        run_sweep(
            shape, tables, FORWARD, w=transposed(w_hh), state=states, out=states, x=x, w_ih=w_ih,
            bias=bias, mask=mask, h0=h0, entry=entry, projection=projection if is_fused else None,
            s=s if is_fused else None, activation=activation,
        )  # fmt: skip
        if K and not is_fused:
            projection_forward(states, projection, s)
    return h, s


def sweep_bwd(
    dh, ds, dc, dh_n, dc_n, x, h, saved, w_ih, bias, w_hh, mask, h0, c0, entry, projection,
    program, sizes, cell, mean, need_dx, allow_tf32,
):  # fmt: skip
    """Gradients dx, dw_ih, dbias, dw_hh, dh0, dc0, dprojection; (0,) for what is not there."""
    *found, dprojection = _gradients(
        dh, ds, x, h, *_of_elman(cell, mean, dh_n is not None, w_ih, bias, w_hh), mask, h0, entry,
        projection, *program_of(x, w_hh, program, sizes, 2), cell, need_dx, allow_tf32,
    )  # fmt: skip
    return *found, x.new_empty((0,)), dprojection


def _gradients(
    dh, ds, x, h, w_ih, bias, w_hh, mask, h0, entry, projection, program, sizes, activation,
    need_dx, allow_tf32,
):  # fmt: skip
    dh, ds, x, h, w_ih, w_hh, mask, h0, entry, projection = _contiguous(
        dh, ds, x, h, w_ih, w_hh, mask, h0, entry, projection
    )
    B, N, D, H = h.shape
    nothing = x.new_empty((0,))
    if B == 0 or H == 0:
        zeros = [
            nothing if t is None else torch.zeros_like(t)
            for t in (w_ih, bias, w_hh, h0, projection)
        ]
        return torch.zeros_like(x) if need_dx else nothing, *zeros
    with launch.on(x):
        tables = Tables.of(program, *sizes, N, D)
        shape = launch.sweep_shape(tables, B, D, H, x.dtype, x.device, allow_tf32)
        du = torch.empty_like(h)
        has_dw = launch.fuses_weights(shape, x.dtype)
        partial = run_sweep(
            shape, tables, DERIVATIVE, w=w_hh, state=du, out=du, x=dh, mask=mask,
            projection=projection if ds is not None else None, ds=ds, gate=h, has_dw=has_dw,
            activation=activation,
        )  # fmt: skip
        if partial is None:
            partial = weight_gradient(du, h, tables, shape.precision)
        dw_hh = partial.sum(0)
        dh0 = nothing
        if h0 is not None:
            entered = _entered(du, entry, tables).to(dw_hh.dtype)
            dh0 = (
                torch.bmm(entered.transpose(0, 1), w_hh.to(dw_hh.dtype)).transpose(0, 1).to(x.dtype)
            )
            dw_hh += torch.einsum("bdi,bdj->dij", entered, h0.to(dw_hh.dtype))
        dx = dw_ih = dbias = dprojection = nothing
        if w_ih is None:
            dx = du if need_dx else nothing
        else:
            C, flat = w_ih.shape[2], du.view(B * N, D * H)
            # A masked x may hold anything, a NaN too.
            known = x if mask is None else torch.where(mask[..., None], x, 0)
            dw_ih = (flat.t() @ known.reshape(B * N, C)).view(D, H, C)
            if need_dx:
                dx = (flat @ w_ih.view(D * H, C)).view(B, N, C)
        if bias is not None:
            dbias = flat.sum(0, dtype=dw_hh.dtype).view(D, H).to(x.dtype)
        if projection is not None:
            has_ds = ds is not None and projection.numel()
            dprojection = (
                projection_weight_gradient(ds, h) if has_ds else torch.zeros_like(projection)
            )
        return dx, dw_ih, dbias, dw_hh.to(x.dtype), dh0.contiguous(), dprojection


def rows_by_length(shape: Shape, mask):
    """Rows in order of how many nodes take part, the most first; None where they stay as they are.

    A tile of a chain ends with its longest row: equal lengths belong together.
    """
    if mask is None or not launch.sorts_rows(shape, *mask.shape):
        return None
    return mask.sum(1).argsort(descending=True)


def transposed(w):
    """W^T of all directions, (D, H, H): a forward sweep reads its weights by rows too."""
    return w.transpose(1, 2).contiguous()


def _contiguous(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _input(x, w_ih, bias):
    """Pre-activations u = w_ih x + bias, (B, N, D, H), one GEMM."""
    (B, N, C), (D, H, _) = x.shape, w_ih.shape
    rows, columns = x.view(B * N, C), w_ih.view(D * H, C).t()
    u = rows @ columns if bias is None else torch.addmm(bias.view(D * H), rows, columns)
    return u.view(B, N, D, H)


def _entered(du, entry, tables):
    """Sum of du over the nodes where h0 entered, (B, D, H); no size depends on data."""
    B, N, D, H = du.shape
    if entry is not None:
        at = entry.clamp(0, N - 1).long()[:, None, :, None].expand(B, 1, D, H)
        return torch.where((entry >= 0)[..., None], du.gather(1, at)[:, 0], 0)
    # The reversed program counts as successors what the forward had as predecessors.
    node, num_succ = tables.program[: D * N].view(D, N), tables.program[2 * D * N :][: D * N]
    is_source = (num_succ.view(D, N) == 0).to(du.dtype)
    of_node = torch.zeros_like(is_source).scatter_(1, node.long(), is_source)
    return torch.einsum("bndh,dn->bdh", du, of_node)
