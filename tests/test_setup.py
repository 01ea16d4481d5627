"""What setup.py finds of CUDA, in the layouts that there are."""

from __future__ import annotations

import platform
import runpy
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

SETUP = Path(__file__).resolve().parents[1] / "setup.py"
TARGET = {"aarch64": "sbsa-linux"}.get(platform.machine(), f"{platform.machine()}-linux")


@pytest.fixture
def found(tmp_path, monkeypatch):
    """found(layout): the functions of setup.py beside a CUDA with its headers in that folder."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setenv("STRNN_CPU", "0")
    monkeypatch.setenv("STRNN_CUDA", "0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))

    def make(layout: str) -> dict:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "nvcc").write_text(
            "#!/bin/sh\necho Cuda tools, release 13.0, V13.0.1\n"
        )
        (tmp_path / "bin" / "nvcc").chmod(0o755)
        (tmp_path / layout).mkdir(parents=True)
        (tmp_path / layout / "cuda_runtime_api.h").touch()
        return runpy.run_path(str(SETUP))

    return make


@pytest.mark.parametrize("layout", ["include", f"targets/{TARGET}/include", "elsewhere"])
def test_headers_are_found_and_passed_on(found, tmp_path, monkeypatch, layout):
    if layout == "elsewhere":
        monkeypatch.setenv("CUDA_INC_PATH", str(tmp_path / layout))
    setup = found(layout)
    assert setup["why_no_cuda"]() is None
    extension = setup["cuda_extension"]()
    assert str(tmp_path / layout) in extension.include_dirs
    assert str(tmp_path / "targets" / TARGET / "lib") in extension.library_dirs


def test_what_is_missing_is_named(found, tmp_path):
    setup = found("targets/other-qnx/include")
    reason = setup["why_no_cuda"]()
    assert "cuda_runtime_api.h is in none of" in reason and str(tmp_path / "include") in reason
    (tmp_path / "bin" / "nvcc").unlink()
    assert setup["why_no_cuda"]() == "no nvcc was found (CUDA_HOME)"
