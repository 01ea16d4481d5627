"""Readers in a process of their own, whose memory and time are limited."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

# One thread, so that no pool takes address space later; the limit counts from what imports take.
_START = """
import resource, signal, sys
import torch, scipy.io, scipy.signal, sklearn.metrics, strnn_models.data
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin
torch.set_num_threads(1)
torch.fft.rfft(torch.zeros(8))
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
signal.alarm(int(sys.argv[2]))
"""


@pytest.fixture
def limited() -> Callable[..., str]:
    """Runs code with so many MiB more than after its imports, at most so many seconds."""

    def run(code: str, *arguments: object, mebibytes: int, seconds: int) -> str:
        command = [sys.executable, "-c", _START + code, str(mebibytes), str(seconds)]
        done = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    return run
