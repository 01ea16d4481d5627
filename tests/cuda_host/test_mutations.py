"""The emulator sees bugs planted in the package's kernels: each of these changes must be caught."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

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
        "    __syncthreads();\n  }\n  Out* out = static_cast<Out*>(g.out.data) + part ",
        "  }\n  Out* out = static_cast<Out*>(g.out.data) + part ",
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
    "warp-barrier-of-the-sum": (
        "sweep_backward_warp.cu",
        "    __syncthreads();\n  }\n",
        "  }\n",
        "corner-mask",
        "RACE",
    ),
}
MUTATIONS |= {
    "tensor-wrong-fragment": (
        "mma.cuh",
        "{{a.w[0], b.w[0], a.w[1], b.w[1]}}",
        "{{a.w[0], b.w[0], b.w[1], a.w[1]}}",
        "sweep-mask-h0",
        None,
    ),
    "tensor-wrong-row-of-a-weight": (
        "mma.cuh",
        "return 4 * (g / 2) + 2 * t + g % 2;",
        "return 4 * (g / 2) + 2 * t + 1 - g % 2;",
        "sweep-mask-h0",
        None,
    ),
    "tensor-wrong-item-of-a-sum": (
        "mma.cuh",
        "(lane % 16 >> shift)",
        "((lane ^ 1) % 16 >> shift)",
        "chain-causal",
        None,
    ),
    "tensor-barrier": (
        "sweep_tensor.cuh",
        "      sync();\n      const unsigned last",
        "      const unsigned last",
        "sweep-mask-h0",
        "RACE",
    ),
    "tensor-barrier-of-a-sum": (
        "gemm.cuh",
        "    a.store(tile_a), b.store(tile_b);\n    __syncthreads();\n",
        "    a.store(tile_a), b.store(tile_b);\n",
        "chain-causal",
        "RACE",
    ),
    "tensor-exchange-of-one-half": (
        "sweep_tensor.cuh",
        "      parity ^= 1;\n",
        "",
        "sweep-mask-h0",
        "RACE",
    ),
    "tensor-slots-without-sync": (
        "sweep_tensor.cuh",
        "      __syncwarp();  // the slots are there\n",
        "",
        "corner-4x3-states",
        "RACE",
    ),
    "tensor-wait-off-by-one": (
        "sweep_tensor.cuh",
        "cp_async_wait<kTensorRing - 2>()",
        "cp_async_wait<kTensorRing - 1>()",
        "chain-causal",
        "copy under way",
    ),
    "tensor-copies-too-early": (
        "sweep_tensor.cuh",
        "stage_ahead(last, late);",
        "stage_ahead(at, late);",
        "chain-causal",
        "RACE|copy under way",
    ),
    "tensor-copies-never-waited-for": (
        "sweep_tensor.cuh",
        "    cp_async_wait<0>();\n",
        "",
        "chain-causal",
        "never waited for",
    ),
    "tensor-tail-of-the-batch": (
        "sweep_tensor.cuh",
        "keep(row_of(half) < tile_rows ? a.H - column(0) : 0)",
        "keep(a.H - column(0))",
        "chain-causal",
        "BOUNDS",
    ),
    "tensor-items-beyond-the-chunk": (
        "sweep_tensor.cuh",
        "item.columns = item.is_there ? columns[half] : 0;",
        "item.columns = columns[half];",
        "chain-causal",
        "RACE",
    ),
    "tensor-column-beyond-the-width": (
        "sweep_tensor.cuh",
        "      if (e < valid) to[e] = from_acc<S>(v[e]);",
        "      if (e <= valid) to[e] = from_acc<S>(v[e]);",
        "sweep-mask-h0",
        "RACE|BOUNDS",
    ),
    "tensor-slot-of-a-node-without-successors": (
        "sweep_forward_tensor.cu",
        "if (item.is_there && item.slot != kNoSlot)",
        "if (item.is_there)",
        "sweep-mask-h0",
        "BOUNDS",
    ),
}
MUTATIONS |= {
    "tensor-predecessors-of-an-item-beyond-the-chunk": (
        "sweep_tensor.cuh",
        "item.is_there ? r.z : no_preds",
        "r.z",
        "corner-4x3-states",
        None,
    ),
    "tensor-wrong-predecessor": (
        "sweep_tensor.cuh",
        "state_in(item.pred[2], half, own)",
        "state_in(item.pred[1], half, own)",
        "corner-4x3-states",
        None,
    ),
    "tensor-wrong-word-of-an-input-weight": (
        "mma.cuh",
        "from = lane - q + 2 * s + q / 2;",
        "from = lane - q + 2 * s + q % 2;",
        "corner-4x3-states",
        None,
    ),
    "tensor-no-column-of-ones": (
        "sweep_backward_tensor.cu",
        "  if (f.dw_ih) tile.add_ones();\n",
        "",
        "corner-4x3-states",
        None,
    ),
    "tensor-copies-over-the-ones": (
        "sweep_tensor.cuh",
        "copy_piece(to + column, from + column, columns_x - column, a.alignment_x);",
        "copy_piece(to + column, from + column, kPiece, a.alignment_x);",
        "corner-4x3-states",
        "BOUNDS",
    ),
    "tensor-most-predecessors-of-the-first-node": (
        "sweep_tensor.cuh",
        "most = max(most, pred_ptr[i + 1] - pred_ptr[i]);",
        "most = i == begin ? pred_ptr[i + 1] - pred_ptr[i] : most;",
        "corner-4x3-states",
        None,
    ),
    "tensor-no-zeros-for-no-predecessor": (
        "sweep_tensor.cuh",
        "    set_to_zero(slots + no_pred() * kLd, rows * kLd);\n",
        "",
        "corner-4x3-states",
        "UNWRITTEN",
    ),
    "tensor-ring-without-zeros": (
        "sweep_tensor.cuh",
        "    set_to_zero(ring, a.layout.ring);\n",
        "",
        "sweep-mask-h0",
        "UNWRITTEN",
    ),
    "tensor-late-inputs-into-another-stage": (
        "sweep_tensor.cuh",
        "      store_x(last, late);\n",
        "      store_x(at, late);\n",
        "corner-4x3-states",
        "RACE",
    ),
    "projection-of-another-row": (
        "sweep_tensor.cuh",
        "row_of(0) != r) low",
        "row_of(0) == r) low",
        "corner-4x3-states",
        None,
    ),
    "projection-beyond-the-nodes": (
        "sweep_tensor.cuh",
        "e < (N + kUnit - 1) * kTensorMaxK;",
        "e < N * kTensorMaxK;",
        "corner-4x3-states",
        "UNWRITTEN",
    ),
    "tf32-wrong-fragment": (
        "mma.cuh",
        "x.r[2 * e] = rounded(a.w[e]), x.r[2 * e + 1] = rounded(b.w[e]);",
        "x.r[e] = rounded(a.w[e]), x.r[e + 4] = rounded(b.w[e]);",
        "sweep-mask-h0",
        None,
    ),
    "tf32-wrong-item-of-a-sum": (
        "mma.cuh",
        "(8 * j + q + 4 * s) >> shift",
        "(8 * j + q + 4 * (1 - s)) >> shift",
        "sweep-mask-h0",
        None,
    ),
    "tf32-wrong-row-of-a-transposed-weight": (
        "mma.cuh",
        "return own % 2 ? b : a;",
        "return own % 2 ? a : b;",
        "sweep-mask-h0",
        None,
    ),
}
MUTATIONS |= {
    "cluster-barrier": (
        "sweep_cluster.cuh",
        """    cluster_arrive();
    const Chunk next = tile.after(now);
    tile.stage(next, half ^ 1);
    cluster_wait();
""",
        """    const Chunk next = tile.after(now);
    tile.stage(next, half ^ 1);
""",
        "chain-causal",
        "RACE",
    ),
    "cluster-barrier-at-the-start": (
        "sweep_cluster.cuh",
        """  cluster_arrive();
  cluster_wait();  // all CTAs""",
        "  // all CTAs",
        "chain-causal",
        "may not have started",
    ),
    "cluster-barrier-before-the-exit": (
        "sweep_cluster.cuh",
        "  cp_async_wait<0>();\n",
        "  cp_async_wait<0>();\n"
        "  store_cluster(tile.sums, (tile.rank + 1) % tile.size, uint2{0, 0});\n",
        "chain-causal",
        "may exit before|has exited|that exited",
    ),
    "cluster-wrong-rank": (
        "sweep_cluster.cuh",
        "(rank + p) & (size - 1), bits",
        "rank, bits",
        "chain-causal",
        None,
    ),
    "cluster-one-copy-of-the-sums": (
        "sweep_cluster.cuh",
        "sums + ((half * a.nodes + i - c.begin)",
        "sums + ((i - c.begin)",
        "chain-causal",
        "RACE|UNWRITTEN",
    ),
    "cluster-barrier-of-a-cta": (
        "sweep_cluster.cuh",
        "      __syncthreads();\n      if (tile.is_live)",
        "      if (tile.is_live)",
        "chain-causal",
        "RACE|UNWRITTEN",
    ),
    "cluster-one-copy-of-the-parts": (
        "sweep_cluster.cuh",
        "      turn ^= 1;\n",
        "",
        "corner-mask",
        "RACE",
    ),
    "cluster-wrong-fragment": (
        "sweep_cluster.cuh",
        "lane / 8 % 2 * 8;",
        "lane / 8 % 2 * 0;",
        "chain-causal",
        None,
    ),
    "cluster-row-beyond-the-batch": (
        "sweep_cluster.cuh",
        "is_live = b0 + r < a.B && ",
        "is_live = ",
        "corner-mask",
        "BOUNDS",
    ),
    "cluster-units-beyond-the-width": (
        "sweep_cluster.cuh",
        "4 * quad < a.slice && j < a.H;",
        "4 * quad < a.slice;",
        "sweep-mask-h0",
        "BOUNDS|RACE",
    ),
}
MUTATIONS |= {
    "level-barrier-after-the-copies": (
        "sweep_level.cuh",
        "      __syncthreads();\n      load(k0 + kLevelDepth);\n",
        "      load(k0 + kLevelDepth);\n",
        "chain-wide",
        "RACE|UNWRITTEN",
    ),
    "level-barrier-after-the-products": (
        "sweep_level.cuh",
        "      __syncthreads();\n    }\n",
        "    }\n",
        "chain-wide",
        "RACE",
    ),
    "level-barrier-after-a-tile": (
        "sweep_level.cuh",
        "    __syncthreads();\n  }\n}\n",
        "  }\n}\n",
        "chain-wide",
        "RACE",
    ),
    "level-units-beyond-the-width": (
        "sweep_level.cuh",
        "if (item.n < 0 || j0 + unit >= H) continue;",
        "if (item.n < 0) continue;",
        "chain-wide",
        "BOUNDS|RACE",
    ),
    "level-second-predecessor-left-out": (
        "sweep_level.cuh",
        "item.end - item.begin > 1",
        "item.end - item.begin > 2",
        "diamond",
        None,
    ),
}
#: Of the tensor_core family only H = 33..64, two warps backward, in one type.
SHAPES = """  switch (plan.steps) {
    case 1:
      return call(std::integral_constant<int, 1>{});
    case 2:
      return call(std::integral_constant<int, 2>{});
    case 4:
      return call(std::integral_constant<int, 4>{});
    case 8:
      return call(std::integral_constant<int, 8>{});
    default:
      return call(std::integral_constant<int, 16>{});
  }
"""
TENSOR_DISPATCH = """  if (dtype == Dtype::kFloat32)
    f(float{});
  else if (dtype == Dtype::kBFloat16)
    f(__nv_bfloat16{});
  else
    f(__half{});
"""
#: The kernels that a mutation is about, by the beginning of its name: the only family that may be
#: chosen, the dtype that it is shown in, and the limits of the device. Two multiprocessors, so that
#: a tile has several rows and the last one a tail.
KINDS = {
    "general": ("general", torch.float64, "double", (80, 2, 48 * 1024, 48 * 1024)),
    "warp": ("warp_per_row", torch.float32, "float", (80, 2, 48 * 1024, 48 * 1024)),
    "tensor": ("tensor_core", torch.bfloat16, "__nv_bfloat16", (80, 1, 160 * 1024, 8 * 1024)),
    "projection": ("tensor_core", torch.bfloat16, "__nv_bfloat16", (80, 99, 99 * 1024, 99 * 1024)),
    "tf32": ("tensor_core", torch.float32, "float", (80, 1, 160 * 1024, 16 * 1024)),
    "level": ("level", torch.float32, "float", (80, 1, 64 * 1024, 64 * 1024)),
    "cluster": ("cluster", torch.bfloat16, "__nv_bfloat16", (90, 2, 96 * 1024, 96 * 1024)),
}


def kind_of(mutation):
    first = mutation.split("-")[0]
    return first if first in KINDS else "general"


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


def run(harness, switch, sources, name, kind):
    """The case with the sources as they are, in one family of kernels.

    Only its dtype is compiled: a mutant costs seconds.
    """
    family, dtype, storage, device = KINDS[kind]
    mutate(sources, "storage.cuh", DISPATCH, f"    default:\n      return f({storage}{{}});\n")
    is_tensor, is_tf32 = family == "tensor_core", kind == "tf32"
    of_tensor = storage if is_tensor else "__nv_bfloat16"
    mutate(sources, "sweep_tensor.cuh", TENSOR_DISPATCH, f"  f({of_tensor}{{}});\n")
    mutate(
        sources, "sweep_tensor.cuh", SHAPES, "  return call(std::integral_constant<int, 4>{});\n"
    )
    case = testing.find(name)
    if is_tensor:  # no kinks: in so few bits rounding decides a ReLU's derivative at many states
        case = replace(case, activation="tanh", K=3 if kind == "projection" else case.K)
    inputs = case.inputs(dtype=dtype)
    expected = testing.Expected.of(case, inputs, allow_tf32=is_tf32)
    library = harness.build("race", sources / "cuda")
    emulated = harness.Emulated(library, device, seed=2, family=family)
    allowed = testing.tf32() if is_tf32 else nullcontext()
    with allowed, switch.running(emulated):
        expected.check(case.results(sk, inputs), "mutant")


@pytest.mark.parametrize(
    "kind, name", sorted({(kind_of(mutation), m[3]) for mutation, m in MUTATIONS.items()})
)
def test_unchanged_passes(kind, name, harness, switch, sources):
    run(harness, switch, sources, name, kind)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_is_caught(mutation, harness, switch, sources):
    file, text, becomes, case, report = MUTATIONS[mutation]
    mutate(sources, file, text, becomes)
    with pytest.raises(AssertionError if report is None else RuntimeError, match=report):
        run(harness, switch, sources, case, kind_of(mutation))
