"""The Triton backend: fused kernels on NVIDIA GPUs with no compiler installed.

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
        return "triton is not installed (PyTorch for CUDA brings it)"
    if IS_INTERPRETED or torch.cuda.is_available():
        return None
    return "no NVIDIA GPU is visible (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"


def _register() -> None:
    """Announces the ops to the dispatcher; the first call imports their files, and triton."""
    library = torch.library.Library("strnn_triton", "IMPL")
    _LIBRARIES.append(library)
    for op, module in _OPS.items():

        def implementation(*args, op=op, module=module):
            return getattr(import_module(f"{__name__}.{module}"), op)(*args)

        library.impl(op, implementation, "CPU" if IS_INTERPRETED else "CUDA")


#: Why the backend cannot run on this machine, or None.
UNAVAILABLE = _why_not()
if UNAVAILABLE is None:
    _register()
