// Gated cells on tensor cores, forward and backward: one template over the pass (pass.cuh), see
// sweep_tensor.cuh for the plan.
//
// A warp owns 16 units of H of all gates and has their rows of W (backward: columns) in registers,
// of an lstm of 128 units 128 of them. The state that is gathered is h, backward da, in 16 bits;
// what is carried goes through slots of its own in float32, which only the warp that owns the units
// reads and writes: read before the product, while its predecessors' slots still are theirs, kept
// for the lane until the item is finished. Means: a node's sums are multiplied by a factor;
// backward a node's state is, as it enters its slot. The product with x is made before the sweep,
// dw_hh and the other sums after it, from q and da.
//
// Predicted, not measured (H200 at 1.98 GHz), from the instructions that the PTX executes: a chain,
// H = 128, B = 64 (16 CTAs of 8 rows, 8 warps, two on a scheduler): a warp issues 740 instructions
// a step of an lstm and 910 backward, of a gru 640 and 770: about 1 us, where a launch per level
// takes 4 to 10.
#include "sweep_tensor.cuh"

namespace strnn::cuda {
namespace {

// Streams: the gates' blocks of u; backward what was saved, dh.
template <typename Pass, int kSteps>
__global__ void __launch_bounds__(32 * kSteps, tensor_blocks(32 * kSteps))
    sweep_gated_tensor_kernel(const TensorArgs<Pass> f) {
  using S = typename Pass::Storage;
  using Cell = typename Pass::Cell;
  constexpr bool kIsBackward = Pass::kIsBackward;
  constexpr int kGates = Cell::kGates, kStates = kIsBackward ? kGates : 1,
                kResults = kIsBackward ? 1 : kGates, kStreams = Pass::kInputs + kIsBackward;
  static_assert(kStreams <= kTensorStreams);
  using Tile = TensorTile<S, 1, kSteps, kStreams, kStates>;
  using Core = typename Tile::Core;
  using Piece = typename Tile::Piece;
  STRNN_DYNAMIC_SHARED(raw);
  Tile tile(f.sweep, raw);
  const Pass& pass = f.pass;
  const TensorSweep& a = f.sweep;
  const int H = a.H, d = tile.d, j = tile.column(0);
  // Kept, or the compiler adds them up again where it has no register left.
  float* const carry = array_at<float>(raw, keep(a.layout.carry));  // [S + 1][row][kLd]
  float* const carried =
      array_at<float>(raw, keep(a.layout.carried));  // [tile][warp][half][lane][kPiece]
  float* const factors = array_at<float>(raw, keep(a.layout.factors));  // [position]
  float* const bias = array_at<float>(raw, keep(a.layout.bias));        // [block][16 kSteps]
  const auto carry_in = [&](int index, int half) {
    return reinterpret_cast<Quad<float>*>(carry + (index + tile.row_of(half)) * Tile::kLd + j);
  };
  const auto carried_to = [&](int number, int half) {
    return reinterpret_cast<Quad<float>*>(carried) +
           ((number * kSteps + tile.warp) * 2 + half) * 32 + tile.lane;
  };
  Tile::set_to_zero(carry + tile.no_pred() * Tile::kLd, tile.rows * Tile::kLd);
#pragma unroll 1
  for (int i = threadIdx.x; i < a.N; i += Tile::kThreads) {
    const int32_t* range = a.program.pred_ptr + d * (a.N + 1) + i;
    const int count = kIsBackward ? a.program.num_succ[d * a.N + i] : range[1] - range[0];
    factors[i] = pass.a.mean ? reciprocal<float>(max(1, count)) : 1.f;
  }
#pragma unroll 1
  for (int i = threadIdx.x; !kIsBackward && i < Cell::kBlocks * kSteps * kUnit;
       i += Tile::kThreads) {
    const int column = i % (kSteps * kUnit), row = (d * Cell::kBlocks + i / (kSteps * kUnit)) * H;
    const auto* from = static_cast<const S*>(pass.a.bias.first) + row + column;
    bias[i] = pass.a.bias.first && column < H ? to_acc(*from) : 0.f;
  }

  typename Tile::Weight weights[kSteps * kStates][kResults];
  tile.template load_weights<kIsBackward>(pass.a.w_hh.first, weights);

  const auto extra = [&](const TensorItem& item, int half, Piece(&sums)[kStates], int number,
                         int most) {
    Quad<float> m{};
    const auto add_carry = [&](int index) { add(m.v, carry_in(index, half)->v); };
    if (most > 3) {
      tile.for_each_pred(item, add_carry);
    } else {
      if (most > 0) add_carry(item.pred[0]);
      if (most > 1) add_carry(item.pred[1]), add_carry(item.pred[2]);
    }
    if constexpr (!kIsBackward) {
      const void* const first_carried = pass.first_carried();
      if (most > 1 || pass.a.h0 || first_carried) {
        const float factor = factors[item.position];
        float q[kPiece];
        Core::values(sums[0], q);
#pragma unroll
        for (int i = 0; i < kPiece; ++i) q[i] *= factor, m.v[i] *= factor;
        if (item.columns > 0) {
          const OwnPieces<S, 1, false> units{item.columns, a.alignment};
          const int64_t row = (tile.b0 + tile.row_of(half)) * a.D + d;
          const int entry = pass.entry(row);
          const bool is_source = item.pred[0] == tile.no_pred();
          pass.add_h0(units, row, entry, item.node, is_source, j, q);
          pass.add_first(units, first_carried, row, entry, item.node, is_source, j, m.v);
        }
        sums[0] = Core::piece(q);
      }
    }
    *carried_to(number, half) = m;
  };
  const auto start = [](int, int, int, float (&acc)[kResults][2][4]) {
#pragma unroll
    for (int i = 0; i < kResults * 8; ++i) acc[i / 8][i % 8 / 4][i % 4] = 0;
  };
  const auto finish = [&](int at, int number, int half, const TensorItem& item,
                          const typename Tile::Operand(&sums)[kStates],
                          const float (&acc)[kResults][2][4]) {
    const int64_t first = item.state - j;
    Quad<float> m = *carried_to(number, half);
    float v[Pass::kValues][kPiece];
    const auto load = [&](int stream, float (&to)[kPiece]) {
      Core::values(Core::load(tile.staged(at, stream, number, half)), to);
    };
    pass.assemble(
        load,
        [&](int block, float (&to)[kPiece]) {
          const auto own = *reinterpret_cast<const Quad<float>*>(bias + block * kSteps * kUnit + j);
#pragma unroll
          for (int i = 0; i < kPiece; ++i) to[i] = own.v[i];
        },
        [&](int k, float (&to)[kPiece]) {
#pragma unroll
          for (int e = 0; e < kPiece; ++e) to[e] = acc[k][e / 2][2 * half + e % 2];
          if constexpr (kIsBackward) {
            float dh[kPiece];
            load(Pass::kInputs, dh);  // zeros, without dh
            add(to, dh);
          }
        },
        v);
    tile.with_pieces(item, [&](const auto& units) {
      if constexpr (kIsBackward)
        if (pass.to.q)
#pragma unroll
          for (int k = 0; k < kGates; ++k)
            units.store(static_cast<S*>(pass.to.q) + first * kGates + k * H + j,
                        Core::part(sums[k], half));
      pass.finish(units, first, j, !item.is_live, v, m.v);
    });
    if (!Tile::is_kept(item)) return;
    const float factor = kIsBackward ? factors[item.position] : 1;
    S* const to = tile.slot(item.slot, half);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      auto& state = v[Pass::state(k)];
      if constexpr (kIsBackward)
#pragma unroll
        for (float& x : state) x *= factor;
      *reinterpret_cast<Piece*>(to + k * kUnit) = Core::piece(state);
    }
    if constexpr (kIsBackward)
#pragma unroll
      for (float& x : m.v) x *= factor;
    *carry_in(item.slot, half) = m;
  };
  const auto after = [](int, int, int, const auto&) {};
  for (int64_t i = blockIdx.x; i < a.num_tiles; i += gridDim.x) {
    tile.begin(i << a.rows_log2);
    tile.sweep(weights, extra, start, finish, after);
  }
}

}  // namespace

template <typename A, typename States>
void sweep_tensor_gated(const A& a, const States& states, Dtype dtype, const Plan& plan,
                        void* stream) {
  with_16_bits(dtype, [&](auto s) {
    using S = decltype(s);
    with_pass<S>(a, states, [&](const auto& pass) {
      using Pass = std::decay_t<decltype(pass)>;
      if constexpr (Pass::Cell::kBlocks > 1) {
        auto f = tensor_args(pass, plan, 0);
        add_streams<S>(pass.inputs(), Pass::kInputs, 0, f.sweep);
        if constexpr (Pass::kIsBackward) add_streams<S>(pass.to.dh, 1, Pass::kInputs, f.sweep);
        with_tensor_shape<false>(plan, [&](auto, auto steps) {
          constexpr int kSteps = decltype(steps)::value;
          if constexpr (kSteps <= kTensorGatedSteps)
            launch_sweep("sweep_forward_tensor_gated", "sweep_backward_tensor_gated",
                         sweep_gated_tensor_kernel<Pass, kSteps>, plan, stream, f);
        });
      }
    });
  });
}

STRNN_BOTH_PASSES(sweep_tensor_gated);

}  // namespace strnn::cuda
