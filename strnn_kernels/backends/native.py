"""The compiled backends: loads their libraries, keeps the reason if that fails."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
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


#: Dtypes of the kernels in the order of csrc/common/dtype.h.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class BoundLayers:
    """Layers over time bound to where their weights lie, for calls past torch's dispatcher.

    Args:
        dtype: of the weights, and of all that a call brings; one of DTYPES.
        sizes: (L, D, C, H).
        cell: the code of the cell.
        weights: addresses of w_ih, w_hh, b_ih and b_hh, each direction of each layer in turn; None
            for a bias that is not there.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        sizes: tuple[int, int, int, int],
        cell: int,
        weights: Sequence[int | None],
    ) -> None:
        bind, run, unbind = _bound_functions()
        addresses = (ctypes.c_void_p * len(weights))(*weights)
        handle = bind(DTYPES.index(dtype), *sizes, cell, addresses)
        #: (B, T, addresses of x (B, T, C) and of the states h0 and c0, (L, B, D, H) or None, and of
        #: what is written: h (B, T, D, H), the last states (L, D, B, H) or None). Whether it ran.
        self.run = functools.partial(run, handle)
        weakref.finalize(self, unbind, handle)


@functools.cache
def _bound_functions():
    library = ctypes.CDLL(_find("_C"))
    size, address = ctypes.c_int64, ctypes.c_void_p
    bind, run, unbind = (
        getattr(library, f"strnn_cpu_{name}") for name in ("bind", "run_bound", "unbind")
    )
    bind.argtypes, bind.restype = [size] * 6 + [address], address
    run.argtypes, run.restype = [address, size, size] + [address] * 6, ctypes.c_bool
    unbind.argtypes, unbind.restype = [address], None
    return bind, run, unbind


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
