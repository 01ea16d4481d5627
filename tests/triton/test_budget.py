"""Every kernel compiles for every architecture, within its budget."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import strnn_kernels as sk

tl = pytest.importorskip("triton.language")
triton = pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("aot.py")
#: The package under test, which need not be the one beside the tests.
PACKAGE = Path(sk.__file__).parent
#: AMD's are compiled by Triton 3.9.
ARCHITECTURES = ["80", "90", "100"]
if triton.__version__ == "3.9.0":
    ARCHITECTURES += ["gfx90a", "gfx942", "gfx950", "gfx1100"]
#: One of each maker: they take a minute or more each, and the sources are the same. NVIDIA's by the
#: Triton that the CUDA build of torch brings; the newest one's code is executed in tests/ptx.
IN_CI = ("gfx942",) if triton.__version__ == "3.9.0" else ("90",)


@pytest.fixture(scope="module")
def aot():
    """The script as a module, for its rules."""
    spec = importlib.util.spec_from_file_location("aot", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["aot"] = module
    spec.loader.exec_module(module)
    return module


def run(arguments: list[str]) -> str:
    """Of Python without the interpreter: with it on, nothing can be compiled. No warning passes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(PACKAGE.parent), str(SCRIPT.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def budget(aot) -> dict:
    """Of the installed Triton; empty for a version that was never measured."""
    return json.loads(aot.BUDGET.read_text()).get(aot.triton.__version__, {})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_within_budget(architecture: str, aot, wanted) -> None:
    wanted(architecture in IN_CI)
    found = json.loads(run([str(SCRIPT), architecture]))
    assert found
    assert not aot.violations(found, budget(aot)), "rewrite with `python aot.py --write` if meant"


def test_more_than_the_budget_fails(aot) -> None:
    found = budget(aot)
    if not found:
        pytest.skip(f"no budget for triton {aot.triton.__version__}")
    assert not aot.violations(found, found)
    name = next(name for name in found if "bf16" in name)
    for count in aot.COUNTS:
        worse = copy.deepcopy(found)
        worse[name]["90"][count] += 1
        assert aot.violations(worse, found), count
    worse = copy.deepcopy(found)
    worse[name]["90"]["tensor_core"] = False
    assert aot.violations(worse, found)
    assert aot.violations({"a new kernel": found[name]}, found)


def test_the_compiler_reads_every_case(wanted) -> None:
    """Types and shapes of what loops carry, say, which the interpreter does not look at."""
    wanted(triton.__version__ != "3.9.0")  # it compiles them in tests/ptx
    assert int(run(["-c", "import aot; print(aot.read_cases())"])) > 100


@pytest.mark.parametrize("K", [8, 80])
def test_elements_beyond_32_bits_are_numbered_in_64(K: int, aot) -> None:
    """Gradients of projected rows, here larger than the states."""
    launches: list = []
    B, D, H, chain = 2**20, 2, 16, aot.Topology.chain(2)
    with aot.recorded(launches):
        aot.call("sweep_bwd", chain, B, H, torch.float32, K=K, has_ds=True)
    assert launches[0][2]["INDEX"] == (tl.int64 if B * D * K * H >= 2**31 else tl.int32)


def test_sizes_compile_nothing() -> None:
    """B, N and T are arguments that the compiler does not look at: the same kernels for all.

    Forward the sweep, backward the sweep and the gradient of its weights.
    """
    assert run(["-c", "import aot; print(aot.kernels_for_sizes())"]).split() == ["1", "2"]
