"""Inference calls of recurrent modules past torch's dispatcher, which costs more than a live step.

For a call that means its numbers alone, with a module's own Parameters and tensors of plain memory
on the CPU. Any other takes the way through the ops, with the same kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from strnn_kernels import registration
from strnn_kernels.backends import native, select
from strnn_kernels.notation import gates

_CPU = torch.device("cpu")
_keys = torch._C._dispatch_keys
#: The dispatch keys of plain memory on the CPU: no wrapper, no view that negates, no other layout.
_PLAIN = {_keys(torch.empty(0)).raw_repr()}
with torch.inference_mode():
    _PLAIN.add(_keys(torch.empty(0)).raw_repr())


def _is_memory(t: Any, dtype: torch.dtype) -> bool:
    """Whether it is a tensor of that dtype whose values lie in one piece, and are all there."""
    return (
        type(t) in (torch.Tensor, torch.nn.Parameter)
        and t.dtype is dtype
        and _keys(t).raw_repr() in _PLAIN
        and t.is_contiguous()
        and (t.storage_offset() + t.numel()) * t.itemsize <= t.untyped_storage().nbytes()
    )


class Bound:
    """The layers of a :class:`Recurrent`, bound to where its weights lie.

    A copy, or what a file gives back, is None: it would be of other weights.
    """

    def __init__(self, sizes: tuple[int, ...], names: list[list[str]], known: Any):
        cell, L, is_bidirectional, C, H = self.sizes = sizes
        weights = [(name, known[name]) for of_one in names for name in of_one]
        self._weights = [(name, w, w.shape, w.data_ptr()) for name, w in weights]
        self.dtype = weights[0][1].dtype
        addresses: list[int | None] = []
        for of_one in names:  # w_ih, w_hh and perhaps b_ih, b_hh
            addresses += [known[name].data_ptr() for name in of_one] + [None] * (4 - len(of_one))
        self._layers = native.BoundLayers(
            self.dtype, (L, 1 + is_bidirectional, C, H), cell, addresses
        )
        self.run = self._layers.run

    def __reduce__(self):
        return type(None), ()

    def holds(self, sizes: tuple[int, ...], known: Any) -> bool:
        """Whether the layers are still these, and their Parameters where they were."""
        for name, w, shape, at in self._weights:
            if (
                known.get(name) is not w
                or w.data_ptr() != at
                or w.dtype is not self.dtype
                or w.shape != shape
                or not w.is_contiguous()
            ):
                return False
        return sizes == self.sizes


def _bind(module: Any, sizes: tuple[int, ...]) -> Bound | None:
    """None: the weights are not all Parameters, of one of the kernels' dtypes, in plain memory."""
    cell, _, is_bidirectional, C, H = sizes
    rows, names, known = gates(cell) * H, module._all_weights, module._parameters
    dtype = getattr(known.get(names[0][0]), "dtype", None)
    if dtype not in native.DTYPES:
        return None
    for i, of_direction in enumerate(names):
        C_of_layer = C if i <= is_bidirectional else H * (1 + is_bidirectional)
        shapes = ((rows, C_of_layer), (rows, H), (rows,), (rows,))
        for name, shape in zip(of_direction, shapes, strict=False):
            if not _is_memory(known.get(name), dtype) or known[name].shape != shape:
                return None
    return Bound(sizes, names, known)


def call(
    module: Any, cell: int, x: Any, hx: Any, is_step: bool = False
) -> tuple[torch.Tensor, Any] | None:
    """What the module returns for x, laid out as it takes it, batched, or (B, C) with is_step.

    None: the call is to go through the ops, which also say what is wrong with it.
    """
    if native.CPU_UNAVAILABLE or not registration.is_plain():
        return None
    if module.dropout and module.training:
        return None
    L, C, H, carries = module.num_layers, module.input_size, module.hidden_size, module._carries
    sizes = cell, L, module.bidirectional, C, H
    bound = module._bound
    if bound is None or not bound.holds(sizes, module._parameters):
        bound = module._bound = _bind(module, sizes)
    if bound is None or not _is_memory(x, dtype := bound.dtype) or x.dim() != 3 - is_step:
        return None
    D = 2 if module.bidirectional else 1
    B, T = x.shape[0], 1 if is_step else x.shape[1]
    if not module.batch_first and not is_step:
        B, T = T, B
        if B != 1 and T != 1:
            return None  # sequences would have to lie in one piece
    of_last = L * D, B, H
    if x.shape[-1] != C or B * T == 0:
        return None
    h0, c0 = hx, None
    if hx is not None:
        if carries:
            if type(hx) not in (tuple, list) or len(hx) != 2:
                return None
            h0, c0 = hx
            if not _is_memory(c0, dtype) or c0.shape != of_last:
                return None
        if not _is_memory(h0, dtype) or h0.shape != of_last or B != 1 != D:
            return None  # the states of a direction would have to lie in one piece too
    if select(type(module).__name__, _CPU, dtype).name != "cpu":
        return None
    output = x.new_empty((*x.shape[:-1], D * H))
    h_n, c_n = x.new_empty(of_last), x.new_empty(of_last) if carries else None
    ran = bound.run(
        B, T, x.data_ptr(), None if h0 is None else h0.data_ptr(),
        None if c0 is None else c0.data_ptr(), output.data_ptr(), h_n.data_ptr(),
        None if c_n is None else c_n.data_ptr(),
    )  # fmt: skip
    if not ran:
        return None
    return output, (h_n, c_n) if carries else h_n
