"""The emulator sees bugs planted in the package's kernels: each of these changes must be caught."""

import shutil

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import testing

DISPATCH = """    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(__nv_bfloat16{});
    case Dtype::kFloat16:
      return f(__half{});
"""
#: name -> file, text, what it becomes, the case that shows it, part of the report (None: wrong
#: numbers).
MUTATIONS = {
    "barrier-before-product": (
        "sweep_kernel.cuh",
        "    cp_async_wait<1>();  // the newest group is the next chunk's\n    __syncthreads();\n",
        "    cp_async_wait<1>();\n",
        "corner-mask",
        "RACE",
    ),
    "barrier-after-product": (
        "sweep_kernel.cuh",
        "    __syncthreads();\n    after(now);\n",
        "    after(now);\n",
        "corner-mask",
        "RACE",
    ),
    "wait-off-by-one": (
        "sweep_kernel.cuh",
        "cp_async_wait<1>()",
        "cp_async_wait<2>()",
        "corner-mask",
        "copy under way",
    ),
    "copies-never-waited-for": (
        "sweep_kernel.cuh",
        "  cp_async_wait<0>();\n",
        "",
        "corner-mask",
        "never waited for",
    ),
    "wrong-index-of-a-weight": (
        "sweep_kernel.cuh",
        "acc[q] += wk[i] * s.v[i];",
        "acc[q] += wk[i] * s.v[i ^ 1];",
        "corner-4x3-states",
        None,
    ),
    "tail-of-the-batch-is-read": (
        "sweep_kernel.cuh",
        "      if (r >= tile_rows) continue;\n",
        "",
        "corner-mask",
        "BOUNDS",
    ),
    "tail-of-the-batch-is-written": (
        "sweep_kernel.cuh",
        "if (first + q < items && r < tile_rows)\n",
        "if (first + q < items)\n",
        "corner-mask",
        "BOUNDS",
    ),
    "slot-of-a-node-without-successors": (
        "sweep_forward.cu",
        "if (tile.has_successors(i)) tile.slot",
        "if (true) tile.slot",
        "line-3x5",
        "RACE",
    ),
    "barrier-of-a-sum": (
        "gemm.cuh",
        "    __syncthreads();\n  }\n",
        "  }\n",
        "corner-mask",
        "RACE",
    ),
    "partial-sum-left-out": (
        "gemm.cuh",
        "part < r.parts; ++part",
        "part + 1 < r.parts; ++part",
        "corner-4x3-states",
        None,
    ),
}
MUTATIONS |= {
    "warp-without-sync": (
        "sweep_forward_warp.cu",
        "    __syncwarp();\n    // Every lane is done",
        "    // Every lane is done",
        "corner-mask",
        "RACE",
    ),
    "warp-wait-off-by-one": (
        "sweep_backward_warp.cu",
        "cp_async_wait<kWarpRing - 2 * kWarpNodes>()",
        "cp_async_wait<kWarpRing - 2 * kWarpNodes + 1>()",
        "corner-mask",
        "copy under way",
    ),
    "warp-copies-too-early": (
        "sweep_forward_warp.cu",
        "stage(i + kWarpRing - kWarpNodes + q)",
        "stage(i + kWarpRing - kWarpNodes + 2 + q)",
        "corner-mask",
        "RACE|BOUNDS",
    ),
    "warp-wrong-index-of-a-weight": (
        "sweep_warp.cuh",
        "odd += w[k + 3] * q.v[3];",
        "odd += w[k + 2] * q.v[3];",
        "corner-mask",
        None,
    ),
    "warp-lane-beyond-the-width": (
        "sweep_forward_warp.cu",
        "if (a.h && lane < H)",
        "if (a.h)",
        "corner-mask",
        "RACE|BOUNDS",
    ),
    "warp-row-beyond-the-batch": (
        "sweep_forward_warp.cu",
        "if (b >= a.B) return;",
        "",
        "corner-mask",
        "BOUNDS",
    ),
    "barrier-between-warps": (
        "sweep_backward_warp.cu",
        "    __syncthreads();\n  }\n",
        "  }\n",
        "corner-mask",
        "RACE",
    ),
}
#: Two multiprocessors, so that a tile has several rows and the last one a tail.
DEVICE = (80, 2, 48 * 1024, 48 * 1024)


def mutate(folder, file, text, becomes):
    path = folder / "cuda" / file
    source = path.read_text()
    assert source.count(text) == 1, f"{file} must have exactly once: {text}"
    path.write_text(source.replace(text, becomes))


@pytest.fixture
def sources(harness, tmp_path):
    for part in ("cuda", "common"):
        shutil.copytree(harness.ROOT / "csrc" / part, tmp_path / part)
    return tmp_path


def run(harness, switch, sources, name, is_warp):
    """The case with the sources as they are: float32 for the warp family, float64 for the other.

    Only that dtype is compiled: a mutant costs seconds.
    """
    kind = "float" if is_warp else "double"
    mutate(sources, "storage.cuh", DISPATCH, f"    default:\n      return f({kind}{{}});\n")
    case = testing.find(name)
    inputs = case.inputs(dtype=torch.float32 if is_warp else torch.float64)
    expected = testing.Expected.of(case, inputs)
    emulated = harness.Emulated(harness.build("race", sources / "cuda"), DEVICE, seed=2)
    with switch.running(emulated):
        expected.check(case.results(sk, inputs), "mutant")


@pytest.mark.parametrize("is_warp", [False, True], ids=["general", "warp"])
@pytest.mark.parametrize("name", sorted({m[3] for m in MUTATIONS.values()}))
def test_unchanged_passes(name, is_warp, harness, switch, sources):
    run(harness, switch, sources, name, is_warp)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_is_caught(mutation, harness, switch, sources):
    file, text, becomes, case, report = MUTATIONS[mutation]
    mutate(sources, file, text, becomes)
    with pytest.raises(AssertionError if report is None else RuntimeError, match=report):
        run(harness, switch, sources, case, "warp" in mutation)
