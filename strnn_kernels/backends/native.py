"""The compiled backends: loads their libraries, keeps the reason if that fails."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

import torch

from strnn_kernels.parts import why_missing


def _find(module: str) -> str | None:
    spec = find_spec(f"strnn_kernels.{module}")
    return None if spec is None else spec.origin


def _load(module: str) -> str | None:
    """Loads a library of kernels into torch's dispatcher; why not, or None."""
    path = _find(module)
    if path is None:
        return why_missing(module)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"strnn_kernels.{module} does not load: {error}"
    return None


def _text(module: str, name: str) -> str:
    """What a function of a library of kernels says."""
    function = getattr(ctypes.CDLL(_find(module)), name)
    function.restype = ctypes.c_char_p
    return function().decode()


def cpu_capability() -> str | None:
    """The instruction set in use, or why there is none; None without the CPU backend."""
    if CPU_UNAVAILABLE:
        return None
    return _text("_C", "strnn_cpu_capability")


def cpu_capabilities() -> str | None:
    """The instruction sets that were compiled, the widest first; None without the CPU backend."""
    if CPU_UNAVAILABLE:
        return None
    return _text("_C", "strnn_cpu_capabilities")


def cuda_architectures() -> str | None:
    """What _C_cuda was compiled for, as TORCH_CUDA_ARCH_LIST; None if it is not loaded."""
    if not _IS_CUDA_LOADED:
        return None
    return _text("_C_cuda", "strnn_cuda_architectures")


def _why_no_cuda() -> str | None:
    if torch.version.hip:
        return f"torch {torch.__version__} is a build for ROCm: triton runs on AMD's GPUs"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    reason = _load("_C_cuda")
    if reason is None and torch.cuda.device_count() == 0:
        return _NO_DEVICE
    return reason


_NO_DEVICE = "no CUDA device was found"
CPU_UNAVAILABLE = _load("_C")
CUDA_UNAVAILABLE = _why_no_cuda()
_IS_CUDA_LOADED = CUDA_UNAVAILABLE in (None, _NO_DEVICE)
