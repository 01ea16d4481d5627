"""ONNX Runtime's RNN, GRU and LSTM operators: what people deploy with; inference alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from strnn_kernels.testing import Case

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = None

#: ONNX has the gates in an order of its own: gru z, r, n; lstm i, o, f, g.
_ORDER = {"elman": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


def absent() -> str | None:
    """Why this peer cannot run here, or None."""
    return "onnx and onnxruntime are not installed" if onnx is None else None


def session(case: Case, inputs: Mapping[str, Tensor], threads: int) -> Callable[[], Tensor]:
    """A call of one operator on x, time first as ONNX has it; y (T, D, B, H)."""
    helper, D, H = onnx.helper, case.D, case.H
    order = _ORDER[case.cell]

    def gates(w: Tensor) -> Tensor:
        rows = w.unflatten(1, (-1, H))
        return rows[:, list(order)].flatten(1, 2)

    bias = inputs.get("bias", torch.zeros(D, len(order) * H + (case.cell == "gru") * H))
    if case.cell == "gru":
        of_state = torch.cat([torch.zeros(D, 2 * H), bias[:, 3 * H :]], 1)
        bias = torch.cat([gates(bias[:, : 3 * H]), gates(of_state)], 1)
    else:
        bias = torch.cat([gates(bias), torch.zeros_like(bias)], 1)
    weights = {"W": gates(inputs["w_ih"]), "R": gates(inputs["w_hh"]), "B": bias}
    given = {"X": inputs["x"].transpose(0, 1).contiguous()}
    for ours, theirs in (("h0", "h"), ("c0", "c")):
        if ours in inputs:
            given[theirs] = inputs[ours].transpose(0, 1).contiguous()
    operator = {"elman": "RNN", "gru": "GRU", "lstm": "LSTM"}[case.cell]
    attributes = {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
    if case.cell == "elman":
        attributes["activations"] = [case.activation.capitalize()] * D
    if case.cell == "gru":
        attributes["linear_before_reset"] = 1
    names = ["X", "W", "R", "B", "", "h" if "h" in given else "", "c" if "c" in given else ""]
    while not names[-1]:
        names.pop()
    node = helper.make_node(operator, names, ["Y"], **attributes)
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(n, kind, list(t.shape)) for n, t in given.items()],
        [helper.make_tensor_value_info("Y", kind, None)],
        [onnx.numpy_helper.from_array(t.contiguous().numpy(), n) for n, t in weights.items()],
    )
    # A version that every runtime of the last years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    run = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run
    arrays = {name: t.numpy() for name, t in given.items()}
    return lambda: run(None, arrays)[0]
