"""The CUDA backend on a GPU; without one, all of this is skipped and tests/ptx stands in."""

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import testing

pytestmark = pytest.mark.skipif(
    sk.backends()["cuda"] is not None, reason=f"cuda: {sk.backends()['cuda']}"
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", testing.CONFORMANCE, ids=str)
def test_matches_reference(case, dtype):
    case = case.smooth() if dtype.itemsize == 2 else case
    inputs = case.inputs(dtype=dtype)
    expected = testing.Expected.of(case, inputs)
    moved = {name: value.cuda() for name, value in inputs.items()}
    with sk.use_backend("cuda"):
        actual = case.results(sk, moved)
    expected.check({name: value.cpu() for name, value in actual.items()}, "cuda")


@pytest.mark.parametrize("case", testing.CONFORMANCE[:12], ids=str)
def test_is_repeatable(case):
    moved = {name: value.cuda() for name, value in case.inputs().items()}
    with sk.use_backend("cuda"):
        first, second = case.results(sk, moved), case.results(sk, moved)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["cap-small", "chain-wide", "gated-corner"])
def test_is_capturable_on_any_stream(name):
    """A CUDA graph replays the forward of new inputs."""
    case = testing.find(name)
    moved = {n: v.cuda() for n, v in case.inputs().items()}
    call = case.bind(sk, moved)
    with sk.use_backend("cuda"), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        for n, v in case.inputs(seed=1).items():
            if v.is_floating_point():
                moved[n].copy_(v)
        graph.replay()
        assert torch.equal(captured, call())
