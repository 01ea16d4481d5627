"""What every test starts from: fixed seeds, one thread, and empty memory that is NaN."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import strnn_kernels as sk

# Or deterministic mode warns of every product on a GPU, and a warning is an error here.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Empty tensors, also those that C++ allocates, are filled with NaN: an unwritten output shows.
torch.use_deterministic_algorithms(True, warn_only=True)


def pytest_addoption(parser):
    """Everything, not the choice that CI runs."""
    parser.addoption(
        "--exhaustive", action="store_true", help="all that a test has, not the choice that CI runs"
    )


@pytest.fixture(scope="session")
def is_exhaustive(request) -> bool:
    """Whether everything is to be run."""
    return request.config.getoption("--exhaustive")


@pytest.fixture
def wanted(is_exhaustive):
    """wanted(x): skips what is left out of CI, where x is false."""

    def check(is_in_ci: bool) -> None:
        if not (is_in_ci or is_exhaustive):
            pytest.skip("left out; --exhaustive runs it")

    return check


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    monkeypatch.delenv("STRNN_BACKEND", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for processes that a test starts
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def randn():
    """randn(*shape, scale=1, grad=True): a float64 leaf."""
    make = torch.Generator().manual_seed(1)

    def draw(*shape, scale=1.0, grad=True):
        t = torch.randn(*shape, generator=make, dtype=torch.float64) * scale
        return t.requires_grad_(grad)

    return draw


@pytest.fixture
def gradients():
    """gradients(y, leaves): those of a fixed random cotangent; an unused leaf has zeros."""

    def of(y, leaves, seed=2):
        make = torch.Generator().manual_seed(seed)
        dy = torch.randn(y.shape, generator=make, dtype=torch.float64).to(y.dtype)
        return torch.autograd.grad(y, leaves, dy, allow_unused=True, materialize_grads=True)

    return of


@pytest.fixture
def agree(gradients):
    """agree(call, *inputs): call(module, *inputs) is the same on the CPU backend and the reference.

    Compares the output and the gradients of all inputs that require one, in float64.
    """

    def check(call, *inputs, tolerance=1e-11):
        found = []
        for module, backend in ((sk, "cpu"), (sk.reference, "reference")):
            copies = [
                t.detach().clone().requires_grad_(t.requires_grad)
                if isinstance(t, torch.Tensor)
                else t
                for t in inputs
            ]
            leaves = [t for t in copies if isinstance(t, torch.Tensor) and t.requires_grad]
            with sk.use_backend(backend):
                y = call(module, *copies)
                found.append([y, *gradients(y, leaves)])
        assert found[0][0].isfinite().all()
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    return check


@pytest.fixture
def run_python():
    """run_python(code, cwd=None, **environment): a fresh interpreter, run to its end."""

    def run(code, *, cwd=None, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("STRNN_")}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=cwd,
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run
