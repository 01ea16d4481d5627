"""ONNX: the conformance table's forward cases, in ONNX Runtime, at another batch and length."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from strnn_models import STRNN

import strnn_kernels as sk
from strnn_kernels import onnx
from strnn_kernels.testing import CONFORMANCE, PER_SEQUENCE, find

# ONNX Runtime's kernels for the CPU take float32 alone; a gated sweep is a derivative; c of every
# step is refused.
CASES = [
    dataclasses.replace(c, returns_carry=False)
    for c in CONFORMANCE
    if c.dtype == torch.float32 and c.op != "gated_sweep"
]


class Calls(torch.nn.Module):
    """The calls of some cases at once: what varies is an input, the rest a buffer."""

    def __init__(self, cases):
        super().__init__()
        self.cases, self.values = cases, torch.nn.ModuleList(torch.nn.Module() for _ in cases)
        for case, value in zip(cases, self.values, strict=True):
            for name, t in case.inputs().items():
                if name not in PER_SEQUENCE:
                    value.register_buffer(name, t)

    def forward(self, inputs):
        return [
            case.bind(sk, {**dict(value.named_buffers()), **given})()
            for case, value, given in zip(self.cases, self.values, inputs, strict=True)
        ]


def exported(model, inputs, dynamic, path, optimize=True):
    program = torch.onnx.export(
        model,
        (inputs,),
        dynamo=True,
        verbose=False,
        custom_translation_table=onnx.translation_table(),
        dynamic_shapes=(dynamic,),
        optimize=optimize,
    )
    program.save(path)
    return [node.op_type for node in program.model.graph]


def in_onnx_runtime(path, tensors):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))


def per_sequence(case, **changes):
    case = dataclasses.replace(case, **changes)
    return {name: t for name, t in case.inputs(seed=3).items() if name in PER_SEQUENCE}


@pytest.mark.filterwarnings("ignore")  # those of the exporter
@pytest.mark.parametrize("is_chain", [True, False], ids=["chains", "graphs"])
def test_conformance_cases(is_chain, tmp_path, is_exhaustive):
    cases = [c for c in CASES if (c.op == "temporal_rnn") == is_chain]
    if not is_chain:  # the exporter takes 10 ms an op: those of few levels and gates
        most = [20 if c.has_mask and (is_exhaustive or not c.needs_cells) else 8 for c in cases]
        cases = [c for c, m in zip(cases, most, strict=True) if c.topology.num_levels * c.D <= m]
    assert len(cases) >= 7
    # An export takes a size of 1 for a constant.
    at_export = [per_sequence(case, B=2) for case in cases]
    batch = torch.export.Dim("batch", min=2, max=4096)
    dynamic = [{name: {0: batch} for name in given} for given in at_export]
    model = Calls(cases).eval()
    # The optimiser tries its rules on each of ten thousand nodes: test_strnn has it on a graph.
    operators = exported(model, at_export, dynamic, tmp_path / "model.onnx", optimize=is_chain)
    layers = {"RNN", "GRU", "LSTM"}
    assert layers & set(operators) == (layers if is_chain else set())
    given = [per_sequence(case, B=5) for case in cases]
    tensors = [t for one in given for t in one.values()]
    with sk.use_backend("reference"), torch.no_grad():
        expected = model(given)
    found = in_onnx_runtime(tmp_path / "model.onnx", tensors)
    for case, ours, theirs in zip(cases, expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5, err_msg=case.name)


@pytest.mark.filterwarnings("ignore")  # those of the exporter
def test_strnn(tmp_path):
    model = STRNN(in_channels=2, sample_length=4, sp_hidden=7, topology=sk.Topology.grid(2, 3))
    dynamic = {0: torch.export.Dim("batch", min=2, max=4096)}
    exported(model.eval(), torch.randn(2, 4, 6, 2), dynamic, tmp_path / "model.onnx")
    x = torch.randn(5, 4, 6, 2)
    found = in_onnx_runtime(tmp_path / "model.onnx", [x])[0]
    np.testing.assert_allclose(found, model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_c_of_every_step_is_refused(tmp_path):
    given = per_sequence(find("lstm-carry-lengths"), B=2)
    model = Calls([find("lstm-carry-lengths")])
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="no c of every step"):
        exported(model, [given], [dict.fromkeys(given)], tmp_path / "model.onnx")
