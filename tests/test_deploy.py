"""A package of AOTInductor in a C++ process: libtorch and the library of the CPU ops, no Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from strnn_models import STRNN
from torch.utils import cpp_extension

import strnn_kernels as sk
from strnn_kernels.schema import OPS

SOURCE = Path(__file__).resolve().parents[1] / "docs/run_package.cpp"
CXX = os.environ.get("CXX", "c++")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program of the documents, built as they say."""
    if sk.backends()["cpu"] is not None:
        pytest.skip(sk.backends()["cpu"])
    if shutil.which(CXX) is None:
        pytest.skip(f"no C++ compiler ({CXX})")
    built = tmp_path_factory.mktemp("program") / "run_package"
    command = [CXX, "-std=c++20", str(SOURCE), "-o", str(built)]
    command += [f"-I{path}" for path in cpp_extension.include_paths("cpu")]
    for path in cpp_extension.library_paths("cpu"):
        command += [f"-L{path}", f"-Wl,-rpath,{path}"]
    command += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


@pytest.mark.filterwarnings("ignore")  # torch's own, in what it compiles with
@pytest.mark.parametrize("name", ["gru", "strnn"])
def test_a_package_runs_without_python(program, tmp_path, name, wanted):
    wanted(name == "gru")
    torch.manual_seed(0)
    if name == "gru":
        model, x = sk.GRU(5, 8, bidirectional=True, batch_first=True), torch.randn(3, 7, 5)
        sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("time", min=2, max=64)}
        unseen = torch.randn(5, 11, 5)
    else:
        model = STRNN(in_channels=3, sample_length=4, topology=sk.Topology.grid(3, 5))
        x, unseen = torch.randn(3, 4, 15, 3), torch.randn(2, 4, 15, 3)
        sizes = {0: torch.export.Dim("batch", max=64)}
    with torch.no_grad():
        exported = torch.export.export(model.eval(), (x,), dynamic_shapes=(sizes,))
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        expected = model(unseen)[0] if name == "gru" else model(unseen)
    schemas, given, found = (tmp_path / file for file in ("schemas.txt", "x.bin", "y.bin"))
    schemas.write_text("\n".join(op.name + op.signature for op in OPS))
    given.write_bytes(unseen.numpy().tobytes())
    command = [program, find_spec("strnn_kernels._C").origin, schemas, package, given, found]
    done = subprocess.run(
        [*map(str, command), *map(str, unseen.shape)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    y = torch.frombuffer(bytearray(found.read_bytes()), dtype=torch.float32).view(expected.shape)
    torch.testing.assert_close(y, expected)


def test_the_program_says_what_is_missing(program, tmp_path):
    schemas = tmp_path / "schemas.txt"
    for library in ("nothing.so", None):
        if library:
            schemas.write_text("")
        else:
            schemas.unlink()
        command = [str(program), str(tmp_path / "nothing.so"), str(schemas), "p", "x", "y", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert ("nothing.so" if library else "schemas.txt: cannot be read") in done.stderr
