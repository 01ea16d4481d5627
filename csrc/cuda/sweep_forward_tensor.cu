// Forward sweep on tensor cores; see sweep_tensor.cuh for the plan and sweep.cu for the op.
//
// With a projection of few rows, s grows beside the sweep, as a sum over the items of a product on
// tensor cores (the rows of B of a tile have sums of their own, so they are few); h need not be
// written then.
//
// Predicted, not measured (H200 at 1.98 GHz), from instructions counted in sm_90a code of bfloat16,
// tanh, along the path that the call takes, its tests of options included (before the family
// finished by the pass of all, which takes up to 5 % more; the latency of a gate, read where it is
// needed, is in each step of a gated sweep):
//   * A chain, T = 512, B = 64, H = 128 (16 CTAs of 8 rows, 4 warps, one on a scheduler): a warp
//     issues about 350 instructions a step (gather 60, product 110 with 32 mma, stage 80, finish
//     50, the rest chunks) and waits about 180 cycles: 0.27 us a step, 140 us. Operations 2.1
//     GFLOP = 2 us, bytes 67 MB = 14 us: bound by the chain.
//   * A grid, 64 images of 32 x 32, C = H = 128 (256 CTAs of one image, two on an SM): a product of
//     16 nodes is about 550 instructions of a warp with 64 mma (gather 95, input 90, product 80,
//     stage 110, finish 90); 95 products, 2 warps on a scheduler: 53 us. Operations 17.2 GFLOP =
//     17 us, bytes 84 MB = 18 us: bound by the instructions beside the mma.
//   * SEED, B = 288, C = 5, H = 30 (576 CTAs of 2 rows, a warp each, one on a scheduler): 13 chunks
//     of about 450 instructions and 300 cycles of waiting, with the tables 6 us. Rows of 5 numbers
//     are aligned to 2 bytes, which cp.async does not take: they go through registers, and no one
//     waits for them before the product is done.
#include "sweep_tensor.cuh"

namespace strnn::cuda {
namespace {

// Streams: u, with C = 0.
template <typename S, int kOwn, int kSteps, bool kProjects>
__global__ void __launch_bounds__(32 * kSteps / kOwn, tensor_blocks(32 * kSteps / kOwn))
    sweep_forward_tensor_kernel(const TensorArgs<Forward<S>> f) {
  using Tile = TensorTile<S, kOwn, kSteps, 1>;
  using Core = typename Tile::Core;
  using Piece = typename Tile::Piece;
  using Weight = typename Tile::Weight;
  STRNN_DYNAMIC_SHARED(raw);
  Tile tile(f.sweep, raw);
  const TensorSweep& a = f.sweep;
  const SweepForward& p = f.pass.a;
  const int H = a.H, C = a.C, d = tile.d, units_x = (C + kUnit - 1) / kUnit;

  const auto rows_of = [&](const void* matrix, int own, int step, int width) {
    return [=, &tile](int i) { return tile.block_row(matrix, tile.unit(own), step, width, i); };
  };
  // The weights of the input product are read again by every tile, a lane its own.
  const auto input_weight = [&](int unit_x, int own) {
    return tile.input_weights + (unit_x * kSteps + tile.unit(own)) * 32 + tile.lane;
  };
  float bias[kOwn][2][4] = {};  // as a result has it
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
#pragma unroll 1
    for (int unit_x = 0; unit_x < units_x; ++unit_x)
      Tile::put(input_weight(unit_x, own),
                Core::input_weight(rows_of(p.w_ih.first, own, unit_x, C)));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = tile.column(own) + i / 4 * 2 + i % 2;
      if (p.bias.first && column < H)
        bias[own][i / 4][i % 4] = to_acc(static_cast<const S*>(p.bias.first)[d * H + column]);
    }
  }
  Weight weights[kSteps][kOwn];
  tile.template load_weights<false>(p.w_hh.first, weights);

  // s, [row][unit][column of H][k], grows over all nodes as states^T projection^T.
  constexpr int kRows = kProjects ? Tile::kProjectedRows : 1;
  float s[kRows][kOwn][2][4] = {};
  Piece states[2][kOwn];  // of a tile, for the projection
  if constexpr (kProjects) tile.load_projection(p.projection, static_cast<int>(p.K));

  tile.begin(static_cast<int64_t>(blockIdx.x) << a.rows_log2);
  const S* h0[2] = {};  // the lane's two rows, and the nodes where they enter
  int entry[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t at = (tile.b0 + tile.row_of(half)) * a.D + d;
    if (p.h0) h0[half] = static_cast<const S*>(p.h0) + at * H + tile.column(0);
    if (p.entry && tile.row_of(half) < tile.tile_rows) entry[half] = p.entry[at];
  }
  const auto extra = [&](const TensorItem& item, int half, Piece(&sums)[kOwn], int, int) {
    if (!p.h0) return;
    if (p.entry ? entry[half] != item.node : item.pred[0] != tile.no_pred()) return;
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
      sums[own] = Core::sum(
          sums[own], load_piece(h0[half] + own * kUnit, item.columns - own * kUnit, a.alignment));
  };
  const auto start = [&](int, int at, int number, float (&acc)[kOwn][2][4]) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) states[1][own] = {};  // perhaps no item is in that half
    if (!C) return tile.staged_values(at, 0, number, acc);
    const S* const rows_x = tile.staged_x(at, number);
    const auto add_unit = [&](int unit_x, const float (&from)[kOwn][2][4]) {
      const auto x = Core::input(rows_x + unit_x * kUnit, a.layout.ld_x);
#pragma unroll
      for (int own = 0; own < kOwn; ++own)
        Core::multiply(acc[own], x, Tile::get(input_weight(unit_x, own)), from[own]);
    };
    add_unit(0, bias);
#pragma unroll(kProjects || kOwn > 2 ? 1 : 3)  // as many loads as there are registers
    for (int unit_x = 1; unit_x < units_x; ++unit_x) add_unit(unit_x, acc);
  };
  Forward<S> pass = f.pass;
  if constexpr (kProjects) pass.a.gate = pass.a.pre = nullptr;  // never both: room for the sums
  const auto finish = [&](int, int, int half, const TensorItem& item, const auto&,
                          const float (&acc)[kOwn][2][4]) {
    float v[kOwn * kPiece];
    Tile::values(acc, half, v);
    tile.finish(pass, item, half, v, v, states[half]);
  };
  const auto after = [&](int begin, int, int, const auto&) {
    if constexpr (kProjects) {
      const Weight weight =
          Core::transposed(tile.projected(begin, 0), kTensorLdProjection, a.rows_log2);
      const bool some_unfinite = Tile::some_unfinite(states);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
          typename Core::Operand x = tile.of_row(r, states[0][own], states[1][own]);
          if (some_unfinite) tile.add_unfinite(x, begin, s[r][own]), x = Core::finite(x);
          Core::multiply(s[r][own], Core::transposed(x), weight);
        }
    }
  };
  tile.sweep(weights, extra, start, finish, after);

  if constexpr (kProjects) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int own = 0; own < kOwn; ++own)
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int column = tile.unit(own) * kUnit + tile_column(e % 4 / 2);
          const int k = 8 * (e / 4) + 2 * tile.q + e % 2;
          if (r < tile.tile_rows && column < H && k < p.K)
            static_cast<S*>(p.s)[(((tile.b0 + r) * a.D + d) * p.K + k) * H + column] =
                from_acc<S>(s[r][own][e / 4][e % 4]);
        }
  }
}

}  // namespace

template <>
void sweep_tensor(const SweepForward& a, const ForwardStates&, Dtype dtype, const Plan& plan,
                  void* stream) {
  with_16_bits(dtype, [&](auto s) {
    using S = decltype(s);
    auto f = tensor_args(Forward<S>{a}, plan, a.C);
    if (!a.C) add_streams<S>(a.x, 1, 0, f.sweep);
    with_tensor_shape<false>(plan, [&](auto own, auto steps) {
      constexpr int kOwn = decltype(own)::value, kSteps = decltype(steps)::value;
      launch_sweep("sweep_forward_tensor", "sweep_backward_tensor",
                   plan.projects ? sweep_forward_tensor_kernel<S, kOwn, kSteps, true>
                                 : sweep_forward_tensor_kernel<S, kOwn, kSteps, false>,
                   plan, stream, f);
    });
  });
}

}  // namespace strnn::cuda
