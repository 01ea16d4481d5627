// Derivative of the sweep on tensor cores; see sweep_tensor.cuh for the plan and sweep.cu
// for the formulas. Up to H = 128 dw_hh grows in registers over all tiles of a CTA, as products
// over their 16 items (a warp has the rows of its own columns), and so do dw_ih and dbias of up to
// 15 inputs; the reduction that follows adds the CTAs up in their order. Beyond H = 128, q goes to
// memory, beyond 15 inputs du does, and products over all rows follow.
//
// The share of a projection of few rows in dh is one more product, of its weights by ds.
//
// Predicted, not measured (H200 at 1.98 GHz, bfloat16, H = 128), from instructions counted as
// forward: a chain 8 warps of about 370 instructions a step, two on a scheduler, 0.45 us; 64 images
// of 32 x 32 about 470 instructions a product, 90 us; the sums after it (dx and dw_ih of C = 128,
// 17 GFLOP, 170 MB) are torch's, 35 us by their bytes. Bytes of the sweep itself: 200 MB = 42 us.
#include "sweep_tensor.cuh"

namespace strnn::cuda {
namespace {

// Streams: h, dh.
template <typename S, int kOwn, int kSteps, bool kProjects>
__global__ void __launch_bounds__(32 * kSteps / kOwn, tensor_blocks(32 * kSteps / kOwn))
    sweep_backward_tensor_kernel(const TensorArgs<Backward<S>> f) {
  using Tile = TensorTile<S, kOwn, kSteps, 2>;
  using Core = typename Tile::Core;
  using Piece = typename Tile::Piece;
  constexpr bool kSums = kSteps <= kTensorSumsSteps;
  STRNN_DYNAMIC_SHARED(raw);
  Tile tile(f.sweep, raw);
  const TensorSweep& a = f.sweep;
  const SweepBackward& p = f.pass.a;
  const BackwardStates& to = f.pass.to;
  const int H = a.H, d = tile.d;

  typename Tile::Weight weights[kSteps][kOwn];
  tile.template load_weights<true>(p.w_hh.first, weights);
  float dw[kSums ? kOwn : 1][kSums ? kSteps : 1][2][4] = {};
  // dw_ih and, by a column of ones beside those of x, dbias.
  float dw_x[kSums ? kOwn : 1][2][4] = {};
  Piece states[2][kOwn];  // du of a tile
  if (to.dw_ih) tile.add_ones();

  // ds of a tile's rows, by which the projection's weights of a node are multiplied.
  constexpr int kRows = kProjects ? Tile::kProjectedRows : 1;
  typename Tile::Weight ds[kRows][kOwn];
  if constexpr (kProjects) tile.load_projection(p.projection, static_cast<int>(p.K));
  const auto load_ds = [&] {
    const int alignment = alignment_of(p.ds, H * static_cast<int64_t>(sizeof(S)));
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int own = 0; own < kOwn; ++own)
        ds[r][own] = Core::weight_transposed([&](int k) {
          const int64_t row = ((tile.b0 + r) * a.D + d) * p.K + k;
          const int column = tile.column(own);
          return load_piece(static_cast<const S*>(p.ds) + row * H + column,
                            r < tile.tile_rows && k < p.K ? H - column : 0, alignment);
        });
  };

  const auto extra = [](const TensorItem&, int, Piece(&)[kOwn], int, int) {};
  const auto start = [&](int begin, int at, int number, float (&acc)[kOwn][2][4]) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) states[1][own] = {};  // perhaps no item is in that half
    if (to.dh) {
      tile.staged_values(at, 1, number, acc);
    } else {
#pragma unroll
      for (int own = 0; own < kOwn; ++own)
#pragma unroll
        for (int i = 0; i < 8; ++i) acc[own][i / 4][i % 4] = 0;
    }
    if constexpr (kProjects) {
      const auto weights_of = [&](int item) {
        return Core::load(tile.projected(begin, item) + kPiece * tile.q);
      };
      const Piece low = weights_of(tile.g), high = weights_of(tile.g + 8);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto of_row = tile.of_row(r, low, high);
#pragma unroll
        for (int own = 0; own < kOwn; ++own) Core::multiply(acc[own], of_row, ds[r][own]);
      }
    }
  };
  const auto finish = [&](int at, int number, int half, const TensorItem& item,
                          const typename Tile::Operand(&q)[kOwn], const float (&acc)[kOwn][2][4]) {
    float v[kOwn * kPiece], h[kOwn * kPiece];
    Tile::values(acc, half, v);
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
      Core::values(Core::load(tile.staged(at, 0, number, half) + own * kUnit), h, own);
    tile.finish(f.pass, item, half, v, h, states[half]);
    if constexpr (!kSums) {
#pragma unroll
      for (int own = 0; own < kOwn; ++own) Core::values(Core::part(q[own], half), v, own);
      f.pass.keep(OwnPieces<S, kOwn, false>{item.columns, a.alignment}, item.state, v);
    }
  };
  const auto after = [&](int, int at, int number, const typename Tile::Operand(&q)[kOwn]) {
    if constexpr (kSums) {
      const S* h = tile.staged_rows(at, 0, number);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const auto columns = Core::transposed(h + k * kUnit, Tile::kLd);
#pragma unroll
        for (int own = 0; own < kOwn; ++own)
          Core::multiply(dw[own][k], Core::transposed(q[own]), columns);
      }
      if (to.dw_ih) {
        const auto columns = Core::transposed(tile.staged_x(at, number), a.layout.ld_x);
#pragma unroll
        for (int own = 0; own < kOwn; ++own)
          Core::multiply(dw_x[own], Core::transposed(Core::operand(states[0][own], states[1][own])),
                         columns);
      }
    }
  };
  for (int64_t i = blockIdx.x; i < a.num_tiles; i += gridDim.x) {
    tile.begin(i << a.rows_log2);
    if constexpr (kProjects) load_ds();
    tile.sweep(weights, extra, start, finish, after);
  }

  if constexpr (kSums) {
    const int64_t part = static_cast<int64_t>(blockIdx.x) * a.D + d;
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int row = tile.unit(own) * kUnit + tile_column(e % 4 / 2);
        const int first = 8 * (e / 4) + 2 * tile.q + e % 2;
        if (row >= H) continue;
        const int64_t of_row = part * H + row;
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          const int column = k * kUnit + first;
          if (column < H) to.dw_hh[of_row * H + column] = dw[own][k][e / 4][e % 4];
        }
        if (to.dw_ih && first < a.C) to.dw_ih[of_row * a.C + first] = dw_x[own][e / 4][e % 4];
        if (to.dbias && first == a.C) to.dbias[of_row] = dw_x[own][e / 4][e % 4];
      }
  }
}

}  // namespace

template <>
void sweep_tensor(const SweepBackward& a, const BackwardStates& states, Dtype dtype,
                  const Plan& plan, void* stream) {
  with_16_bits(dtype, [&](auto s) {
    using S = decltype(s);
    auto f = tensor_args(Backward<S>{a, states}, plan, plan.sums_input ? a.C : 0);
    add_streams<S>(a.h, 1, 0, f.sweep), add_streams<S>(states.dh, 1, 1, f.sweep);
    with_tensor_shape<true>(plan, [&](auto own, auto steps) {
      constexpr int kOwn = decltype(own)::value, kSteps = decltype(steps)::value;
      launch_sweep("sweep_forward_tensor", "sweep_backward_tensor",
                   plan.projects && a.ds ? sweep_backward_tensor_kernel<S, kOwn, kSteps, true>
                                         : sweep_backward_tensor_kernel<S, kOwn, kSteps, false>,
                   plan, stream, f);
    });
  });
}

}  // namespace strnn::cuda
