"""The compiled CUDA binary, without a GPU: it loads, its schemas fit, its kernels keep a budget.

Runs where _C_cuda was built (`make test-cuda-build`). `python tests/cuda/test_build.py` writes
budget.json anew from the binary at hand.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

BUDGET = Path(__file__).with_name("budget.json")
SPEC = find_spec("strnn_kernels._C_cuda")
BINARY = SPEC.origin if SPEC else None

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None or BINARY is None, reason="_C_cuda was not built here"
)


def cuobjdump():
    """The toolkit's tool, or the one that triton brings."""
    found = shutil.which("cuobjdump", path="/usr/local/cuda/bin") or shutil.which("cuobjdump")
    triton = find_spec("triton")
    if found is None and triton:
        found = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(found) if found and Path(found).exists() else None


def dump(option):
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump")
    text = subprocess.run([tool, option, BINARY], capture_output=True, text=True, check=True).stdout
    return subprocess.run(
        ["c++filt"], input=text, capture_output=True, text=True, check=True
    ).stdout


def short(name):
    """A kernel's name without namespaces, arguments and return type."""
    name = re.sub(r"strnn::cuda::|\(anonymous namespace\)::|\((?!anonymous).*$", "", name.strip())
    return name.removeprefix("void ")


@cache
def resources():
    """architecture -> kernel -> registers, bytes of stack."""
    found, architecture = {}, None
    pattern = re.compile(r"arch = sm_(\w+)|Function (.+):\n\s+REG:(\d+) STACK:(\d+)")
    for match in pattern.finditer(dump("--dump-resource-usage")):
        if match[1]:
            architecture = found.setdefault(f"sm_{match[1]}", {})
        else:
            architecture[short(match[2])] = {"registers": int(match[3]), "stack": int(match[4])}
    return found


@cache
def instructions():
    """(architecture, kernel) -> how often each opcode stands in it."""
    found, architecture, counts = {}, None, None
    pattern = re.compile(
        r"arch = sm_(\w+)|Function : (.+)|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?(\w+)", re.M
    )
    for match in pattern.finditer(dump("-sass")):
        if match[1]:
            architecture = f"sm_{match[1]}"
        elif match[2]:
            counts = found.setdefault((architecture, short(match[2])), Counter())
        else:
            counts[match[3]] += 1
    return found


def test_loads_and_says_why_it_cannot_run():
    from strnn_kernels.backends import native

    assert native.CUDA_UNAVAILABLE in (None, "no CUDA device was found")
    assert native.cuda_architectures()


def test_schemas_fit():
    from strnn_kernels import registration
    from strnn_kernels.backends import BACKENDS
    from strnn_kernels.schema import OPS

    if BACKENDS["cuda"].unavailable:
        registration._register(BACKENDS["cuda"])
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert all(has_kernel(f"strnn_cuda::{op.name}", "CUDA") for op in OPS)


def test_stays_within_the_budget():
    """No kernel uses more registers than was agreed, none has a stack, none is unknown."""
    budget = json.loads(BUDGET.read_text())
    for architecture, kernels in resources().items():
        allowed = budget[architecture]
        for name, used in kernels.items():
            assert used["stack"] == 0, f"{architecture} {name}: {used['stack']} bytes of stack"
            assert used["registers"] <= allowed[name], (
                f"{architecture} {name}: {used['registers']} registers, budget {allowed[name]}"
            )


def test_no_local_and_no_generic_memory():
    """No spills (LDL, STL), and every pointer's memory is known when it is compiled (no LD, ST)."""
    for (architecture, name), counts in instructions().items():
        assert counts["EXIT"], f"{architecture} {name}: no instructions were read"
        slow = {op: counts[op] for op in ("LDL", "STL", "LD", "ST") if counts[op]}
        assert not slow, f"{architecture} {name}: {slow}"


def expected_mma(name, architecture):
    """How many mma.sync may stand in a kernel: those of one product, no more by unrolling."""
    name, *arguments = re.findall(r"\w+", name)
    if name.endswith("_cluster_kernel"):  # 4 for each block of k of a warp; none before sm_90
        return (0 if architecture == "sm_80" else 4 * int(arguments[-1]),)
    if not name.endswith("_tensor_kernel"):
        return (0,)
    if name.startswith("sweep_gated"):
        gates = 4 if "LstmCell" in arguments else 3
        return (2 * gates * int(arguments[-1]),)
    own, steps = map(int, arguments[1:3])
    product = 2 * own * steps
    rows = 1 if steps > 8 else 4 // own  # that the projection tells apart
    projection = 2 * own * rows if arguments[3] == "true" else 0
    if name.startswith("sweep_forward"):
        # And units of x: the first, three at a time and one or two that are left, or one by one.
        units_x = 2 if arguments[3] == "true" or own > 2 else 6
        return (product + 2 * own * units_x + projection,)
    # And dw_hh, and dw_ih of one unit.
    return ((2 * product + 2 * own if steps <= 8 else product) + projection,)


def test_products_are_on_the_tensor_core():
    for (architecture, name), counts in instructions().items():
        expected = expected_mma(name, architecture)
        assert counts["HMMA"] in expected, f"{architecture} {name}: {counts['HMMA']}"


def test_barriers_of_a_cluster():
    """One at the start, with its fences that empty the cache; a chunk has none."""
    for (architecture, name), counts in instructions().items():
        if "_cluster_kernel" in name and architecture != "sm_80":
            found = {op: counts[op] for op in ("UCGABAR_WAIT", "CCTL", "MEMBAR")}
            # The compiler's own fence of the CTA stands behind the mbarriers' beginning.
            assert found == {"UCGABAR_WAIT": 1, "CCTL": 1, "MEMBAR": 2}, f"{architecture} {name}"


if __name__ == "__main__":
    found = {
        architecture: {name: used["registers"] for name, used in sorted(kernels.items())}
        for architecture, kernels in sorted(resources().items())
    }
    BUDGET.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0)
