"""The compiled backends: loads their libraries, keeps the reason if that fails."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def _load(module: str) -> str | None:
    """Loads a library of kernels into torch's dispatcher; why not, or None."""
    spec = find_spec(f"strnn_kernels.{module}")
    if spec is None or spec.origin is None:
        return f"strnn_kernels.{module} was not compiled when the package was installed"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return f"strnn_kernels.{module} does not load: {error}"
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    reason = _load("_C_cuda")
    if reason is None and torch.cuda.device_count() == 0:
        return "no CUDA device was found"
    return reason


CPU_UNAVAILABLE = _load("_C")
CUDA_UNAVAILABLE = _load_cuda()
