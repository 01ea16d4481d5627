"""Every case of the shared table, in every dtype, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels.testing import CONFORMANCE, Expected

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CONFORMANCE, ids=str)
def test_output_and_gradients(case, dtype):
    inputs = case.inputs(dtype=dtype)
    expected = Expected.of(case, inputs)
    with sk.use_backend("cpu"):
        actual = case.results(sk, inputs)
        with torch.no_grad():
            inference = case.run(sk, inputs)
    assert actual.keys() == expected.exact.keys()
    expected.check(actual, "cpu")
    expected.check({"output": inference}, "cpu, inference")


def test_the_table_covers_what_it_claims():
    assert {c.op for c in CONFORMANCE} == {
        "sweep",
        "gated_sweep",
        "sparse_projection",
        "spatial_rnn",
        "temporal_rnn",
    }
    assert {1, 30, 33} <= {c.H for c in CONFORMANCE}
    assert {c.activation for c in CONFORMANCE} == {"identity", "relu", "tanh", "sigmoid"}
    assert any(c.B == 1 for c in CONFORMANCE) and any(c.N == 1 for c in CONFORMANCE)
    for option in ("has_mask", "has_h0", "has_lengths", "K"):
        assert any(getattr(c, option) for c in CONFORMANCE)


@pytest.mark.parametrize("name", ["cap-small", "sweep-mask-h0", "gated-diamond", "project"])
def test_the_tolerance_catches_an_error_of_one_entry(name):
    """A gradient that lacks one sequence or one node is far outside the bound, in every dtype."""
    case = next(c for c in CONFORMANCE if c.name == name)
    for dtype in DTYPES:
        inputs = case.inputs(dtype=dtype)
        expected = Expected.of(case, inputs)
        good = case.results(sk, inputs)
        for key, value in good.items():
            wrong = value.clone()
            worst = value.abs().argmax()
            wrong.view(-1)[worst] = 0
            with pytest.raises(AssertionError, match="away from float64"):
                expected.check({key: wrong})
