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
#pragma once
#include "../common/sweep.h"
#include "activation.cuh"
#include "launch.cuh"
#include "planner.h"
#include "ptx.cuh"
#include "storage.cuh"

namespace strnn::cuda {

constexpr int kLevelThreads = 256;
constexpr int kLevelQuads = kLevelTile / 4;
constexpr int kLevelParts = kLevelThreads / (kLevelQuads * kLevelQuads);
constexpr int kLevelRows = kLevelThreads / kLevelDepth;  // of a tile that are loaded at a time
constexpr int kLevelPasses = kLevelTile / kLevelRows;

struct LevelSweep {
  Program program;
  int64_t B, N, D;
  int H, group;
  const void*
      weights;  // element (j, k) of direction d at [d * H * H + j * weight_j + k * weight_k]
  int64_t weight_j, weight_k;
};

// A (node, row) pair; n < 0: beyond the last one.
struct LevelItem {
  int64_t b;
  int n, begin, end;  // range of its predecessors
};

// states: of the predecessors, (B, N, D, H); has_extra: whether extra(item, k) is to be added to
// their sum; keep(item, k, sum) sees it, once; finish(item, j, sum of products).
template <typename S, typename From, typename Extra, typename Keep, typename Finish>
__device__ __forceinline__ void sweep_level(const LevelSweep& a, Carver carver, const From* states,
                                            bool has_extra, const Extra& extra, const Keep& keep,
                                            const Finish& finish) {
  using T = acc_t<S>;
  T* sums = carver.take<T>(kLevelDepth * kLevelLd);     // [k][item]
  T* weights = carver.take<T>(kLevelDepth * kLevelLd);  // [k][unit]
  T* parts = carver.take<T>(kLevelParts * kLevelTile * kLevelLd);
  LevelItem* items = carver.take<LevelItem>(kLevelTile);

  const int thread = static_cast<int>(threadIdx.x), d = static_cast<int>(blockIdx.y), H = a.H;
  const int32_t* group = a.program.group_ptr + d * (a.program.G + 1) + a.group;
  const int first = __ldg(group);
  const unsigned B = static_cast<unsigned>(a.B), count = (__ldg(group + 1) - first) * B;
  const unsigned tiles_j = (H + kLevelTile - 1) / kLevelTile,
                 tiles = (count + kLevelTile - 1) / kLevelTile * tiles_j;
  const S* w = static_cast<const S*>(a.weights) + static_cast<int64_t>(d) * H * H;
  // Neighbouring lanes load four rows of eight k: full sectors of global memory, and no two lanes
  // meet in a bank when they store the transpose.
  const int row = thread % 4, k_own = thread / 4 % kLevelDepth;
  const int part = thread / (kLevelQuads * kLevelQuads), m = thread / kLevelQuads % kLevelQuads * 4,
            j = thread % kLevelQuads * 4;

  for (unsigned tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int j0 = static_cast<int>(tile % tiles_j) * kLevelTile;
    if (thread < kLevelTile) {
      const unsigned item = tile / tiles_j * kLevelTile + thread;
      LevelItem own{0, -1, 0, 0};
      if (item < count) {
        const int i = first + static_cast<int>(item / B);
        const int32_t* range = a.program.pred_ptr + d * (a.N + 1) + i;
        own = {item % B, __ldg(a.program.node + d * a.N + i), __ldg(range), __ldg(range + 1)};
      }
      items[thread] = own;
    }
    __syncthreads();

    // Of the items that this thread loads: the first predecessor, and bits for those that have more
    // to add and for those that exist.
    int64_t from[kLevelPasses];
    unsigned rest = 0, there = 0;
    const auto place = [&](const LevelItem& item, int p) {
      return ((item.b * a.N + __ldg(a.program.pred_node + p)) * a.D + d) * H;
    };
#pragma unroll
    for (int p = 0; p < kLevelPasses; ++p) {
      const LevelItem item = items[row + 4 * p];
      from[p] = item.begin < item.end ? place(item, item.begin) + k_own : -1;
      if (item.n >= 0) there |= 1u << p;
      if (item.n >= 0 && (has_extra || item.end - item.begin > 1)) rest |= 1u << p;
    }
    const S* w_own = w + (j0 + row) * a.weight_j + k_own * a.weight_k;
    T sum[kLevelPasses], weight[kLevelPasses];
    const auto load = [&](int k0) {
      const int k = k0 + k_own;
#pragma unroll
      for (int p = 0; p < kLevelPasses; ++p) {
        sum[p] = weight[p] = 0;
        if (k >= H) continue;
        if (j0 + row + 4 * p < H) weight[p] = to_acc(w_own[4 * p * a.weight_j + k0 * a.weight_k]);
        if (from[p] >= 0) sum[p] = to_acc(states[from[p] + k0]);
        if (rest >> p & 1) {
          const LevelItem item = items[row + 4 * p];
#pragma unroll 1  // seldom needed, and not eight times over
          for (int q = item.begin + 1; q < item.end; ++q)
            sum[p] += to_acc(states[place(item, q) + k]);
          if (has_extra) sum[p] += extra(item, k);
        }
        if (j0 == 0 && (there >> p & 1)) keep(items[row + 4 * p], k, sum[p]);
      }
    };
    T acc[4][4] = {};
    load(0);
    for (int k0 = 0; k0 < H; k0 += kLevelDepth) {
#pragma unroll
      for (int p = 0; p < kLevelPasses; ++p) {
        sums[k_own * kLevelLd + row + 4 * p] = sum[p];
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
    for (int e = thread; e < kLevelTile * kLevelTile; e += kLevelThreads) {
      const int at = e / kLevelTile, unit = e % kLevelTile;
      const LevelItem item = items[at];
      if (item.n < 0 || j0 + unit >= H) continue;
      T total = 0;
#pragma unroll
      for (int p = 0; p < kLevelParts; ++p) total += parts[(p * kLevelTile + at) * kLevelLd + unit];
      finish(item, j0 + unit, total);
    }
    __syncthreads();
  }
}

// One launch per group.
template <typename Kernel, typename Args>
void launch_levels(const char* name, Kernel kernel, Args f, const Plan& plan, void* stream) {
  LevelSweep& a = f.sweep;
  const dim3 grid(static_cast<unsigned>(plan.parts), static_cast<unsigned>(a.D));
  if (a.B == 0) return;
  for (a.group = 0; a.group < a.program.G; ++a.group)
    launch(name, kernel, grid, kLevelThreads, plan.shared_bytes, stream, f);
}

}  // namespace strnn::cuda
