"""The Triton backend: fused kernels on NVIDIA and AMD GPUs with no compiler installed.

Nothing here imports triton before an op runs. Under ``TRITON_INTERPRET=1`` (set before Python
starts) the same kernels run in Triton's interpreter on the CPU, slowly, so that they can be tested
anywhere; CPU tensors then come here unless another backend is asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

import torch

#: Whether the kernels run in Triton's interpreter, on CPU tensors.
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cpu",) if IS_INTERPRETED else ("cuda",)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_OPS = {
    "sweep_fwd": "sweep",
    "sweep_bwd": "sweep",
    "gated_sweep_fwd": "gated_sweep",
    "gated_sweep_bwd": "gated_sweep",
    "sparse_projection_fwd": "sparse_projection",
    "sparse_projection_bwd": "sparse_projection",
}
_LIBRARIES: list[torch.library.Library] = []  # a Library that is dropped takes its kernels with it


def _why_not() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed (PyTorch for CUDA or ROCm brings it)"
    if IS_INTERPRETED or torch.cuda.is_available():
        return None
    return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"


def _check_memory(op: str, args: tuple) -> None:
    """A storage can be freed or cut under its tensors (FSDP does): a kernel would read past it."""
    for i, arg in enumerate(args):
        for t in arg if isinstance(arg, list) else (arg,):
            if not isinstance(t, torch.Tensor) or t.numel() == 0:
                continue
            last = sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
            if t.untyped_storage().nbytes() < (t.storage_offset() + last + 1) * t.itemsize:
                name = getattr(torch.ops.strnn_triton, op).default._schema.arguments[i].name
                message = f"the storage of {name} was freed or is too short for its elements"
                raise RuntimeError(f"strnn_triton: {message}")


def _register() -> None:
    """Announces the ops to the dispatcher; the first call imports their files, and triton."""
    library = torch.library.Library("strnn_triton", "IMPL")
    _LIBRARIES.append(library)
    for op, module in _OPS.items():

        def implementation(*args, op=op, module=module):
            _check_memory(op, args)
            return getattr(import_module(f"{__name__}.{module}"), op)(*args)

        library.impl(op, implementation, "CPU" if IS_INTERPRETED else "CUDA")


#: Why the backend cannot run on this machine, or None.
UNAVAILABLE = _why_not()
if UNAVAILABLE is None:
    _register()
