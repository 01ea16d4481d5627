"""Hands the ops to torch: schemas, fake functions, derivatives.

The derivative of a sweep of Elman cells is a gated sweep on the reversed topology, its tangent one
on the same topology, and the derivative of a gated sweep is another one, so the rules below are
closed: any order of derivative needs no other kernel. The first order goes through one fused op
(``<op>_bwd``); under ``create_graph`` the same derivative is composed of differentiable ops:

    du = gated_sweep(dh, mask * act'(h), w_hh^T)       dw_hh = sum_b,n du (x) sum_pred h
    dg = gated_sweep(dy, gate, w^T) = gate * t         dgate = t * (g + w sum_pred y)
    t  = dy + w^T sum_succ dg                          dw    = sum_b,n dg (x) sum_pred y
    tangent of h = gated_sweep(tangent of u + (tangent of w_hh) sum_pred h, mask * act'(h), w_hh)

Gated cells, and means over predecessors, have the fused first order; what lies beyond is the
derivative that torch takes of :mod:`strnn_kernels.composed`.

Each rule is written once, as an :class:`_Rule`, and serves three kinds of callers: torch's own
machinery (``torch.compile``, ``torch.export``, opcheck) through the dispatcher; eager calls through
an autograd function that skips the dispatcher's slower path; ``torch.func`` transforms through one
that follows its protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import register_flop_formula

from . import composed
from .backends import BACKENDS, Backend, tf32
from .notation import ACTIVATIONS, CELLS
from .schema import OPS
from .topology import Topology, by_handle

_below_autograd = torch._C._AutoDispatchBelowAutograd
_under_transform = torch._C._are_functorch_transforms_active

#: In place of the tables of a chain, which the ops make themselves.
NO_TABLES = (None, None, [0, 0, 0, 0])


class States(NamedTuple):
    """What a sweep gives: h (B, N, D, H) or s (B, D, K, H), c (B, N, D, H), h_n, c_n (D, B, H)."""

    output: torch.Tensor
    c: torch.Tensor
    h_n: torch.Tensor
    c_n: torch.Tensor


def sweep(
    backend: Backend, x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, tables, cell,
    mean=False, *, keep_c=False, keep_last=False,
) -> States:  # fmt: skip
    """The sweep of ``schema.OPS``: h, or with a projection s, and what else is to be kept.

    ``tables`` are those of :func:`tables_for`, or ``NO_TABLES`` for a chain; ``w_ih``,
    ``bias`` and ``w_hh`` lists as in the schema.
    """
    if tables[0] is not None and _is_traced() and torch.onnx.is_in_onnx_export():
        # ONNX has no operator for a graph: its levels, in torch's ops. The table is no part of the
        # model, so no tracer may see it.
        with _disable_current_modes():
            program = tables[0].numpy()
        found = composed.sweep(
            x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, tables[2], cell, mean
        )
        return States(found.h if projection is None else found.s, *found[2:])
    if not backend.gives_last:
        w_ih, w_hh = (_one(composed.stacked(cell, w)) for w in (w_ih, w_hh))
        bias = _one(composed.stacked(cell, bias, bias=True))
    needs_grad = _needs_grad(x, *w_ih, *bias, *w_hh, h0, c0, projection)
    gives_last = keep_last and backend.gives_last
    keep_h = needs_grad or projection is None or keep_last != gives_last
    keep_c = keep_c or keep_last != gives_last
    allow_tf32 = backend.has_tf32 and tf32.is_allowed(x.dtype)
    args = (
        x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, *tables, cell, mean, keep_h, keep_c,
        gives_last, needs_grad, allow_tf32,
    )  # fmt: skip
    h, s, c, h_n, c_n, _ = _call(backend, "sweep", args, needs_grad)
    if keep_last != gives_last:
        h_n = last_of_chain(h, mask, h0)
        c_n = last_of_chain(c, mask, c0) if CELLS[cell] == "lstm" else c_n
    return States(h if projection is None else s, c, h_n, c_n)


def _one(weight):
    return [] if weight is None else [weight]


def last_of_chain(h, mask, h0):
    """h_n (D, B, H) of a chain, from all states (B, T, D, H)."""
    T, D = h.shape[1:3]
    orders = [list(range(T)), list(range(T))[::-1]][:D]
    at = [composed.last_visit(mask, order, len(h), h.device) for order in orders]
    return torch.stack(
        [composed.last_state(h[:, :, d], None if h0 is None else h0[:, d], at[d]) for d in range(D)]
    )


def gated_sweep(backend: Backend, g, gate, w, tables):
    """The gated sweep of ``schema.OPS``: y (B, N, D, H)."""
    args = (g, gate, w, *tables, backend.has_tf32 and tf32.is_allowed(g.dtype))
    return _call(backend, "gated_sweep", args, _needs_grad(g, gate, w))


def sparse_projection(backend: Backend, h, weight):
    """The sparse projection of ``schema.OPS``: s (B, D, K, H)."""
    return _call(backend, "sparse_projection", (h, weight), _needs_grad(h, weight))


def _needs_grad(*tensors) -> bool:
    """Whether anyone may ask for a derivative."""
    # A trace is made for both, with gradients and without.
    if torch.is_grad_enabled() or torch.jit.is_tracing():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return _is_watched()


def topology_tables(topology: Topology, device: torch.device, order: str):
    """What the ops take for a topology: its table, that of its reverse, and their sizes."""
    if torch.compiler.is_compiling():
        return _handle_tables(topology.handle, device, order)
    return _tables(topology, device, order)


def tables_for(topology: Topology, x: torch.Tensor, order: str):
    """The tables where x is.

    Beside tensors without data (of a FakeTensorMode, or of make_fx) they are made anew, so that the
    mode, and what it traces, sees them come: real tensors it would refuse.
    """
    tables = topology_tables(topology, x.device, order)
    if torch.compiler.is_compiling() or not isinstance(x, FakeTensor):
        return tables
    *programs, sizes = tables
    return *(torch.tensor(p.tolist(), dtype=p.dtype, device=x.device) for p in programs), sizes


@torch.compiler.assume_constant_result
def _handle_tables(handle: str, device: torch.device, order: str):
    return _tables(by_handle(handle), device, order)


def _tables(topology, device, order):
    known = topology.__dict__.get("_op_tables")
    if known is None:
        object.__setattr__(topology, "_op_tables", known := {})
    tables = known.get((device, order))
    if tables is None:
        forward, backward = topology.program(order), topology.reversed().program(order)
        sizes = [forward.num_groups, forward.num_slots, backward.num_groups, backward.num_slots]
        tables = known[device, order] = (forward.table(device), backward.table(device), sizes)
    return tables


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def _call(backend: Backend, name: str, args, needs_grad: bool):
    if _is_traced() or (_under_transform() and _is_functionalizing()):
        return getattr(getattr(torch.ops, backend.namespace), f"{name}_fwd")(*args)
    op = _OPS[backend.name][name]
    if _under_transform():
        return op.transformed(args)
    if needs_grad:
        return op.eager(args)
    if torch.is_inference_mode_enabled():  # which is below autograd already
        return op.forward(*args)
    with _below_autograd():
        return op.forward(*args)


def _is_watched() -> bool:
    """Whether forward mode, or a transform, may ask for a derivative without requires_grad."""
    return torch.autograd.forward_ad._current_level >= 0 or _under_transform()


def is_plain() -> bool:
    """Whether a call means its numbers alone, and nobody asks how they came."""
    return not (
        _is_traced()
        or torch.is_grad_enabled()
        or _is_watched()
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.autograd._profiler_enabled()
    )


def _is_functionalizing() -> bool:
    """Whether the transform is functionalize, which takes ops, not autograd functions."""
    top = torch._C._functorch.peek_interpreter_stack()
    return top.key() == torch._C._functorch.TransformType.Functionalize


def _flat(values) -> list:
    """The values, and for a list what is in it: autograd functions do not see into lists."""
    flat = []
    for value in values:
        if type(value) is list:
            flat += value
        else:
            flat.append(value)
    return flat


def _lists(values) -> list[int | None]:
    """How long each value is that is a list."""
    return [len(value) if type(value) is list else None for value in values]


class _Opaque(tuple):
    """What torch.func does not look into."""

    __slots__ = ()


def _nested(flat, lists) -> list:
    """The values that :func:`_flat` has flattened, or others in their places."""
    values, at = [], 0
    for n in lists:
        values.append(flat[at] if n is None else list(flat[at : at + n]))
        at += 1 if n is None else n
    return values


# --- derivatives --------------------------------------------------------------------------------


def _act_derivative(h: torch.Tensor, activation: int) -> torch.Tensor:
    """act'(u) as a function of h = act(u)."""
    name = ACTIVATIONS[activation]
    if name == "relu":
        return torch.where(h <= 0, 0, torch.ones_like(h))  # 1 at NaN, as torch's relu
    if name == "tanh":
        return 1 - h * h
    if name == "sigmoid":
        return h * (1 - h)
    return torch.ones_like(h)


def _edges(program: torch.Tensor, N: int, D: int, groups: int, d: int):
    """Direction d of a program: (node, predecessor) pairs, and nodes without predecessors."""
    at = D * N
    ptr_at = 3 * at + D * (groups + 1)
    edges_at = ptr_at + D * (N + 1)
    num_edges = (program.numel() - edges_at) // 2
    node = program[d * N : (d + 1) * N].long()
    ptr = program[ptr_at + d * (N + 1) : ptr_at + (d + 1) * (N + 1)].long()
    count = ptr[1:] - ptr[:-1]
    pred = program[edges_at + num_edges :][ptr[0] : ptr[-1]].long()
    return node.repeat_interleave(count), pred, node[count == 0]


def _sum_predecessors(h, program, groups):
    """q[b, n, d] = sum of h[b, p, d] over the predecessors p of n."""
    N, D = h.shape[1:3]
    sums = []
    for d in range(D):
        node, pred, _ = _edges(program, N, D, groups, d)
        sums.append(torch.zeros_like(h[:, :, d]).index_add(1, node, h[:, pred, d]))
    return torch.stack(sums, 2)


def _entering(h, entry, program, groups):
    """Where h0 enters: float (B or 1, N, D), one or zero."""
    N, D = h.shape[1:3]
    if entry is not None:
        nodes = torch.arange(N, device=h.device)
        return (nodes[None, :, None] == entry[:, None, :]).to(h.dtype)
    enters = h.new_zeros((1, N, D))
    for d in range(D):
        enters[:, _edges(program, N, D, groups, d)[2], d] = 1
    return enters


@dataclass(frozen=True)
class _Rule:
    """The derivative of one op: what to save, the gradients of its inputs, its tangent.

    The first ``num_tensors`` inputs are tensors, lists of them or None, no other is.
    """

    name: str
    num_tensors: int
    flat: Callable  # (inputs, or what belongs to each) -> of those with a derivative, without lists
    save: Callable  # (ctx, inputs, output) -> which of several outputs are read, if not all are
    backward: Callable  # (ops of the backend, ctx, *grads) -> gradients of all inputs
    tangent: Callable  # (ops of the backend, ctx, *tangents) -> tangents of the outputs


def _keep(ctx, tensors, *rest):
    """Tensors, lists of them and None for backward and tangent; `rest` is what is no tensor."""
    ctx.set_materialize_grads(False)
    flat = _flat(tensors)
    ctx.save_for_backward(*flat)
    if _is_watched():
        ctx.save_for_forward(*flat)
    ctx.rest = (_lists(tensors), *rest)


def _kept(ctx):
    return _nested(ctx.saved_tensors, ctx.rest[0])


def _flat_sweep(inputs):
    x, w_ih, bias, w_hh, _mask, h0, c0, _entry, projection, *_ = inputs
    return x, *w_ih, *bias, *w_hh, h0, c0, projection


def _save_sweep(ctx, inputs, output):
    *tensors, sizes, cell, mean, _keep_h, keep_c, keep_last, _save, allow_tf32 = inputs
    projects, carries = tensors[8] is not None, CELLS[cell] == "lstm"
    gives = (True, projects, keep_c and carries, keep_last, keep_last and carries, False)
    _keep(ctx, (*tensors, output[0], output[5]), sizes, cell, mean, allow_tf32)
    return gives


def _given(values, gives):
    """The values of outputs, and None for one that is not read; all are if ``gives`` is None."""
    if gives is None:
        return values
    return tuple([v if is_given else None for v, is_given in zip(values, gives, strict=True)])


def _sweep_backward(ops, ctx, dh, ds, dc, dh_n, dc_n, _):
    kept = _kept(ctx)
    x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, _, reversed_program, h, saved = kept
    _, sizes, cell, mean, allow_tf32 = ctx.rest
    nothing, needs_dx = (None,) * 10, ctx.needs_input_grad[0]
    if dh is None and ds is None and dc is None and dh_n is None and dc_n is None:
        none = ([None] * len(w) for w in (w_ih, bias, w_hh))
        return (None, *none, *(None,) * 5, *nothing)
    if not _is_differentiated_again():
        dx, dw_ih, dbias, dw_hh, dh0, dc0, dprojection = ops.sweep_bwd(
            dh, ds, dc, dh_n, dc_n, x, h, saved, w_ih, bias, w_hh, mask, h0, c0, entry,
            projection, reversed_program, sizes, cell, mean, needs_dx, allow_tf32,
        )  # fmt: skip
    elif cell >= len(ACTIVATIONS) or mean:
        grads = [dh, ds, dc, dh_n, dc_n]
        dx, dw_ih, dbias, dw_hh, dh0, dc0, dprojection = _composed_backward(ctx, grads)
    else:
        dx, dw_ih, dbias, dw_hh, dh0, dprojection = _closed_backward(ops, ctx, dh, ds, dh_n)
        dc0 = None
    return (
        dx if needs_dx else None,
        _of_list(dw_ih, w_ih),
        _of_biases(dbias, bias, cell),
        _of_list(dw_hh, w_hh),
        None,
        None if h0 is None else dh0,
        None if c0 is None else dc0,
        None,
        None if projection is None else dprojection,
        *nothing,
    )


def _of_list(gradient, weights):
    """The gradient (D, ...) of a list of weights, as such a list."""
    if isinstance(gradient, list):
        return gradient
    if not weights or gradient is None:
        return [None] * len(weights)
    return [gradient] if gradient.dim() == weights[0].dim() else list(gradient.unbind(0))


def _of_biases(gradient, bias, cell):
    """The gradient (D, rows) of biases, in the form of their list; no two share memory."""
    if not bias or not isinstance(gradient, torch.Tensor) or bias[0].dim() == 2:
        return _of_list(gradient, bias)
    pairs = []
    for row in gradient.unbind(0):
        if CELLS[cell] == "gru":
            r_z, of_input, of_state = row.tensor_split([row.shape[0] // 2, row.shape[0] // 4 * 3])
            pairs += [torch.cat([r_z, of_input]), torch.cat([r_z, of_state])]
        else:
            pairs += [row, row.clone()]
    return pairs


def _closed_backward(ops, ctx, dh, ds, dh_n):
    """The gradients of a sweep of Elman cells and sums, of differentiable ops."""
    x, w_ih, bias, w_hh, mask, h0, _, entry, projection, program, reversed_program, h, _ = _kept(
        ctx
    )
    _, sizes, cell, _, allow_tf32 = ctx.rest
    w_ih, w_hh = composed.stacked(cell, w_ih), composed.stacked(cell, w_hh)
    if program is None:
        program, reversed_program, sizes = _tables_of_chain(h)
    groups = sizes[0]
    total = torch.zeros_like(h) if dh is None else dh
    if ds is not None:
        total = total + torch.einsum("dkn,bdkh->bndh", projection, ds)
    ends_at_start = None
    if dh_n is not None:
        is_last, ends_at_start = _is_last(h, mask, program, groups)
        total = total + torch.einsum("bnd,dbh->bndh", is_last, dh_n)
    back = [*sizes[2:], *sizes[:2]]
    du = ops.gated_sweep(
        total, _gate(h, mask, cell), w_hh.transpose(1, 2), reversed_program, program, back,
        allow_tf32,
    )  # fmt: skip
    dw_hh = torch.einsum("bndi,bndj->dij", du, _sum_predecessors(h, program, groups))
    dh0 = None
    if h0 is not None:
        enters = _entering(h, entry, program, groups).expand(h.shape[:3])
        entered = torch.einsum("bndh,bnd->bdh", du, enters)
        dh0 = torch.einsum("bdi,dij->bdj", entered, w_hh)
        if dh_n is not None:
            dh0 = dh0 + torch.einsum("bd,dbh->bdh", ends_at_start, dh_n)
        dw_hh = dw_hh + torch.einsum("bdi,bdj->dij", entered, h0)
    dx, dw_ih = du, None
    if w_ih is not None:
        dx = torch.einsum("bndh,dhc->bnc", du, w_ih)
        dw_ih = torch.einsum("bndh,bnc->dhc", du, composed.live(mask, x))
    dbias = du.sum((0, 1)) if bias else None
    dprojection = None if ds is None else torch.einsum("bdkh,bndh->dkn", ds, h)
    return dx, dw_ih, dbias, dw_hh, dh0, dprojection


def _tables_of_chain(h):
    topology = Topology.chain(h.shape[1], bidirectional=h.shape[2] == 2)
    return _tables(topology, h.device, "levels")


def _gate(h, mask, cell):
    gate = _act_derivative(h, cell)
    return gate if mask is None else torch.where(mask[:, :, None, None], gate, 0)


def _is_last(h, mask, program, groups):
    """Ones where h_n is read: (B, N, D), and (B, D) where it is h0."""
    B, N, D = h.shape[:3]
    nodes = torch.arange(N, device=h.device)
    at = torch.stack(
        [
            composed.last_visit(mask, v.order, B, h.device)
            for v in composed.visits(program, N, D, groups)
        ],
        1,
    )
    return (nodes[None, :, None] == at[:, None]).to(h.dtype), (at < 0).to(h.dtype)


def _composed(ctx):
    """The composed sweep as a function of its differentiable inputs, and these inputs.

    It gives (h, s, c, h_n, c_n), without a projection all but s.
    """
    *inputs, program, _, h, _ = _kept(ctx)
    _, sizes, cell, mean, *_ = ctx.rest
    if program is None:
        program, _, sizes = _tables_of_chain(h)
    flat, lists = _flat(inputs), _lists(inputs)
    places = [i for i, t in enumerate(flat) if t is not None and t.is_floating_point()]

    def run(*values):
        given = list(flat)
        for place, value in zip(places, values, strict=True):
            given[place] = value
        states = composed.sweep(*_nested(given, lists), program, sizes, cell, mean)
        return tuple(value for value in states if value is not None)

    def nested(values):
        given = [None] * len(flat)
        for place, value in zip(places, values, strict=True):
            given[place] = value
        return _nested(given, lists)

    return run, [flat[place] for place in places], nested


def _composed_backward(ctx, grads):
    """The gradients of a sweep of any cell: what torch makes of the composed sweep."""
    run, values, nested = _composed(ctx)
    outputs, pull = torch.func.vjp(run, *values)
    if len(outputs) < len(grads):
        grads = [grads[0], *grads[2:]]
    given = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads, strict=True)]
    dx, dw_ih, dbias, dw_hh, _, dh0, dc0, _, dprojection = nested(pull(tuple(given)))
    return dx, dw_ih, dbias, dw_hh, dh0, dc0, dprojection


def _sweep_tangent(ops, ctx, *tangents):
    """Tangents of all outputs, zero of those that are not given."""
    *_, h, kept = _kept(ctx)
    _, _, cell, mean, _ = ctx.rest
    if cell < len(ACTIVATIONS) and not mean:
        found = _closed_tangent(ops, ctx, *tangents[:9])
    else:
        found = _composed_tangent(ctx, tangents)
    *found, _ = _given((*found, None), ctx.gives)
    return *(h.new_zeros(0) if t is None else t for t in found), torch.zeros_like(kept)


def _composed_tangent(ctx, tangents):
    run, values, _ = _composed(ctx)
    pairs = zip(_flat(tangents[:9]), _flat(_kept(ctx)[:9]), strict=True)
    given = [
        torch.zeros_like(value) if t is None else t
        for t, value in pairs
        if value is not None and value.is_floating_point()
    ]
    # What is pulled back is linear in the cotangents: the derivative of that is the tangent.
    outputs, pull = torch.func.vjp(run, *values)
    zeros = tuple(torch.zeros_like(o) for o in outputs)
    h_t, *rest = torch.func.vjp(pull, zeros)[1](tuple(given))[0]
    s_t = rest.pop(0) if len(rest) == 4 else None
    return h_t, s_t, *rest


def _closed_tangent(ops, ctx, dx, dw_ih, dbias, dw_hh, _mask, dh0, *rest):
    """The tangents of a sweep of Elman cells and sums: a gated sweep on the same topology."""
    x, w_ih, bias, w_hh, mask, h0, _, entry, projection, program, reversed_program, h, _ = _kept(
        ctx
    )
    _, sizes, cell, _, allow_tf32 = ctx.rest
    dprojection = rest[2]
    if program is None:
        program, reversed_program, sizes = _tables_of_chain(h)
    groups = sizes[0]
    dw_ih, dw_hh = _tangent(cell, dw_ih, w_ih), _tangent(cell, dw_hh, w_hh)
    dbias = _tangent(cell, dbias, bias, bias=True)
    w_ih, w_hh = composed.stacked(cell, w_ih), composed.stacked(cell, w_hh)
    du = torch.zeros_like(h)
    if dx is not None and w_ih is None:
        du = composed.live(None if mask is None else mask[..., None], dx)
    elif dx is not None:
        du = du + torch.einsum("bnc,dhc->bndh", composed.live(mask, dx), w_ih)
    if dw_ih is not None:
        du = du + torch.einsum("bnc,dhc->bndh", composed.live(mask, x), dw_ih)
    if dbias is not None:
        du = du + dbias
    if h0 is not None:
        enters = _entering(h, entry, program, groups).expand(h.shape[:3])
    if dw_hh is not None:
        q = _sum_predecessors(h, program, groups)
        if h0 is not None:
            q = q + torch.einsum("bnd,bdh->bndh", enters, h0)
        du = du + torch.einsum("bndj,dij->bndi", q, dw_hh)
    if dh0 is not None:
        du = du + torch.einsum("bnd,bdj,dij->bndi", enters, dh0, w_hh)
    h_t = ops.gated_sweep(
        du, _gate(h, mask, cell), w_hh, program, reversed_program, sizes, allow_tf32
    )
    s_t = None
    if projection is not None:
        s_t = torch.einsum("dkn,bndh->bdkh", projection, h_t)
        if dprojection is not None:
            s_t = s_t + torch.einsum("dkn,bndh->bdkh", dprojection, h)
    is_last, ends_at_start = _is_last(h, mask, program, groups)
    h_n_t = torch.einsum("bnd,bndh->dbh", is_last, h_t)
    if dh0 is not None:
        h_n_t = h_n_t + torch.einsum("bd,bdh->dbh", ends_at_start, dh0)
    return h_t, s_t, None, h_n_t, None


def _tangent(cell, tangents, weights, bias=None):
    """The tangent of a list of weights in one piece, or None."""
    if all(t is None for t in tangents):
        return None
    pairs = zip(tangents, weights, strict=True)
    return composed.stacked(cell, [torch.zeros_like(w) if t is None else t for t, w in pairs], bias)


def _save_gated_sweep(ctx, inputs, output):
    *tensors, sizes, allow_tf32 = inputs
    _keep(ctx, (*tensors, output), sizes, allow_tf32)


def _gated_sweep_backward(ops, ctx, dy):
    g, gate, w, program, reversed_program, y = _kept(ctx)
    _, sizes, allow_tf32 = ctx.rest
    nothing = (None,) * 4
    if dy is None:
        return (None,) * 3 + nothing
    if not _is_differentiated_again():
        gradients = ops.gated_sweep_bwd(
            dy, y, g, gate, w, program, reversed_program, sizes, allow_tf32
        )
        return *gradients, *nothing
    back = [*sizes[2:], *sizes[:2]]
    dg = ops.gated_sweep(dy, gate, w.transpose(1, 2), reversed_program, program, back, allow_tf32)
    t = dy + torch.einsum("bndi,dij->bndj", _sum_predecessors(dg, reversed_program, sizes[2]), w)
    sums = _sum_predecessors(y, program, sizes[0])
    dgate = t * (g + torch.einsum("dij,bndj->bndi", w, sums))
    return dg, dgate, torch.einsum("bndi,bndj->dij", dg, sums), *nothing


def _gated_sweep_tangent(ops, ctx, dg, dgate, dw, *_):
    g, gate, w, program, reversed_program, y = _kept(ctx)
    _, sizes, allow_tf32 = ctx.rest
    sums = _sum_predecessors(y, program, sizes[0])
    total = torch.zeros_like(y) if dg is None else dg
    if dw is not None:
        total = total + torch.einsum("dij,bndj->bndi", dw, sums)
    if dgate is None:
        return ops.gated_sweep(total, gate, w, program, reversed_program, sizes, allow_tf32)
    # Tangents of the gate are not scaled by it, so they are no input of a gated sweep: what they
    # bring at a node is added to its tangent, and to its successors' inputs.
    own = dgate * (g + torch.einsum("dij,bndj->bndi", w, sums))
    reached = _sum_predecessors(own, program, sizes[0])
    total = total + torch.einsum("dij,bndj->bndi", w, reached)
    return own + ops.gated_sweep(total, gate, w, program, reversed_program, sizes, allow_tf32)


def _save_sparse_projection(ctx, inputs, output):
    _keep(ctx, inputs)


def _sparse_projection_backward(ops, ctx, ds):
    h, weight = _kept(ctx)
    if ds is None:
        return None, None
    if not _is_differentiated_again():
        return tuple(ops.sparse_projection_bwd(ds, h, weight))
    return torch.einsum("dkn,bdkh->bndh", weight, ds), torch.einsum("bdkh,bndh->dkn", ds, h)


def _sparse_projection_tangent(ops, ctx, dh, dweight):
    h, weight = _kept(ctx)
    s = h.new_zeros((h.shape[0], h.shape[2], weight.shape[1], h.shape[3]))
    if dh is not None:
        s = s + torch.einsum("dkn,bndh->bdkh", weight, dh)
    if dweight is not None:
        s = s + torch.einsum("dkn,bndh->bdkh", dweight, h)
    return s


def _is_differentiated_again() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


_RULES = (
    _Rule("sweep", 11, _flat_sweep, _save_sweep, _sweep_backward, _sweep_tangent),
    _Rule(
        "gated_sweep",
        5,
        itemgetter(0, 1, 2),
        _save_gated_sweep,
        _gated_sweep_backward,
        _gated_sweep_tangent,
    ),
    _Rule(
        "sparse_projection",
        2,
        itemgetter(0, 1),
        _save_sparse_projection,
        _sparse_projection_backward,
        _sparse_projection_tangent,
    ),
)


# --- registration -------------------------------------------------------------------------------


def _autograd_functions(rule: _Rule, forward: Callable, ops: SimpleNamespace):
    """The rule as two autograd functions: a quick one, and one for torch.func's transforms."""
    n = rule.num_tensors

    def eager_forward(ctx, *inputs):
        args = inputs[-1]
        with _below_autograd():
            output = forward(*args)
        save(ctx, args, output)
        return _given(output, ctx.gives)

    def save(ctx, inputs, output):
        ctx.gives = rule.save(ctx, inputs, output)

    def eager_backward(ctx, *grads):
        return *rule.flat(rule.backward(ops, ctx, *grads)), None

    # Torch's own machinery brings gradients, empty ones, of what is not read either.
    def backward(ctx, *grads):
        return rule.backward(ops, ctx, *_given(grads, ctx.gives))

    def transformed_backward(ctx, *grads):
        return *_flat(backward(ctx, *grads)[:n]), None

    def jvp(ctx, *tangents):
        return rule.tangent(ops, ctx, *_nested(tangents, ctx.rest[0][:n]))

    def eager_jvp(ctx, *tangents):
        lists = ctx.rest[0][:n]
        places = range(sum(1 if size is None else size for size in lists))
        given = dict(zip(rule.flat(_nested(places, lists)), tangents[:-1], strict=True))
        return _given(jvp(ctx, *map(given.get, places)), ctx.gives)

    # A transform gives other tensors than it was given.
    def arguments(inputs):
        *flat, (lists, rest) = inputs
        return *_nested(flat, lists), *rest

    def transformed_forward(*inputs):
        return forward(*arguments(inputs))

    def setup_context(ctx, inputs, output):
        save(ctx, arguments(inputs), output)

    eager = type(
        f"{rule.name}_eager",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(eager_forward),
            "backward": staticmethod(eager_backward),
            "jvp": staticmethod(eager_jvp),
        },
    )
    transformed = type(
        f"{rule.name}_transformed",
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(transformed_forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(transformed_backward),
            "jvp": staticmethod(jvp),
        },
    )
    # Past a search for tensors that a transform left behind: the ops take them as they are.
    eager_apply = super(torch.autograd.Function, eager).apply
    return SimpleNamespace(
        forward=forward,
        save=save,
        backward=backward,
        eager=lambda args: eager_apply(*rule.flat(args), args),
        transformed=lambda args: transformed.apply(
            *_flat(args[:n]), _Opaque((_lists(args[:n]), args[n:]))
        ),
    )


def _vmap_rule(op: Callable) -> Callable:
    """One call for each element of the batch: torch's own fall-back takes no lists of tensors."""

    def rule(info, in_dims, *args):
        flat, lists = _flat(args), _lists(args)
        dims = []  # of a list one, or one for each
        for d, n in zip(in_dims, lists, strict=True):
            dims += [d] if n is None else d if isinstance(d, list | tuple) else [d] * n
        results = []
        for i in range(info.batch_size):
            own = [a if d is None else a.select(d, i) for a, d in zip(flat, dims, strict=True)]
            results.append(op(*_nested(own, lists)))
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def _grads_batched_rule(op: Callable) -> Callable:
    """The same for torch.autograd.grad(is_grads_batched=True), which has a vmap of its own."""
    rule = _vmap_rule(op)
    batched = torch._C._dispatch_key_parse("Batched")

    def is_batched(value):
        return isinstance(value, torch.Tensor) and torch._C._dispatch_keys(value).has(batched)

    def legacy_rule(*args):
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        flat, lists = _flat(args), _lists(args)
        dims = [0 if is_batched(a) else None for a in flat]
        flat = [
            a if d is None else torch._remove_batch_dim(a, level, 1, 0)
            for a, d in zip(flat, dims, strict=True)
        ]
        size = next(a.shape[0] for a, d in zip(flat, dims, strict=True) if d == 0)
        info = SimpleNamespace(batch_size=size)
        values, _ = rule(info, _nested(dims, lists), *_nested(flat, lists))
        if isinstance(values, torch.Tensor):
            return torch._add_batch_dim(values, 0, level)
        return tuple(torch._add_batch_dim(value, 0, level) for value in values)

    return legacy_rule


def _register(backend: Backend) -> dict[str, SimpleNamespace]:
    library = torch.library.Library(backend.namespace, "DEF")
    for op in OPS:
        library.define(op.name + op.signature)
        torch.library.register_fake(f"{backend.namespace}::{op.name}", op.fake, lib=library)
    raw = {op.name: getattr(getattr(torch.ops, backend.namespace), op.name).default for op in OPS}
    for name, op in raw.items():
        torch.library.register_vmap(f"{backend.namespace}::{name}", _vmap_rule(op), lib=library)
        library.impl(name, _grads_batched_rule(op), "Batched")
    for op in OPS:
        register_flop_formula(raw[op.name].overloadpacket, get_raw=True)(op.flops)
    _LIBRARIES.append(library)
    # What a backward calls: fused backward ops, and the gated sweep with its own derivative.
    ops = SimpleNamespace(**{name: call for name, call in raw.items() if name.endswith("_bwd")})
    functions = {}
    for rule in _RULES:
        functions[rule.name] = function = _autograd_functions(rule, raw[f"{rule.name}_fwd"], ops)
        torch.library.register_autograd(
            f"{backend.namespace}::{rule.name}_fwd",
            function.backward,
            setup_context=function.save,
            lib=library,
        )

    def gated_sweep(*inputs):
        function = functions["gated_sweep"]
        return (function.transformed if _under_transform() else function.eager)(inputs)

    ops.gated_sweep = gated_sweep
    return functions


_LIBRARIES: list[torch.library.Library] = []  # a Library that is dropped takes its ops with it
_OPS = {
    name: _register(backend)
    for name, backend in BACKENDS.items()
    if name != "reference" and not backend.unavailable
}
