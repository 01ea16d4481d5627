"""The backends, which of them work here, and the choice of one for a call.

A backend is a dispatcher namespace (``strnn_<name>``) that implements :data:`schema.OPS`, or, for
"reference", plain PyTorch. A backend that cannot run, or cannot take a call, says why; nothing
falls back in silence.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import native, triton


class BackendError(RuntimeError):
    """No backend accepts the call, or the one asked for does not exist or cannot run."""


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    Attributes:
        name: how users call it.
        devices: device types whose tensors it takes; None: all.
        dtypes: floating dtypes it takes; None: all.
        unavailable: why it cannot run on this machine; None: it can.
        order: the traversal order of the sweep programs it follows.
        has_tf32: whether it can make products of float32 of TF32, and so has to be told if it may.
            Asking torch takes 1 of the 14 us of a small call: other backends do without.
        gives_last: whether its ops give h_n and c_n, and take a weight for each direction. Else
            h_n and c_n are taken from h and c, and weights are stacked.
    """

    name: str
    devices: tuple[str, ...] | None
    dtypes: tuple[torch.dtype, ...] | None
    unavailable: str | None
    order: str = "levels"
    has_tf32: bool = False
    gives_last: bool = False

    @property
    def namespace(self) -> str:
        """The dispatcher namespace of its ops."""
        return f"strnn_{self.name}"

    def refusals(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Why it does not take tensors of this device and dtype; empty: it does.

        Tensors without data (meta) are taken by all: they ask for shapes alone.
        """
        if self.unavailable:
            return [self.unavailable]
        reasons = []
        if self.devices is not None and device.type not in (*self.devices, "meta"):
            reasons.append(f"takes {' or '.join(self.devices)} tensors, got {device.type}")
        if self.dtypes is not None and dtype not in self.dtypes:
            known = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            reasons.append(f"takes {known}, got {str(dtype).removeprefix('torch.')}")
        return reasons


#: Every backend, the fastest first.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cuda", ("cuda",), native.DTYPES, native.CUDA_UNAVAILABLE),
        Backend(
            "triton",
            triton.DEVICES,
            triton.DTYPES,
            triton.UNAVAILABLE,
            has_tf32=True,
            gives_last=True,
        ),
        Backend("cpu", ("cpu",), native.DTYPES, native.CPU_UNAVAILABLE, gives_last=True),
        Backend("reference", None, None, None),
    )
}


class _Requested(threading.local):
    """What use_backend asks for in this thread; unlike a ContextVar, dynamo can trace it."""

    name = ""


_requested = _Requested()
_chosen: dict[tuple[str, torch.device, torch.dtype], Backend] = {}


def backends() -> dict[str, str | None]:
    """Every backend by name, with why it cannot run on this machine, or None if it can."""
    return {name: BACKENDS[name].unavailable for name in ("reference", "cpu", "triton", "cuda")}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the context on the backend called name, or fail with its reason.

    Args:
        name: "reference", "cpu", "triton" or "cuda".

    Raises:
        BackendError: there is no such backend, or it cannot run here.
    """
    _available(name)
    before, _requested.name = _requested.name, name
    try:
        yield
    finally:
        _requested.name = before


def _available(name: str) -> Backend:
    backend = BACKENDS.get(name) if isinstance(name, str) else None
    if backend is None:
        raise BackendError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if backend.unavailable:
        raise BackendError(f"backend {name!r} cannot run here: {backend.unavailable}")
    return backend


def select(op: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend for a call: the one requested, or the fastest that accepts it.

    Args:
        op: the caller's name, for the error.
        device: where the tensors are.
        dtype: their dtype.

    Raises:
        BackendError: none accepts; one line per backend says why. "reference" is never chosen
            unless it is asked for, since it is much slower.
    """
    name = _requested.name or os.environ.get("STRNN_BACKEND", "")
    backend = _chosen.get((name, device, dtype))
    return _choose(op, name, device, dtype) if backend is None else backend


def _choose(op: str, name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    candidates = (
        [_available(name)] if name else [b for b in BACKENDS.values() if b.name != "reference"]
    )
    refusals = []
    for backend in candidates:
        reasons = backend.refusals(device, dtype)
        if not reasons:
            _chosen[name, device, dtype] = backend
            return backend
        refusals.append(f"  {backend.name}: {'; '.join(reasons)}")
    if not name:
        refusals.append('  reference: slow; ask for it with strnn_kernels.use_backend("reference")')
    raise BackendError("\n".join([f"{op}: no backend accepts this call", *refusals]))
