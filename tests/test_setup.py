"""What setup.py finds of CUDA, and what it does where a compiler refuses."""

from __future__ import annotations

import os
import platform
import runpy
import shutil
import subprocess
import sys
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


# A compiler that refuses, or is not there.

NAMES = ("setup.py", "pyproject.toml", "README.md", "csrc", "models", "strnn_kernels")

SAYS = """
    import sys
    # An editable install finds modules of the package wherever the package itself lies.
    sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
    import strnn_kernels as sk
    from strnn_kernels.info import info
    from strnn_kernels.topology import PLANNER_REASON
    print(sk.backends()["cpu"])
    print(info()["compiled"]["cpu kernels"])
    print(PLANNER_REASON)
    try:
        sk.use_backend("cpu").__enter__()
    except sk.BackendError as error:
        print(error)
"""


@pytest.fixture
def build(tmp_path):
    """build(compiler, **environment) of a copy of the sources, what an older build left in it."""
    for name in NAMES:
        if (SETUP.parent / name).is_dir():
            ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.reason.txt")
            shutil.copytree(SETUP.parent / name, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(SETUP.parent / name, tmp_path / name)
    old = tmp_path / "installed" / "strnn_kernels" / "_C.abi3.so"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an older build")

    def run(compiler: str | None, **environment: str):
        path = tmp_path / "compiler"
        if compiler:
            path.write_text(f"#!/bin/sh\n{compiler}\n")
            path.chmod(0o755)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("STRNN_")}
        return subprocess.run(
            [sys.executable, "setup.py", "build", "--build-lib", "installed"],
            cwd=tmp_path,
            env=inherited | {"CXX": str(path)} | environment,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    "compiler, reason",
    [
        ('case "$*" in *" -c "*) exit 1;; *) exec c++ "$@";; esac', "did not compile it"),
        (None, "no C++ compiler was found"),
    ],
)
def test_a_part_that_does_not_compile(compiler, reason, build, tmp_path, run_python):
    done = build(compiler)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert reason in done.stderr
    installed = tmp_path / "installed"
    assert not list(installed.rglob("*.so")), "the binary of an older build would be loaded"
    said = run_python(SAYS, cwd=installed, PYTHONPATH=str(installed))
    assert said.returncode == 0, said.stderr[-2000:]
    lines = said.stdout.splitlines()
    assert len(lines) == 4 and all(reason in line for line in lines), said.stdout


def test_a_part_that_is_demanded(build):
    done = build("exit 1", STRNN_CPU="1")
    assert done.returncode != 0


def test_a_part_that_is_not_wanted(build, tmp_path, run_python):
    done = build("exit 1", STRNN_CPU="0")
    assert done.returncode == 0, done.stderr[-2000:]
    note = tmp_path / "installed" / "strnn_kernels" / "_C.reason.txt"
    assert note.read_text() == "STRNN_CPU=0\n"
