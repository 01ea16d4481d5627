"""The Triton backend runs on a GPU where there is one, otherwise in Triton's interpreter.

The interpreter has to be asked for before the package is imported, so on a machine without a GPU
these tests want a pytest of their own: ``pytest tests/triton``.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest
import torch

if not torch.cuda.is_available() and "strnn_kernels" not in sys.modules and find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"

import strnn_kernels as sk


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the backend takes its tensors."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def wanted_here(wanted, device):
    """wanted_here(x): of what tests/ptx executes compiled, CI's interpreter runs x alone."""
    return lambda is_in_ci: wanted(is_in_ci or device.type == "cuda")


@pytest.fixture
def triton_backend():
    """All ops run on the backend, unwritten memory holds NaN."""
    reason = sk.backends()["triton"]
    if reason:
        pytest.skip(f"backend triton: {reason}; run `pytest tests/triton` by itself")
    with sk.use_backend("triton"):
        yield


def _hasten_the_interpreter() -> None:
    """Four times as fast, at the same results.

    It patches Triton's language at every call of a function from a kernel, which the launch has
    done, and does sums of integers twice, which are far from 32 bits here.
    """
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction

    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(
        sanitize_overflow=False
    )

    def call(self, *args, **kwargs):
        languages = [m for m in self.fn.__globals__.values() if m is tl or m is tl.core]
        if any(tl.core.is_builtin(language.arange) for language in languages):
            return patching_call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    patching_call = InterpretedFunction.__call__
    InterpretedFunction.__call__ = call


if os.environ.get("TRITON_INTERPRET") == "1":
    _hasten_the_interpreter()


@pytest.fixture(autouse=True)
def _nan_filled_memory():
    was = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])
