"""Hands the ops to torch: schemas, fake functions, derivatives.

The derivative of a sweep is a gated sweep on the reversed topology, and that of a gated sweep is
another one, so the rules below are closed: any order of derivative needs no other kernel. The first
order goes through one fused op (``<op>_bwd``); under ``create_graph`` the same derivative is
composed of differentiable ops:

    du = gated_sweep(dh, mask * act'(h), w_hh^T)       dw_hh = sum_b,n du (x) sum_pred h
    dg = gated_sweep(dy, gate, w^T) = gate * t         dgate = t * (g + w sum_pred y)
    t  = dy + w^T sum_succ dg                          dw    = sum_b,n dg (x) sum_pred y

Each rule is written once, as an :class:`_Rule`, and serves three kinds of callers: torch's own
machinery (``torch.compile``, ``torch.export``, opcheck) through the dispatcher; eager calls through
an autograd function that skips the dispatcher's slower path; ``torch.func`` transforms through one
that follows its protocol. Forward-mode derivatives are refused by torch with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from .backends import BACKENDS, Backend, tf32
from .notation import ACTIVATIONS
from .schema import OPS
from .topology import Topology, by_handle

_below_autograd = torch._C._AutoDispatchBelowAutograd
_under_transform = torch._C._are_functorch_transforms_active


def sweep(backend: Backend, x, w_ih, bias, w_hh, mask, h0, entry, projection, tables, activation):
    """The sweep of ``schema.OPS``: h (B, N, D, H), or with a projection s (B, D, K, H).

    ``tables`` are those of :func:`topology_tables` or :func:`chain_tables`.
    """
    tensors = (x, w_ih, bias, w_hh, mask, h0, entry, projection)
    needs_grad = _needs_grad(tensors)
    keep_h = needs_grad or projection is None
    allow_tf32 = backend.has_tf32 and tf32.is_allowed(x.dtype)
    args = (*tensors, *tables, ACTIVATIONS.index(activation), keep_h, allow_tf32)
    h, s = _call(backend, "sweep", args, needs_grad)
    return h if projection is None else s


def gated_sweep(backend: Backend, g, gate, w, tables):
    """The gated sweep of ``schema.OPS``: y (B, N, D, H)."""
    args = (g, gate, w, *tables, backend.has_tf32 and tf32.is_allowed(g.dtype))
    return _call(backend, "gated_sweep", args, _needs_grad((g, gate, w)))


def sparse_projection(backend: Backend, h, weight):
    """The sparse projection of ``schema.OPS``: s (B, D, K, H)."""
    return _call(backend, "sparse_projection", (h, weight), _needs_grad((h, weight)))


def _needs_grad(tensors) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def topology_tables(topology: Topology, device: torch.device, order: str):
    """What the ops take for a topology: its table, that of its reverse, and their sizes."""
    return _handle_tables(topology.handle, device, order)


@torch.compiler.assume_constant_result
def _handle_tables(handle: str, device: torch.device, order: str):
    return _tables(by_handle(handle), device, order)


@torch.compiler.assume_constant_result
def chain_tables(T: int, bidirectional: bool, device: torch.device, order: str):
    """The same for ``Topology.chain(T)``; a compiler need not see the Topology."""
    return _tables(Topology.chain(T, bidirectional=bidirectional), device, order)


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


def _call(backend: Backend, name: str, args, needs_grad: bool):
    if torch.compiler.is_compiling():
        return getattr(getattr(torch.ops, backend.namespace), f"{name}_fwd")(*args)
    op = _OPS[backend.name][name]
    if _under_transform():
        return op.transformed.apply(*args)
    if needs_grad or torch.autograd.forward_ad._current_level >= 0:
        return op.eager.apply(*args)
    with _below_autograd():
        return op.forward(*args)


# --- derivatives --------------------------------------------------------------------------------


def _act_derivative(h: torch.Tensor, activation: int) -> torch.Tensor:
    """act'(u) as a function of h = act(u)."""
    name = ACTIVATIONS[activation]
    if name == "relu":
        return (h > 0).to(h.dtype)
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
    """The derivative of one op: what to save, and the gradients of its inputs."""

    name: str
    save: Callable  # (ctx, inputs, output) -> None
    backward: Callable  # (ops of the backend, ctx, *grads) -> gradients of all inputs


def _save_sweep(ctx, inputs, output):
    *tensors, program, reversed_program, sizes, activation, _keep_h, allow_tf32 = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, program, reversed_program, output[0])
    ctx.rest = (sizes, activation, allow_tf32)


def _sweep_backward(ops, ctx, dh, ds):
    x, w_ih, bias, w_hh, mask, h0, entry, projection, program, reversed_program, h = (
        ctx.saved_tensors
    )
    sizes, activation, allow_tf32 = ctx.rest
    nothing = (None,) * 6
    if projection is None:
        ds = None
    if dh is None and ds is None:
        return (None,) * 8 + nothing
    if not _is_differentiated_again():
        dx, dw_ih, dbias, dw_hh, dh0, dprojection = ops.sweep_bwd(
            dh, ds, x, h, w_ih, bias, w_hh, mask, h0, entry, projection, reversed_program, sizes,
            activation, ctx.needs_input_grad[0], allow_tf32,
        )  # fmt: skip
        return (
            dx if ctx.needs_input_grad[0] else None,
            None if w_ih is None else dw_ih,
            None if bias is None else dbias,
            dw_hh,
            None,
            None if h0 is None else dh0,
            None,
            None if projection is None else dprojection,
            *nothing,
        )
    total = torch.zeros_like(h) if dh is None else dh
    if ds is not None:
        total = total + torch.einsum("dkn,bdkh->bndh", projection, ds)
    gate = _act_derivative(h, activation)
    if mask is not None:
        gate = gate * mask[:, :, None, None]
    back = [*sizes[2:], *sizes[:2]]
    du = ops.gated_sweep(
        total, gate, w_hh.transpose(1, 2), reversed_program, program, back, allow_tf32
    )
    dw_hh = torch.einsum("bndi,bndj->dij", du, _sum_predecessors(h, program, sizes[0]))
    dh0 = None
    if h0 is not None:
        entered = torch.einsum(
            "bndh,bnd->bdh", du, _entering(h, entry, program, sizes[0]).expand(h.shape[:3])
        )
        dh0 = torch.einsum("bdi,dij->bdj", entered, w_hh)
        dw_hh = dw_hh + torch.einsum("bdi,bdj->dij", entered, h0)
    dx, dw_ih = du, None
    if w_ih is not None:
        dx = torch.einsum("bndh,dhc->bnc", du, w_ih)
        dw_ih = torch.einsum("bndh,bnc->dhc", du, x)
    dbias = None if bias is None else du.sum((0, 1))
    dprojection = None if ds is None else torch.einsum("bdkh,bndh->dkn", ds, h)
    return dx, dw_ih, dbias, dw_hh, None, dh0, None, dprojection, *nothing


def _save_gated_sweep(ctx, inputs, output):
    *tensors, sizes, allow_tf32 = inputs
    ctx.save_for_backward(*tensors, output)
    ctx.rest = (sizes, allow_tf32)


def _gated_sweep_backward(ops, ctx, dy):
    g, gate, w, program, reversed_program, y = ctx.saved_tensors
    sizes, allow_tf32 = ctx.rest
    nothing = (None,) * 4
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


def _save_sparse_projection(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _sparse_projection_backward(ops, ctx, ds):
    h, weight = ctx.saved_tensors
    if not _is_differentiated_again():
        return tuple(ops.sparse_projection_bwd(ds, h, weight))
    return torch.einsum("dkn,bdkh->bndh", weight, ds), torch.einsum("bdkh,bndh->dkn", ds, h)


def _is_differentiated_again() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


_RULES = (
    _Rule("sweep", _save_sweep, _sweep_backward),
    _Rule("gated_sweep", _save_gated_sweep, _gated_sweep_backward),
    _Rule("sparse_projection", _save_sparse_projection, _sparse_projection_backward),
)


# --- registration -------------------------------------------------------------------------------


def _autograd_functions(rule: _Rule, forward: Callable, ops: SimpleNamespace):
    """The rule as two autograd functions: a quick one, and one for torch.func's transforms."""

    def eager_forward(ctx, *inputs):
        with _below_autograd():
            output = forward(*inputs)
        rule.save(ctx, inputs, output)
        return output

    def backward(ctx, *grads):
        return rule.backward(ops, ctx, *grads)

    def transformed_forward(*inputs):
        return forward(*inputs)

    eager = type(
        f"{rule.name}_eager",
        (torch.autograd.Function,),
        {"forward": staticmethod(eager_forward), "backward": staticmethod(backward)},
    )
    transformed = type(
        f"{rule.name}_transformed",
        (torch.autograd.Function,),
        {
            "generate_vmap_rule": True,
            "forward": staticmethod(transformed_forward),
            "setup_context": staticmethod(rule.save),
            "backward": staticmethod(backward),
        },
    )
    return SimpleNamespace(forward=forward, eager=eager, transformed=transformed)


def _register(backend: Backend) -> dict[str, SimpleNamespace]:
    library = torch.library.Library(backend.namespace, "DEF")
    for op in OPS:
        library.define(op.name + op.signature)
        torch.library.register_fake(f"{backend.namespace}::{op.name}", op.fake, lib=library)
    raw = {op.name: getattr(getattr(torch.ops, backend.namespace), op.name).default for op in OPS}
    _LIBRARIES.append(library)
    # What a backward calls: fused backward ops, and the gated sweep with its own derivative.
    ops = SimpleNamespace(**{name: call for name, call in raw.items() if name.endswith("_bwd")})
    functions = {}
    for rule in _RULES:
        functions[rule.name] = _autograd_functions(rule, raw[f"{rule.name}_fwd"], ops)

        def backward(ctx, *grads, rule=rule):
            return rule.backward(ops, ctx, *grads)

        torch.library.register_autograd(
            f"{backend.namespace}::{rule.name}_fwd",
            backward,
            setup_context=lambda ctx, inputs, output, rule=rule: rule.save(ctx, inputs, output),
            lib=library,
        )

    def gated_sweep(*inputs):
        function = functions["gated_sweep"]
        return (function.transformed if _under_transform() else function.eager).apply(*inputs)

    ops.gated_sweep = gated_sweep
    return functions


_LIBRARIES: list[torch.library.Library] = []  # a Library that is dropped takes its ops with it
_OPS = {
    name: _register(backend)
    for name, backend in BACKENDS.items()
    if name != "reference" and not backend.unavailable
}
