"""The compiled backends: loads their libraries, keeps the reason if that fails."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

import torch


def _find(module: str) -> str | None:
    spec = find_spec(f"strnn_kernels.{module}")
    return None if spec is None else spec.origin


def _load(module: str) -> str | None:
    """Loads a library of kernels into torch's dispatcher; why not, or None."""
    path = _find(module)
    if path is None:
        return f"strnn_kernels.{module} was not compiled when the package was installed"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"strnn_kernels.{module} does not load: {error}"
    return None


def cpu_capability() -> str | None:
    """The instruction set in use, or why there is none; None without the CPU backend."""
    if CPU_UNAVAILABLE:
        return None
    function = ctypes.CDLL(_find("_C")).strnn_cpu_capability
    function.restype = ctypes.c_char_p
    return function().decode()


CPU_UNAVAILABLE = _load("_C")
