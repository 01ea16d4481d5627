"""The package imports without triton, and imports no kernel before one runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import strnn_kernels as sk

PACKAGE = Path(sk.__file__).parent


def run(code: str, **environment: str) -> str:
    """Of a fresh Python without the interpreter's switch."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    inherited["PYTHONPATH"] = os.pathsep.join(
        [str(PACKAGE.parent), inherited.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_not_imported_until_asked_for() -> None:
    """Torch may import triton for itself; the kernels are what would need it."""
    code = "import sys, strnn_kernels; print('strnn_kernels.backends.triton.tile' in sys.modules)"
    assert run(code) == "False"
    assert run(code, TRITON_INTERPRET="1") == "False"


def test_absent() -> None:
    code = "import sys; sys.modules['triton'] = None; import strnn_kernels as sk;"
    code += "print(sk.backends()['triton'])"
    assert run(code).startswith("triton is not installed")


def test_no_gpu() -> None:
    code = "import torch; torch.cuda.is_available = lambda: False; import strnn_kernels as sk;"
    code += "print(sk.backends()['triton'])"
    assert run(code).startswith("torch sees no GPU")
