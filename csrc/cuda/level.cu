// The sweep level by level: any width, dtype, topology and architecture, one launch per group of
// the program and nothing that waits, so that the sequence can be captured in a graph.
//
// The nodes of a group in all rows of B are the rows of one product: a tile is kLevelTile (node,
// row) items times kLevelTile hidden units of a direction. Its CTA adds the states of the
// predecessors as it loads them, straight from the output of earlier launches (no slots),
// kLevelDepth of k at a time; quarters of the threads take quarters of those k, each thread 4 x 4
// outputs, and the four partial sums are added in their order. Then the pass's own: activation or
// gate. How many nodes a group has stands in a table on the device, so the grid is a guess, and
// CTAs take tiles in turn.
//
// Of a gated cell a tile has all its blocks of pre-activations of 8 hidden units forward, and so
// their states in the same launch; backward, 32 units and a sum that is G times as long. What is
// carried is gathered where the state is made, in the type that is computed in.
//
// Predicted, not measured (H200 at 1.98 GHz), a step of a bidirectional chain with H = 1024, B = 64
// in float32: 128 tiles, one per SM, 16 blocks of k each of 64 x 32 x 32 fma (0.33 us) behind a
// latency of 0.4 us: 12 us, and 2.5 us for the launch; an ideal product would take 4 us. Narrow
// states are bound by the launches: SEED in float64, 13 groups, 35 us. An lstm of float32 over a
// bidirectional chain, T = 128, H = 128, B = 32: forward 32 tiles with two blocks of k, 2.5 us and
// the launch, 0.6 ms; backward 8 tiles with eight, 7 us and the launch, 1.2 ms. So is what a CTA
// that stays for the whole sweep would do faster, and has no family here: gated cells of float32
// beyond 32 units, Elman cells of float32 of 129 to about 230 units, 3 us a step and more against
// 1 us with W in shared memory, and chains of more steps than a table in shared memory holds (16
// bits: 32767, float32: about 13000).
#include "launch.cuh"
#include "pass.cuh"
#include "planner.h"
#include "ptx.cuh"

namespace strnn::cuda {
namespace {

constexpr int kLevelQuads = kLevelTile / 4;
constexpr int kLevelParts = kLevelThreads / (kLevelQuads * kLevelQuads);
constexpr int kLevelRows = kLevelThreads / kLevelDepth;  // of a tile that are loaded at a time
constexpr int kLevelPasses = kLevelTile / kLevelRows;

template <typename Pass>
struct LevelArgs {
  Pass pass;
  int group;
};

// A (node, row) pair; n < 0: beyond the last one.
struct LevelItem {
  int64_t b;
  int n, begin, end;  // range of its predecessors
};
static_assert(sizeof(LevelItem) == kLevelItemBytes);

template <typename Pass>
__global__ void __launch_bounds__(kLevelThreads, sizeof(typename Pass::Storage) == 8 ? 1 : 2)
    sweep_level_kernel(const LevelArgs<Pass> f) {
  using S = typename Pass::Storage;
  using T = acc_t<S>;
  using Cell = typename Pass::Cell;
  constexpr bool kIsGated = Cell::kBlocks > 1;
  // Blocks of columns of a tile, the first of which may have no product (a gru's new gate of the
  // input); of H terms of the sum; of a row of the states that are gathered.
  constexpr int kBlocks = Pass::kIsBackward ? 1 : Cell::kBlocks,
                kNoProduct = Pass::kIsBackward ? 0 : Cell::kBlocks - Cell::kGates,
                kTerms = Pass::kIsBackward ? Cell::kGates : 1,
                kStateBlocks = Pass::kIsBackward ? Cell::kBlocks : 1;
  constexpr int kUnits = kLevelTile / kBlocks;
  const Pass& pass = f.pass;
  const auto& a = pass.a;
  STRNN_DYNAMIC_SHARED(raw);
  T* sums = array_at<T>(raw, 0);               // [k][item]
  T* weights = sums + kLevelDepth * kLevelLd;  // [k][unit]
  T* parts = sums;                             // after them [part][item][unit]
  static_assert(kLevelParts * kLevelTile <= 2 * kLevelDepth);
  LevelItem* items = array_at<LevelItem>(raw, 2 * kLevelDepth * kLevelLd * sizeof(T));
  const S* states = pass.states();
  const int64_t weight_j = pass.weight_j(), weight_k = pass.weight_k();
  const bool has_h0 = pass.has_h0();
  T* const factors = pass.factors();
  const OneUnit unit{};

  const int thread = static_cast<int>(threadIdx.x), d = static_cast<int>(blockIdx.y),
            H = static_cast<int>(a.H), K = kTerms * H;
  const int32_t* group = a.program.group_ptr + d * (a.program.G + 1) + f.group;
  const int first = __ldg(group);
  const unsigned B = static_cast<unsigned>(a.B), count = (__ldg(group + 1) - first) * B;
  const unsigned tiles_j = (H + kUnits - 1) / kUnits,
                 tiles = (count + kLevelTile - 1) / kLevelTile * tiles_j;
  const S* w = static_cast<const S*>(a.w_hh.first) + static_cast<int64_t>(d) * Cell::kGates * H * H;
  // Neighbouring lanes load four rows of eight k: full sectors of global memory, and no two lanes
  // meet in a bank when they store the transpose.
  const int row = thread % 4, k_own = thread / 4 % kLevelDepth;
  const int part = thread / (kLevelQuads * kLevelQuads), m = thread / kLevelQuads % kLevelQuads * 4,
            j = thread % kLevelQuads * 4;

  for (unsigned tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int j0 = static_cast<int>(tile % tiles_j) * kUnits;
    if (thread < kLevelTile) {
      const unsigned item = tile / tiles_j * kLevelTile + thread;
      LevelItem own{0, -1, 0, 0};
      if (item < count) {
        const int i = first + static_cast<int>(item / B);
        const int32_t* range = a.program.pred_ptr + d * (a.N + 1) + i;
        own = {item % B, __ldg(a.program.node + d * a.N + i), __ldg(range), __ldg(range + 1)};
        if (factors && own.b == 0 && j0 == 0)
          factors[d * a.N + own.n] = reciprocal<T>(max(1, __ldg(a.program.num_succ + d * a.N + i)));
      }
      items[thread] = own;
    }
    __syncthreads();

    // Of the items that this thread loads: the first predecessor, and bits for those that have more
    // to add and for those that exist.
    int64_t from[kLevelPasses];
    unsigned rest = 0, there = 0;
    const auto row_of = [&](int64_t b, int n) { return (b * a.N + n) * a.D + d; };
    const auto row_at = [&](const LevelItem& item) { return row_of(item.b, item.n); };
    // With a column of the item's predecessors from number q on.
    const auto add = [&](T sum, const LevelItem& item, int q, const auto* from, int64_t width,
                         int64_t column) {
#pragma unroll 1  // seldom needed, and not eight times over
      for (; q < item.end; ++q) {
        const int n = __ldg(a.program.pred_node + q);
        const T y = to_acc(from[row_of(item.b, n) * width + column]);
        sum += factors ? factors[d * a.N + n] * y : y;
      }
      return sum;
    };
#pragma unroll
    for (int p = 0; p < kLevelPasses; ++p) {
      const LevelItem item = items[row + 4 * p];
      from[p] = item.begin < item.end && !factors
                    ? row_of(item.b, __ldg(a.program.pred_node + item.begin)) * kStateBlocks * H
                    : -1;
      if (item.n >= 0) there |= 1u << p;
      if (item.n >= 0 && (has_h0 || item.end - item.begin > (factors ? 0 : 1))) rest |= 1u << p;
    }
    const S* w_own = w + (j0 + row) * weight_j + k_own * weight_k;
    T sum[kLevelPasses][1], weight[kLevelPasses];
    const auto load = [&](int k0) {
      const int k = k0 + k_own;
      const int64_t column =
          Pass::kIsBackward ? state_column(k, H, Cell::kGates, Cell::kBlocks) : k;
#pragma unroll
      for (int p = 0; p < kLevelPasses; ++p) {
        const int block = 4 * p / kUnits - kNoProduct, of_block = 4 * p % kUnits;
        sum[p][0] = weight[p] = 0;
        if (k >= K) continue;
        if (block >= 0 && j0 + row + of_block < H)
          weight[p] = to_acc(w_own[(block * H + of_block) * weight_j + k0 * weight_k]);
        if (from[p] >= 0) sum[p][0] = to_acc(states[from[p] + column]);
        if (rest >> p & 1) {
          const LevelItem item = items[row + 4 * p];
          const int count = item.end - item.begin;
          sum[p][0] = pass.reduced(
              add(sum[p][0], item, item.begin + (from[p] >= 0), states, kStateBlocks * H, column),
              count);
          const int64_t row = item.b * a.D + d;
          pass.add_h0(unit, row, pass.entry(row), item.n, count == 0, k, sum[p]);
        }
        if (j0 == 0 && (there >> p & 1))
          pass.keep(unit, row_at(items[row + 4 * p]) * K + k, sum[p]);
      }
    };
    T acc[4][4] = {};
    load(0);
    for (int k0 = 0; k0 < K; k0 += kLevelDepth) {
#pragma unroll
      for (int p = 0; p < kLevelPasses; ++p) {
        sums[k_own * kLevelLd + row + 4 * p] = sum[p][0];
        weights[k_own * kLevelLd + row + 4 * p] = weight[p];
      }
      __syncthreads();
      load(k0 + kLevelDepth);
#pragma unroll 4
      for (int k = part * (kLevelDepth / kLevelParts); k < (part + 1) * (kLevelDepth / kLevelParts);
           ++k) {
        const Quad<T> s = *reinterpret_cast<const Quad<T>*>(sums + k * kLevelLd + m);
        const Quad<T> v = *reinterpret_cast<const Quad<T>*>(weights + k * kLevelLd + j);
#pragma unroll
        for (int x = 0; x < 4; ++x)
#pragma unroll
          for (int y = 0; y < 4; ++y) acc[x][y] += s.v[x] * v.v[y];
      }
      __syncthreads();
    }
#pragma unroll
    for (int x = 0; x < 4; ++x)
#pragma unroll
      for (int y = 0; y < 4; ++y) parts[(part * kLevelTile + m + x) * kLevelLd + j + y] = acc[x][y];
    __syncthreads();
    for (int e = thread; e < kLevelTile * kUnits; e += kLevelThreads) {
      const int own = e / kUnits, column = e % kUnits;
      const LevelItem item = items[own];
      if (item.n < 0 || j0 + column >= H) continue;
      T v[kBlocks] = {};
#pragma unroll
      for (int p = 0; p < kLevelParts; ++p)
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          v[b] += parts[(p * kLevelTile + own) * kLevelLd + b * kUnits + column];
      const bool is_off = a.mask && !a.mask[item.b * a.N + item.n];
      if constexpr (kIsGated) {
        const int count = item.end - item.begin;
        T m[1] = {pass.reduced(add(0, item, item.begin, pass.carried(), H, j0 + column), count)};
        if constexpr (!Pass::kIsBackward) {
          const int64_t row = item.b * a.D + d;
          pass.add_first(unit, pass.first_carried(), row, pass.entry(row), item.n, count == 0,
                         j0 + column, m);
        }
        const int64_t first = row_at(item) * H, j = j0 + column;
        const S* const bias = static_cast<const S*>(a.bias.first) + d * Cell::kBlocks * H + j;
        T values[Pass::kValues][1];
        pass.assemble(
            [&](int k, T(&to)[1]) {
              unit.load(pass.inputs() + first * Pass::kInputs + k * H + j, to);
            },
            [&](int k, T(&to)[1]) { to[0] = a.bias.first ? to_acc(bias[k * H]) : T(0); },
            [&](int k, T(&to)[1]) {
              to[0] = v[kNoProduct + k];
              if constexpr (Pass::kIsBackward)
                if (pass.to.dh) to[0] += to_acc(static_cast<const S*>(pass.to.dh)[first + j]);
            },
            values);
        pass.finish(unit, first, j, is_off, values, m);
      } else {
        const int64_t to = row_at(item) * H + j0 + column;
        T input[1] = {};
        if constexpr (Pass::kIsBackward) {
          if (pass.to.dh) v[0] += to_acc(static_cast<const S*>(pass.to.dh)[to]);
          if (!a.gate) unit.load(static_cast<const S*>(a.h) + to, input);
        } else {
          v[0] += to_acc(static_cast<const S*>(a.x)[to]);
          if (a.bias.first)
            v[0] += to_acc(static_cast<const S*>(a.bias.first)[d * H + j0 + column]);
        }
        pass.finish(unit, to, is_off, v, input);
      }
    }
    __syncthreads();
  }
}

}  // namespace

template <typename A, typename States>
void sweep_level(const A& a, const States& states, Dtype dtype, const Plan& plan, void* stream) {
  with_dtype(dtype, [&](auto s) {
    with_pass<decltype(s)>(a, states, [&](const auto& pass) {
      using Pass = std::decay_t<decltype(pass)>;
      for (int group = 0; group < a.program.G && a.B; ++group)
        launch_sweep("sweep_forward_level", "sweep_backward_level", sweep_level_kernel<Pass>, plan,
                     stream, LevelArgs<Pass>{pass, group});
    });
  });
}

STRNN_BOTH_PASSES(sweep_level);

}  // namespace strnn::cuda
