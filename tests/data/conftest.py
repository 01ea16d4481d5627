"""Readers in a process of their own, whose memory and time are limited."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

#: What readers import: once, by the process that those of the calls are forked from.
_IMPORTED = ("scipy.io", "scipy.signal", "sklearn.metrics", "strnn_models.data")
_IMPORTED += tuple(f"PIL.{kind}ImagePlugin" for kind in ("Bmp", "Gif", "Jpeg", "Png"))


def _execute(code: str, mebibytes: int, seconds: int, arguments: list[str], out: Path) -> None:
    file = out.open("w")
    os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    sys.argv = ["-c", *arguments]
    # One thread, so that no pool takes address space later; limits count from what imports take.
    torch.set_num_threads(1)
    torch.fft.rfft(torch.zeros(8))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.alarm(seconds)
    exec(compile(code, "-c", "exec"), {"__name__": "limited", "sys": sys})


@pytest.fixture
def limited(tmp_path_factory) -> Callable[..., str]:
    """Runs code with so many MiB more than after its imports, at most so many seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_IMPORTED])

    def run(code: str, *arguments: object, mebibytes: int, seconds: int) -> str:
        out = tmp_path_factory.mktemp("limited") / "out"
        given = (code, mebibytes, seconds, [str(a) for a in arguments], out)
        process = context.Process(target=_execute, args=given)
        process.start()
        process.join()
        assert process.exitcode == 0, out.read_text()[-8000:]
        return out.read_text()

    return run
