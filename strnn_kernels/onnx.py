"""ONNX: what ``torch.onnx.export(dynamo=True)`` makes of the ops.

A layer over time becomes ONNX's own RNN, GRU or LSTM, a sparse projection an Einsum::

    torch.onnx.export(model, (x,), "model.onnx", dynamo=True,
                      custom_translation_table=strnn_kernels.onnx.translation_table())

A sweep over any other graph needs no entry: while an export to ONNX runs, it is made of PyTorch's
ops, level by level (:mod:`strnn_kernels.composed`). Needs ``pip install strnn-kernels[onnx]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .backends import BACKENDS
from .checks import ArgumentError
from .notation import CELLS

#: The places of torch's gates in the order of ONNX: z, r, h of a GRU and i, o, f, c of an LSTM.
_ORDER = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
_ACTIVATIONS = {"identity": "Affine", "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def translation_table() -> dict[Callable, Callable]:
    """The ``custom_translation_table`` of torch.onnx.export for the ops of every backend here.

    Raises:
        ImportError: onnxscript is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        message = "strnn_kernels.onnx needs onnxscript: pip install strnn-kernels[onnx]"
        raise ImportError(message) from error
    table: dict[Callable, Callable] = {}
    for backend in BACKENDS.values():
        if backend.name != "reference" and not backend.unavailable:
            ops = getattr(torch.ops, backend.namespace)
            table[ops.sweep_fwd.default] = _sweep
            table[ops.sparse_projection_fwd.default] = _sparse_projection
    return table


def _sparse_projection(h: Any, weight: Any) -> Any:
    from onnxscript.onnx_opset import opset18 as op

    return op.Einsum(weight, h, equation="dkn,bndh->bdkh")


def _sweep(
    x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, reversed_program, program_sizes,
    cell, mean, keep_h, keep_c, keep_last, save, allow_tf32=False,
):  # fmt: skip
    """sweep_fwd of a chain (schema.py), x (B, T, C)."""
    from onnxscript.onnx_opset import opset18 as op

    if program is not None or not w_ih:
        raise ArgumentError("strnn_kernels.onnx: sweep_fwd must be of a chain with w_ih")
    if keep_c:
        raise ArgumentError("strnn_kernels.onnx: ONNX's LSTM gives no c of every step")
    name = CELLS[cell]
    H, D = w_hh[0].shape[-1], w_hh[0].shape[0] if len(w_hh[0].shape) == 3 else len(w_hh)

    def rows(weight, order):
        """Blocks of H rows of a tensor (D, rows, ...), in the order given."""
        if name not in _ORDER:
            return weight
        return op.Gather(weight, [k * H + i for k in order for i in range(H)], axis=1)

    def stacked(weights):
        if len(weights[0].shape) == 3:
            return weights[0]
        return op.Concat(*(op.Unsqueeze(w, [0]) for w in weights), axis=0)

    order = _ORDER.get(name, (0,))
    biases = None  # (D, 2 G H): b_ih, then b_hh
    if len(bias) > 1:
        pairs = [rows(stacked(bias[k::2]), order) for k in (0, 1)]
        biases = op.Concat(*pairs, axis=1)
    elif bias:
        # One for both; only the new gate of a gru, its rows 2 and 3, keeps them apart.
        of_input = rows(bias[0], order)
        of_state = op.Sub(of_input, of_input)
        if name == "gru":
            of_state = op.Concat(rows(of_state, (0, 1)), rows(bias[0], (3,)), axis=1)
        biases = op.Concat(of_input, of_state, axis=1)
    lengths = None if mask is None else op.ReduceSum(op.Cast(mask, to=6), [1], keepdims=0)
    start = [None if s is None else op.Transpose(s, perm=[1, 0, 2]) for s in (h0, c0)]
    inputs = [
        op.Transpose(x, perm=[1, 0, 2]),
        rows(stacked(w_ih), order),
        rows(stacked(w_hh), order),
        biases,
        lengths,
        start[0],
    ]
    options: dict[str, Any] = {"hidden_size": H}
    options["direction"] = "bidirectional" if D == 2 else "forward"
    nothing = op.Constant(value_float=0.0)  # for outputs that nobody wants, and nobody reads
    c_n = nothing
    if name == "lstm":
        y, h_n, c_n = op.LSTM(*inputs, start[1], **options)
    elif name == "gru":
        y, h_n = op.GRU(*inputs, linear_before_reset=1, **options)
    else:
        options |= {"activations": [_ACTIVATIONS[name]] * D}
        if name == "identity":
            options |= {"activation_alpha": [1.0] * D, "activation_beta": [0.0] * D}
        y, h_n = op.RNN(*inputs, **options)
    h = op.Transpose(y, perm=[2, 0, 1, 3])  # (T, D, B, H) -> (B, T, D, H)
    s = nothing if projection is None else _sparse_projection(h, projection)
    return h, s, nothing, h_n, c_n, nothing
