// Derivative of the sweep on tensor cores; see sweep_tensor.cuh for the plan and sweep_backward.cu
// for the formulas. Up to H = 128 dw_hh grows in registers over all tiles of a CTA, as products
// over their 16 items (a warp has the rows of its own columns), and the reduction that follows adds
// the CTAs up in their order; beyond, q goes to memory and a product over all rows follows.
//
// The share of a projection of few rows in dh is one more product, of its weights by ds.
//
// Predicted, not measured (H200 at 1.98 GHz, bfloat16, H = 128), from instructions counted as
// forward: a chain 8 warps of about 400 instructions a step, two on a scheduler, 0.55 us; 64 images
// of 32 x 32 about 145 us, and for the sums after it (dx and dw_ih of C = 128, 17 GFLOP, 170 MB) 60
// us. Bytes of the sweep itself: 200 MB = 42 us.
#include "sweep_tensor.cuh"

namespace strnn::cuda {
namespace {

struct TensorBackwardArgs {
  TensorSweep sweep;  // streams: h, dh, gate, what the gate was applied to
  const void* w_hh;
  int64_t num_tiles;
  int activation;
  bool has_dh, is_gated;
  void* dgate;
  void* du;      // (B, N, D, H) or null
  void* q;       // (B, N, D, H) or null
  float* dw_hh;  // [CTA][D][H][H] or null
  const void* projection;
  const void* ds;
  int K;
};

template <typename S, int kOwn, int kSteps, bool kProjects>
__global__ void __launch_bounds__(32 * kSteps / kOwn, tensor_blocks(32 * kSteps / kOwn))
    sweep_backward_tensor_kernel(const TensorBackwardArgs f) {
  using Tile = TensorTile<S, kOwn, kSteps>;
  using Core = typename Tile::Core;
  using Piece = typename Tile::Piece;
  constexpr bool kSums = kSteps <= kTensorSumsSteps;
  STRNN_DYNAMIC_SHARED(raw);
  Tile tile(f.sweep, Carver{raw});
  const TensorSweep& a = f.sweep;
  const int H = a.H, d = tile.d;

  typename Tile::Weight weights[kSteps][kOwn];
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
      weights[k][own] = Core::weight_transposed(
          [&](int i) { return tile.block_row(f.w_hh, k, tile.unit(own), H, i); });
  float dw[kSums ? kOwn : 1][kSums ? kSteps : 1][2][4] = {};

  // ds of a tile's rows, by which the projection's weights of a node are multiplied.
  constexpr int kRows = kProjects ? Tile::kProjectedRows : 1;
  typename Tile::Weight ds[kRows][kOwn];
  if constexpr (kProjects) tile.load_projection(f.projection, f.K);
  const auto load_ds = [&] {
    const int alignment = alignment_of(f.ds, H * static_cast<int64_t>(sizeof(S)));
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int own = 0; own < kOwn; ++own)
        ds[r][own] = Core::weight_transposed([&](int k) {
          const int64_t row = ((tile.b0 + r) * a.D + d) * f.K + k;
          const int column = tile.column(own);
          return load_piece(static_cast<const S*>(f.ds) + row * H + column,
                            r < tile.tile_rows && k < f.K ? H - column : 0, alignment);
        });
  };

  const auto extra = [](const TensorItem&, int, Piece(&)[kOwn]) {};
  const auto start = [&](int begin, int at, int number, float (&acc)[kOwn][2][4]) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float dh[kPiece] = {};
        if (f.has_dh)
          Core::values(
              *reinterpret_cast<const Piece*>(tile.staged(at, 1, number, half) + own * kUnit), dh);
#pragma unroll
        for (int e = 0; e < kPiece; ++e) acc[own][e / 2][2 * half + e % 2] = dh[e];
      }
    if constexpr (kProjects) {
      const auto weights_of = [&](int item) {
        return *reinterpret_cast<const Piece*>(tile.projected(begin, item) + kPiece * tile.q);
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
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int column = own * kUnit, valid = item.is_inside ? tile.columns - column : 0;
      const auto input = [&](int stream, float (&v)[kPiece]) {
        Core::values(
            *reinterpret_cast<const Piece*>(tile.staged(at, stream, number, half) + column), v);
      };
      float v[kPiece], other[kPiece];
      if (f.is_gated) {
        input(3, other);
#pragma unroll
        for (int e = 0; e < kPiece; ++e) v[e] = acc[own][e / 2][2 * half + e % 2] * other[e];
        store_piece(static_cast<S*>(f.dgate) + item.state + column, Core::piece(v), valid,
                    a.alignment);
        input(2, other);
      } else {
        input(0, other);
#pragma unroll
        for (int e = 0; e < kPiece; ++e) other[e] = derivative(f.activation, other[e]);
      }
#pragma unroll
      for (int e = 0; e < kPiece; ++e) v[e] = other[e] * acc[own][e / 2][2 * half + e % 2];
      // Zeros by choice, not by 0 * v, which may be NaN where the node is masked.
      const Piece du = item.is_live ? Core::piece(v) : Piece{};
      if (item.is_there && item.slot != kNoSlot)
        *reinterpret_cast<Piece*>(tile.slot(item.slot, half) + column) = du;
      if (f.du) store_piece(static_cast<S*>(f.du) + item.state + column, du, valid, a.alignment);
      if constexpr (!kSums)
        store_piece(static_cast<S*>(f.q) + item.state + column, Core::part(q[own], half), valid,
                    a.alignment);
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
    }
  };
  for (int64_t i = blockIdx.x; i < f.num_tiles; i += gridDim.x) {
    tile.begin(i << a.rows_log2);
    if constexpr (kProjects) load_ds();
    tile.sweep(weights, extra, start, finish, after);
  }

  if constexpr (kSums) {
    float* to = f.dw_hh + (static_cast<int64_t>(blockIdx.x) * a.D + d) * H * H;
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int row = tile.unit(own) * kUnit + tile_column(e % 4 / 2);
          const int column = k * kUnit + 8 * (e / 4) + 2 * tile.q + e % 2;
          if (row < H && column < H)
            to[static_cast<int64_t>(row) * H + column] = dw[own][k][e / 4][e % 4];
        }
  }
}

}  // namespace

void sweep_backward_tensor(const SweepBackward& a, const BackwardStates& to, Dtype dtype,
                           const Plan& plan, void* stream) {
  TensorBackwardArgs f{};
  const void* h = !a.gate || to.dw_hh ? a.h : nullptr;
  f.sweep =
      tensor_sweep(a, a.program, plan, dtype, {h, to.dh, a.gate, a.pre}, {a.dgate, to.du, to.q});
  f.has_dh = to.dh != nullptr;
  f.w_hh = a.w_hh;
  f.num_tiles = (a.B + (int64_t{1} << plan.rows_log2) - 1) >> plan.rows_log2;
  f.activation = a.activation, f.is_gated = a.gate != nullptr;
  f.dgate = a.dgate, f.du = to.du, f.q = to.q, f.dw_hh = to.dw_hh;
  f.projection = a.projection, f.ds = a.ds, f.K = static_cast<int>(a.K);
  const dim3 grid(static_cast<unsigned>(plan.parts), static_cast<unsigned>(a.D));
  with_tensor_dtype(dtype, [&](auto s) {
    with_tensor_shape<true, std::is_same_v<decltype(s), float>>(plan, [&](auto own, auto steps) {
      using S = decltype(s);
      constexpr int kOwn = decltype(own)::value, kSteps = decltype(steps)::value;
      launch("sweep_backward_tensor",
             plan.projects && a.ds ? sweep_backward_tensor_kernel<S, kOwn, kSteps, true>
                                   : sweep_backward_tensor_kernel<S, kOwn, kSteps, false>,
             grid, plan.threads, plan.shared_bytes, stream, f);
    });
  });
}

}  // namespace strnn::cuda
