"""The machine sees bugs planted in the CUDA kernels: nvcc compiles each, and a case must fail.

CI plants those whose files compile in seconds; --exhaustive all of them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import testing
from tests.ptx import build
from tests.ptx.backend import Cuda, running
from tests.ptx.cases import GATED_ROWS, GATED_TENSOR, ROWS

#: name -> file, text, what it becomes, the case that shows it.
MUTATIONS = {
    "row-without-sync": (
        "row.cu",
        "      sync();\n      // Every thread is done",
        "      // Every thread is done",
        "corner-mask",
    ),
    "row-without-barrier": (
        "row.cu",
        "    else\n      __syncthreads();\n  };\n",
        "    else\n      __syncwarp();\n  };\n",
        "sweep-line",
    ),
    "row-wait-off-by-one": (
        "row.cu",
        "cp_async_wait<kRowRing - 2 * kRowNodes>()",
        "cp_async_wait<kRowRing - 2 * kRowNodes + 1>()",
        "corner-mask",
    ),
    "row-copies-too-early": (
        "row.cu",
        "stage(i + kRowRing - kRowNodes + q)",
        "stage(i + kRowRing - kRowNodes + 2 + q)",
        "corner-mask",
    ),
    "row-one-copy-of-the-vectors": ("row.cu", "      half ^= kRowNodes;\n", "", "corner-mask"),
    "row-before-not-done": (
        "row.cu",
        "    sync();  // the row before",
        "    // the row before",
        "row-h33-c3-k4",
    ),
    "row-pair-of-two-groups": (
        "row.cu",
        "to[bounds[1] - 1].has_next = 0;",
        "to[bounds[1] - 1].has_next = bounds[1] < p.N;",
        "corner-mask",
    ),
    "row-last-of-an-empty-group": (
        "row.cu",
        "if (bounds[0] < bounds[1]) to",
        "if (bounds[1] > 0) to",
        "line-3x5",
    ),
    "row-wrong-index-of-a-weight": (
        "row.cu",
        "sum[i] += w[k + i] * q.v[i];",
        "sum[i] += w[k + i] * q.v[i ^ 1];",
        "corner-mask",
    ),
    "row-wrong-row-of-an-input-weight": (
        "row.cu",
        "float* const own = array_at<float>(raw, l.own) + thread * l.ld_x;",
        "float* const own = array_at<float>(raw, l.own) + (thread ^ 1) * l.ld_x;",
        "corner-mask",
    ),
    "row-unit-beyond-the-width": (
        "row.cu",
        "const OneUnit unit{j < H};",
        "const OneUnit unit{true};",
        "corner-mask",
    ),
    "row-beyond-the-batch": ("row.cu", "b < a.B;\n", "b <= a.B;\n", "corner-mask"),
    "row-fourth-predecessor-left-out": (
        "row.cu",
        "for (int p = 3; p < own.count; ++p)",
        "for (int p = 4; p < own.count; ++p)",
        "diamond",
    ),
    "row-no-one-beside-the-inputs": (
        "row.cu",
        "e % l.stage == l.x + C ? 1 : 0",
        "e % l.stage == l.x + C ? 0 : 0",
        "corner-mask",
    ),
    "row-barrier-of-the-sums": (
        "row.cu",
        "    __syncthreads();\n    const auto over_rows",
        "    const auto over_rows",
        "corner-mask",
    ),
    "row-factors-without-barrier": (
        "row.cu",
        "    }\n    __syncthreads();\n  }\n  float w[",
        "    }\n  }\n  float w[",
        "gru-corner",
    ),
    "row-carry-left-out": ("row.cu", "m[q][0] = total[kStates] * factor;", "", "lstm-states-h32"),
    "row-factor-of-a-state-left-out": (
        "row.cu",
        "const float factor = kIsBackward ? factors[i] : 1;",
        "const float factor = 1;",
        "gru-corner",
    ),
    "row-wrong-gate-of-a-weight": (
        "row.cu",
        "w_hh[at_k + gate * H * H]",
        "w_hh[at_k + (gate + 1) % kGates * H * H]",
        "gru-corner",
    ),
    "row-barrier-of-the-projection's-weights": (
        "sparse_projection_kernel.cu",
        "  __syncthreads();\n  const int64_t k = k0",
        "  const int64_t k = k0",
        "row-h64-c33-k17",
    ),
    "row-wrong-lane-of-the-projection's-weights": (
        "sparse_projection_kernel.cu",
        "if (lane == e) sums[warp][e] = sum;",
        "if (lane == e) sums[warp][e ^ 1] = sum;",
        "row-h64-c33-k17",
    ),
    "row-e-of-another-node": (
        "sweep.cu",
        "if (a.program.num_succ[d * N + i] == 0)",
        "if (a.program.num_succ[d * N + i] <= 1)",
        "sweep-mask-h0",
    ),
    "reduce-barrier": (
        "sweep.cu",
        "  sums[threadIdx.x] = sum;\n  __syncthreads();\n",
        "  sums[threadIdx.x] = sum;\n",
        "corner-4x3-states",
    ),
    "partial-sum-left-out": (
        "sweep.cu",
        "part < r.parts; part += kReduceWarps",
        "part + 1 < r.parts; part += kReduceWarps",
        "corner-4x3-states",
    ),
    "tensor-wrong-fragment": (
        "mma.cuh",
        "{{a.w[0], b.w[0], a.w[1], b.w[1]}}",
        "{{a.w[0], b.w[0], b.w[1], a.w[1]}}",
        "sweep-mask-h0",
    ),
    "tensor-wrong-row-of-a-weight": (
        "mma.cuh",
        "return 4 * (g / 2) + 2 * t + g % 2;",
        "return 4 * (g / 2) + 2 * t + 1 - g % 2;",
        "sweep-mask-h0",
    ),
    "tensor-wrong-item-of-a-sum": (
        "mma.cuh",
        "(lane % 16 >> shift)",
        "((lane ^ 1) % 16 >> shift)",
        "chain-causal",
    ),
    "tensor-barrier": (
        "sweep_tensor.cuh",
        "      sync();\n      const unsigned last",
        "      const unsigned last",
        "sweep-mask-h0",
    ),
    "tensor-exchange-of-one-half": (
        "sweep_tensor.cuh",
        "      parity ^= 1;\n",
        "",
        "sweep-mask-h0",
    ),
    "tensor-slots-without-sync": (
        "sweep_tensor.cuh",
        "      __syncwarp();  // the slots are there\n",
        "",
        "corner-4x3-states",
    ),
    "tensor-wait-off-by-one": (
        "sweep_tensor.cuh",
        "cp_async_wait<kTensorRing - 2>()",
        "cp_async_wait<kTensorRing - 1>()",
        "chain-causal",
    ),
    "tensor-copies-too-early": (
        "sweep_tensor.cuh",
        "stage_ahead(last, late);",
        "stage_ahead(at, late);",
        "chain-causal",
    ),
    "tensor-tail-of-the-batch": (
        "sweep_tensor.cuh",
        "keep(row_of(half) < tile_rows ? a.H - column(0) : 0)",
        "keep(a.H - column(0))",
        "chain-causal",
    ),
    "tensor-items-beyond-the-chunk": (
        "sweep_tensor.cuh",
        "item.columns = item.is_there ? columns[half] : 0;",
        "item.columns = columns[half];",
        "chain-causal",
    ),
    "tensor-column-beyond-the-width": (
        "sweep_tensor.cuh",
        "      if (e < valid) to[e] = from_acc<S>(v[e]);",
        "      if (e <= valid) to[e] = from_acc<S>(v[e]);",
        "sweep-mask-h0",
    ),
    "tensor-slot-of-a-node-without-successors": (
        "sweep_tensor.cuh",
        "return item.is_there && item.slot != kNoSlot;",
        "return item.is_there;",
        "sweep-mask-h0",
    ),
    "tensor-predecessors-of-an-item-beyond-the-chunk": (
        "sweep_tensor.cuh",
        "item.is_there ? r.z : no_preds",
        "r.z",
        "corner-4x3-states",
    ),
    "tensor-wrong-predecessor": (
        "sweep_tensor.cuh",
        "state_in(item.pred[2], half, part)",
        "state_in(item.pred[1], half, part)",
        "corner-4x3-states",
    ),
    "tensor-wrong-word-of-an-input-weight": (
        "mma.cuh",
        "from = lane - q + 2 * s + q / 2;",
        "from = lane - q + 2 * s + q % 2;",
        "corner-4x3-states",
    ),
    "tensor-no-column-of-ones": (
        "sweep_backward_tensor.cu",
        "  if (to.dw_ih) tile.add_ones();\n",
        "",
        "corner-4x3-states",
    ),
    "tensor-copies-over-the-ones": (
        "sweep_tensor.cuh",
        "copy_piece(to + column, from + column, columns_x - column, a.alignment_x);",
        "copy_piece(to + column, from + column, kPiece, a.alignment_x);",
        "corner-4x3-states",
    ),
    "tensor-most-predecessors-of-the-first-node": (
        "sweep_tensor.cuh",
        "most = max(most, pred_ptr[i + 1] - pred_ptr[i]);",
        "most = i == begin ? pred_ptr[i + 1] - pred_ptr[i] : most;",
        "corner-4x3-states",
    ),
    "tensor-no-zeros-for-no-predecessor": (
        "sweep_tensor.cuh",
        "    set_to_zero(slots + no_pred() * kLdSlot, rows * kLdSlot);\n",
        "",
        "corner-4x3-states",
    ),
    "tensor-ring-without-zeros": (
        "sweep_tensor.cuh",
        "    set_to_zero(ring, kTensorRing * a.layout.stage);\n",
        "",
        "sweep-mask-h0",
    ),
    "tensor-late-inputs-into-another-stage": (
        "sweep_tensor.cuh",
        "      store_x(last, late);\n",
        "      store_x(at, late);\n",
        "corner-4x3-states",
    ),
    "tensor-carry-of-the-other-half": (
        "sweep_tensor_gated.cu",
        "*carried_to(number, half) = m;",
        "*carried_to(number, 0) = m;",
        "lstm-sum-h33",
    ),
    "tensor-no-zeros-for-no-carry": (
        "sweep_tensor_gated.cu",
        "  Tile::set_to_zero(carry + tile.no_pred() * Tile::kLd, tile.rows * Tile::kLd);\n",
        "",
        "lstm-sum-h33",
    ),
    "tensor-carry-of-a-fourth-predecessor-left-out": (
        "sweep_tensor_gated.cu",
        "if (most > 3) {",
        "if (most > 4) {",
        "lstm-sum-h33",
    ),
    "tensor-first-carry-left-out": (
        "sweep_tensor_gated.cu",
        "pass.add_first(units, first_carried,",
        "pass.add_first(units, nullptr,",
        "lstm-states-h62",
    ),
    "tensor-wrong-gate-of-an-input": (
        "pass.cuh",
        "input(kOfInput, more);",
        "input((kOfInput + 1) % Cell::kGates, more);",
        "lstm-states-h62",
    ),
    "tensor-factor-of-a-state-left-out": (
        "sweep_tensor_gated.cu",
        "const float factor = kIsBackward ? factors[item.position] : 1;",
        "const float factor = 1;",
        "gru-corner-h40",
    ),
    "tensor-no-gap-before-the-new-gate": (
        "pass.cuh",
        "return state_column(k, 1, Cell::kGates, Cell::kBlocks);",
        "return k;",
        "gru-corner-h40",
    ),
    "projection-of-another-row": (
        "sweep_tensor.cuh",
        "row_of(0) != r) low",
        "row_of(0) == r) low",
        "corner-4x3-states",
    ),
    "projection-beyond-the-nodes": (
        "sweep_tensor.cuh",
        "e < (N + kUnit - 1) * kTensorMaxK;",
        "e < N * kTensorMaxK;",
        "corner-4x3-states",
    ),
    "cluster-wait": (
        "cluster.cu",
        "    mbarrier_wait(tile.barriers + half, parity);\n",
        "",
        "chain-causal",
    ),
    "cluster-wait-for-the-other-half": (
        "cluster.cu",
        "mbarrier_wait(tile.barriers + half, parity)",
        "mbarrier_wait(tile.barriers + (half ^ 1), parity)",
        "chain-causal",
    ),
    "cluster-wait-of-all-but-the-last": (
        "cluster.cu",
        "    mbarrier_wait(tile.barriers + half, parity);\n",
        "    if (!next.is_empty()) mbarrier_wait(tile.barriers + half, parity);\n",
        "chain-causal",
    ),
    "cluster-wait-of-a-thread": (
        "cluster.cu",
        "    mbarrier_wait(tile.barriers + half, parity);\n",
        "    if (threadIdx.x == 0) mbarrier_wait(tile.barriers + half, parity);\n",
        "chain-causal",
    ),
    "cluster-parity-that-stays": (
        "cluster.cu",
        "parity ^= half, half ^= 1",
        "half ^= 1",
        "chain-causal",
    ),
    "cluster-parity-of-each-chunk": (
        "cluster.cu",
        "parity ^= half, half ^= 1",
        "parity ^= 1, half ^= 1",
        "chain-causal",
    ),
    "cluster-other-parity-at-first": (
        "cluster.cu",
        "half = 0, parity = 0",
        "half = 0, parity = 1",
        "chain-causal",
    ),
    "cluster-fence-after-the-wait": (
        "ptx.cuh",
        "  asm volatile(STRNN_SEE",
        '  asm volatile(""',
        "chain-causal",
    ),
    "cluster-wait-in-the-scope-of-a-cta": (
        "ptx.cuh",
        '#define STRNN_WAIT ".relaxed.cluster"',
        '#define STRNN_WAIT ".relaxed.cta"',
        "chain-causal",
    ),
    "cluster-too-few-bytes": (
        "cluster.cu",
        "8 * quads * rows",
        "8 * (quads - 1) * rows",
        "chain-causal",
    ),
    "cluster-bytes-of-rows-beyond-the-batch": (
        "cluster.cu",
        "static_cast<int>(min(a.B - b0, int64_t{f.rows}))",
        "f.rows",
        "chain-causal",
    ),
    "cluster-bytes-of-whole-quads": ("cluster.cu", "(a.H + 3) / 4", "(a.H) / 4", "sweep-mask-h0"),
    "cluster-bytes-of-one-node": ("cluster.cu", " * (c.end - c.begin));", ");", "corner-mask"),
    "cluster-expects-too-late": (
        "cluster.cu",
        "    tile.expect(now, half);\n    tile.gather(now, half);\n"
        "    const Chunk next = tile.after(now);\n    tile.stage(next, half ^ 1);\n"
        "    mbarrier_wait(tile.barriers + half, parity);\n",
        "    tile.gather(now, half);\n"
        "    const Chunk next = tile.after(now);\n    tile.stage(next, half ^ 1);\n"
        "    mbarrier_wait(tile.barriers + half, parity);\n    tile.expect(now, half);\n",
        "chain-causal",
    ),
    "cluster-expects-in-each-thread": (
        "cluster.cu",
        "if (threadIdx.x == 0) mbarrier_expect(",
        "mbarrier_expect(",
        "chain-causal",
    ),
    "cluster-without-an-mbarrier": (
        "cluster.cu",
        "mbarrier_init(barriers), mbarrier_init(barriers + 1);",
        "mbarrier_init(barriers);",
        "chain-causal",
    ),
    "cluster-one-mbarrier-for-both-halves": (
        "cluster.cu",
        "send(to, barriers + half,",
        "send(to, barriers,",
        "chain-causal",
    ),
    "cluster-barrier-at-the-start": (
        "cluster.cu",
        "  cluster_sync();",
        "",
        "chain-causal",
    ),
    "cluster-sends-after-the-last-wait": (
        "cluster.cu",
        "  cp_async_wait<0>();\n",
        "  cp_async_wait<0>();\n"
        "  send(tile.sums, tile.barriers, (tile.rank + 1) % tile.size, uint2{0, 0});\n",
        "chain-causal",
    ),
    "cluster-wrong-rank": ("cluster.cu", "half, peer,", "half, rank,", "chain-causal"),
    "cluster-sends-to-ctas-without-units": (
        "cluster.cu",
        "static_cast<int>((a.H + f.slice - 1) / f.slice)",
        "static_cast<int>(cluster_size())",
        "corner-mask",
    ),
    "cluster-ctas-without-units-stay": (
        "cluster.cu",
        "  if (cluster_rank() * f.slice >= a.H) return;\n",
        "",
        "corner-mask",
    ),
    "cluster-one-copy-of-the-sums": (
        "cluster.cu",
        "sums + ((half * f.nodes + i - c.begin)",
        "sums + ((i - c.begin)",
        "chain-causal",
    ),
    "cluster-barrier-of-a-cta": (
        "cluster.cu",
        "      __syncthreads();\n      if (tile.is_live)",
        "      if (tile.is_live)",
        "chain-causal",
    ),
    "cluster-one-copy-of-the-parts": ("cluster.cu", "      turn ^= 1;\n", "", "corner-mask"),
    "cluster-wrong-block-of-the-weights": (
        "cluster.cu",
        "ks = 64 * t + i / 2 * 8;",
        "ks = 64 * t + i % 2 * 8;",
        "chain-causal",
    ),
    "cluster-weights-beyond-the-width": (
        "cluster.cu",
        "column + right + q < H) pair",
        "column + right + q <= H) pair",
        "sweep-mask-h0",
    ),
    "cluster-wrong-fragment": (
        "cluster.cu",
        "lane / 8 % 2 * 8;",
        "lane / 8 % 2 * 0;",
        "chain-causal",
    ),
    "cluster-row-beyond-the-batch": (
        "cluster.cu",
        "is_live = b0 + r < a.B && ",
        "is_live = ",
        "corner-mask",
    ),
    "cluster-units-beyond-the-width": (
        "cluster.cu",
        "4 * quad < f.slice && j < a.H;",
        "4 * quad < f.slice;",
        "sweep-mask-h0",
    ),
    "level-barrier-after-the-copies": (
        "level.cu",
        "      __syncthreads();\n      load(k0 + kLevelDepth);\n",
        "      load(k0 + kLevelDepth);\n",
        "chain-wide",
    ),
    "level-barrier-after-the-products": (
        "level.cu",
        "      __syncthreads();\n    }\n#pragma unroll",
        "    }\n#pragma unroll",
        "chain-wide",
    ),
    "level-barrier-after-a-tile": (
        "level.cu",
        "    __syncthreads();\n  }\n}\n",
        "  }\n}\n",
        "chain-wide",
    ),
    "level-units-beyond-the-width": (
        "level.cu",
        "if (item.n < 0 || j0 + column >= H) continue;",
        "if (item.n < 0) continue;",
        "chain-wide",
    ),
    "level-second-predecessor-left-out": (
        "level.cu",
        "item.end - item.begin > (factors ? 0 : 1)",
        "item.end - item.begin > (factors ? 0 : 2)",
        "diamond",
    ),
    "level-carry-left-out": (
        "level.cu",
        "T m[1] = {pass.reduced(add(0, item, item.begin,",
        "T m[1] = {pass.reduced(add(0, item, item.end,",
        "gru-line-mask",
    ),
    "level-first-carry-left-out": (
        "pass.cuh",
        "return Cell::kCarry == Carry::kState ? a.h0 : a.c0;",
        "return Cell::kCarry == Carry::kState ? a.h0 : nullptr;",
        "lstm-states",
    ),
    "level-factor-left-out": (
        "level.cu",
        "sum += factors ? factors[d * a.N + n] * y : y;",
        "sum += y;",
        "elman-mean",
    ),
    "level-wrong-gate-of-a-product": (
        "level.cu",
        "w_own[(block * H + of_block) * weight_j",
        "w_own[((block ^ 1) * H + of_block) * weight_j",
        "lstm-states",
    ),
    "level-wrong-gate-of-an-input": (
        "pass.cuh",
        "input(kOfInput, more);",
        "input((kOfInput + 1) % Cell::kGates, more);",
        "gru-line-mask",
    ),
    "level-no-gap-before-the-new-gate": (
        "families.h",
        "return k < (gates - 1) * H ? k : k + (bias_rows - gates) * H;",
        "return k;",
        "gru-line-mask",
    ),
    "level-saved-in-another-order": (
        "pass.cuh",
        "saved[k][i] = T(values[k]);",
        "saved[k][i] = T(values[4 - k]);",
        "lstm-states",
    ),
    "level-gradient-at-masked-nodes": (
        "pass.cuh",
        "m[i] = is_off ? T(0) : T(gradient.m);",
        "m[i] = T(gradient.m);",
        "lstm-corner-mask",
    ),
}

#: The mutations that CI plants: a wait, a barrier, an index, a bound; of a row, of a cluster, of a
#: level.
IN_CI = (
    "row-wait-off-by-one", "row-carry-left-out", "cluster-wait", "cluster-too-few-bytes",
    "level-units-beyond-the-width",
)  # fmt: skip
#: The kernels that a mutation is about, by the beginning of its name: the only family that may be
#: chosen, the dtype that it is shown in, and the limits of the device. Two multiprocessors, so that
#: a tile has several rows and the last one a tail.
KINDS = {
    "row": ("row", torch.float32, (80, 2, 48 * 1024, 48 * 1024)),
    "tensor": ("tensor_core", torch.bfloat16, (80, 1, 160 * 1024, 8 * 1024)),
    "projection": ("tensor_core", torch.bfloat16, (80, 99, 99 * 1024, 99 * 1024)),
    "level": ("level", torch.float32, (80, 1, 64 * 1024, 64 * 1024)),
    "cluster": ("cluster", torch.bfloat16, (90, 2, 96 * 1024, 96 * 1024)),
}
#: Where the families that take a minute to compile choose a dtype and a shape. Of them, only what
#: a mutation is shown in is compiled: H = 33..64, two warps backward.
DISPATCH = """    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(__nv_bfloat16{});
    case Dtype::kFloat16:
      return f(__half{});
"""
SHAPES = """  switch (std::get<TensorPlan>(plan.kind).steps) {
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
OF_16_BITS = """  if (dtype == Dtype::kBFloat16)
    f(__nv_bfloat16{});
  else
    f(__half{});
"""


def kind_of(mutation: str) -> str:
    first = mutation.split("-")[0]
    return first if first in KINDS else "row"


def change(folder, file, text, becomes):
    path = folder / "cuda" / file
    source = path.read_text()
    assert source.count(text) == 1, f"{file} must have exactly once: {text}"
    path.write_text(source.replace(text, becomes))


@pytest.fixture
def sources(tmp_path):
    if build.missing():
        pytest.skip(f"the CUDA half is compiled by nvcc: {build.missing()}")
    for part in ("cuda", "common"):
        shutil.copytree(build.ROOT / "csrc" / part, tmp_path / part)
    return tmp_path


def run(sources, name, kind):
    """The case with the sources as they are; a function, so that compiling is no part of it."""
    family, dtype, device = KINDS[kind]
    is_small = family != "tensor_core"
    if not is_small:
        one = "    default:\n      return f(__nv_bfloat16{});\n"
        shape = "  return call(std::integral_constant<int, 4>{});\n"
        change(sources, "storage.cuh", DISPATCH, one)
        change(sources, "storage.cuh", OF_16_BITS, "  f(__nv_bfloat16{});\n")
        change(sources, "sweep_tensor.cuh", SHAPES, shape)
    # As the fixture `cuda` has it in CI: of what is small, nothing else is made again.
    built = build.cuda(sources / "cuda", () if is_small else (device[0],))
    beside = (case for case in ROWS + GATED_ROWS + GATED_TENSOR if case.name == name)
    case = next(beside, None) or testing.find(name)
    if family == "tensor_core":
        case = replace(case, activation="tanh", K=3 if kind == "projection" else case.K)
    inputs = case.inputs(dtype=dtype)
    expected = testing.Expected.of(case, inputs)

    def call():
        with running(Cuda(built, device, family)):
            expected.check(case.results(sk, inputs), "mutant")

    return call


@pytest.mark.parametrize(
    "kind, name", sorted({(kind_of(mutation), m[3]) for mutation, m in MUTATIONS.items()})
)
def test_unchanged_passes(kind, name, sources, wanted):
    wanted((kind, name) in {(kind_of(m), MUTATIONS[m][3]) for m in IN_CI})
    run(sources, name, kind)()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_is_seen(mutation, sources, wanted):
    """By a report of the machine, which names a line, or by wrong numbers."""
    wanted(mutation in IN_CI)
    file, text, becomes, case = MUTATIONS[mutation]
    change(sources, file, text, becomes)
    call = run(sources, case, kind_of(mutation))
    with pytest.raises((AssertionError, RuntimeError), match=r"; line \d+: |away from|not finite"):
        call()
