// The sweep and its derivative on a GPU, general family: any topology, any H, any dtype.
//
// A CTA is (tile of rows of B, direction). It visits the nodes in the order of the sweep program,
// in chunks of nodes of one group, which do not depend on each other. An item is a (node, row) pair
// of the chunk; for each chunk:
//
//   stage   the next chunk's inputs on their way to shared memory (cp.async)          input
//   [2][items][width] gather  sum = sum of predecessors' states, from their slots sum   [items][ld]
//   -- barrier: the sums and this chunk's inputs are there, all slots of the chunk have been read
//   product out = sum W^T (a thread: one hidden unit of kItemsPerThread items)
//   finish  the pass's own: activation or gate, to the slot and to global memory      slots
//   [S][rows][H]
//   -- barrier: the slots are there
//
// A slot freed by a node may be taken by a later one of the same group, so no slot is written
// before the first barrier, and a node whose state nobody reads does not write its slot at all.
// Where weights or slots do not fit shared memory they lie in global memory (kWeightsShared,
// kSlotsShared); weights then [k][j], so that neighbouring lanes read neighbouring addresses.
#pragma once
#include "../common/sweep.h"
#include "activation.cuh"
#include "launch.cuh"
#include "planner.h"
#include "ptx.cuh"
#include "storage.cuh"

namespace strnn::cuda {

constexpr int kSweepThreads = 256;
constexpr int kSweepBlocks = 2;  // per SM at least: 128 registers; without it the compiler spills a
                                 // few to make room for more

// What both passes give to the chunk loop.
struct GeneralSweep {
  Program program;
  int64_t B, N, D;
  int H, C, K;  // C = 0: no fused input product in this pass
  int rows_log2, items;
  int64_t ld_sum, ld_weights;
  GeneralLayout layout;
  const void*
      weights;  // element (k, j) of direction d at [d * H * H + k * weight_k + j * weight_j]
  int64_t weight_k, weight_j;
  const void* input_weights;  // element (c, j) of direction d at [d * H * C + c * input_weight_c +
                              // j * input_weight_j]
  int64_t input_weight_c, input_weight_j;
  const void* input0;  // (B, N, C) if C, else (B, N, D, H), or null: zeros
  const void* input1;  // (B, N, D, H) or null
  void* slots;         // [CTA][S][rows][H] in global memory, unless they are shared
};

// Consecutive nodes of one group, at most as many as make `items` items.
struct Chunk {
  int g, begin, end;  // group, positions

  __device__ __forceinline__ bool is_empty() const { return begin >= end; }
};

// The chunk of direction d that starts at position `begin`, in group g or a later one.
__device__ __forceinline__ Chunk chunk_from(const Program& program, int d, int g, int begin,
                                            int most_nodes) {
  const int32_t* group = program.group_ptr + d * (program.G + 1);
  if (begin >= program.N) return {g, 0, 0};
  while (__ldg(group + g + 1) <= begin) ++g;
  const int end = __ldg(group + g + 1), most = begin + most_nodes;
  return {g, begin, end < most ? end : most};
}

template <typename S, bool kWeightsShared, bool kSlotsShared>
struct GeneralTile {
  using T = acc_t<S>;
  const GeneralSweep& a;
  int64_t b0, tile_rows;
  int d, rows, count0, count1;
  const S* weights;        // [H][ld]
  const S* input_weights;  // [C][ld]
  T* sum;
  S *input0, *input1;
  T *slots, *state, *projected;

  __device__ __forceinline__ GeneralTile(const GeneralSweep& args, Carver carver) : a(args) {
    d = blockIdx.y;
    rows = 1 << a.rows_log2;
    b0 = static_cast<int64_t>(blockIdx.x) << a.rows_log2;
    tile_rows = a.B - b0 < rows ? a.B - b0 : rows;
    S* shared_weights = carver.take<S>(a.layout.weights);
    sum = carver.take<T>(a.layout.sum);
    input0 = carver.take<S>(a.layout.input0);
    input1 = carver.take<S>(a.layout.input1);
    T* shared_slots = carver.take<T>(a.layout.slots);
    state = carver.take<T>(a.layout.state);
    projected = carver.take<T>(a.layout.projected);
    count0 = a.C ? a.C : a.H, count1 = a.H;
    if constexpr (kSlotsShared)
      slots = shared_slots;
    else
      slots = static_cast<T*>(a.slots) +
              (static_cast<int64_t>(d) * gridDim.x + blockIdx.x) * a.program.S * rows * a.H;
    const S* w = static_cast<const S*>(a.weights) + static_cast<int64_t>(d) * a.H * a.H;
    const S* u = static_cast<const S*>(a.input_weights) + static_cast<int64_t>(d) * a.H * a.C;
    if constexpr (kWeightsShared) {
      weights = shared_weights;
      input_weights = shared_weights + a.H * a.ld_weights;
      load_weights(w, a.H, a.weight_k, a.weight_j, shared_weights);
      if (a.C)
        load_weights(u, a.C, a.input_weight_c, a.input_weight_j,
                     shared_weights + a.H * a.ld_weights);
    } else {
      weights = w, input_weights = u;
    }
  }

  __device__ __forceinline__ void load_weights(const S* from, int num_k, int64_t k_step,
                                               int64_t j_step, S* to) const {
    for (int e = threadIdx.x; e < num_k * a.H; e += blockDim.x) {
      const int k = k_step == 1 ? e % num_k : e / a.H, j = k_step == 1 ? e / num_k : e % a.H;
      to[k * a.ld_weights + j] = from[k * k_step + j * j_step];
    }
  }

  __device__ __forceinline__ int table(const int32_t* of, int64_t i) const { return __ldg(of + i); }
  __device__ __forceinline__ int node(int i) const { return table(a.program.node, d * a.N + i); }
  __device__ __forceinline__ bool has_successors(int i) const {
    return table(a.program.num_succ, d * a.N + i) != 0;
  }
  __device__ __forceinline__ T* slot(int index, int r) const {
    return slots + (static_cast<int64_t>(index) * rows + r) * a.H;
  }
  __device__ __forceinline__ int64_t row(int r, int n) const { return (b0 + r) * a.N + n; }
  __device__ __forceinline__ int64_t state_row(int r, int n) const {
    return (row(r, n) * a.D + d) * a.H;
  }

  __device__ __forceinline__ Chunk first() const { return chunk(0, 0); }
  __device__ __forceinline__ Chunk after(const Chunk& c) const { return chunk(c.g, c.end); }
  __device__ __forceinline__ Chunk chunk(int g, int begin) const {
    return chunk_from(a.program, d, g, begin, a.items >> a.rows_log2);
  }

  // Starts the copies of the chunk's inputs into their half of the buffers.
  __device__ __forceinline__ void stage(const Chunk& c, int half) const {
    if (!c.is_empty()) {
      if (a.input0)
        copy_rows(c, static_cast<const S*>(a.input0), count0, a.C != 0,
                  input0 + half * a.items * count0);
      if (a.input1)
        copy_rows(c, static_cast<const S*>(a.input1), count1, false,
                  input1 + half * a.items * count1);
    }
    cp_async_commit();
  }

  __device__ __forceinline__ void copy_rows(const Chunk& c, const S* from, int width,
                                            bool is_shared_by_directions, S* to) const {
    const int bytes = width * static_cast<int>(sizeof(S));
    const int unaligned = static_cast<int>(reinterpret_cast<uintptr_t>(from) | bytes);
    if (unaligned % 16 == 0)
      copy_row_parts<16>(c, from, width, is_shared_by_directions, to);
    else if (unaligned % 8 == 0)
      copy_row_parts<8>(c, from, width, is_shared_by_directions, to);
    else if (unaligned % 4 == 0)
      copy_row_parts<4>(c, from, width, is_shared_by_directions, to);
    else
      copy_row_parts<static_cast<int>(sizeof(S))>(c, from, width, is_shared_by_directions, to);
  }

  template <int kBytes>
  __device__ __forceinline__ void copy_row_parts(const Chunk& c, const S* from, int width,
                                                 bool is_shared_by_directions, S* to) const {
    constexpr int kStep =
        kBytes / static_cast<int>(sizeof(S)) > 0 ? kBytes / static_cast<int>(sizeof(S)) : 1;
    const int parts = width / kStep, items = (c.end - c.begin) << a.rows_log2;
    for (int e = threadIdx.x; e < items * parts; e += blockDim.x) {
      const int item = e / parts, j = e % parts * kStep, r = item & (rows - 1);
      if (r >= tile_rows) continue;
      const int n = node(c.begin + (item >> a.rows_log2));
      const int64_t at =
          is_shared_by_directions ? row(r, n) * width : (row(r, n) * a.D + d) * width;
      if constexpr (kBytes >= 4 && kBytes >= static_cast<int>(sizeof(S)))
        cp_async<kBytes>(to + item * width + j, from + at + j);
      else
        to[item * width + j] = from[at + j];
    }
  }

  // sum[item] = sum of the states of the item's predecessors + extra(position, row, j); kept(item's
  // global row, j, value) sees it.
  template <typename Extra, typename Keep>
  __device__ __forceinline__ void gather(const Chunk& c, const Extra& extra,
                                         const Keep& keep) const {
    const int items = (c.end - c.begin) << a.rows_log2;
    for (int e = threadIdx.x; e < items * a.H; e += blockDim.x) {
      const int item = e / a.H, j = e - item * a.H, r = item & (rows - 1),
                i = c.begin + (item >> a.rows_log2);
      T total = 0;
      if (r < tile_rows) {
        const int32_t* range = a.program.pred_ptr + d * (a.N + 1) + i;
        const int begin = table(range, 0), end = table(range, 1);
        for (int p = begin; p < end; ++p) total += slot(table(a.program.pred_slot, p), r)[j];
        total += extra(i, begin == end, r, j);
        keep(i, r, j, total);
      }
      sum[item * a.ld_sum + j] = total;
    }
  }

  // finish(position, item, row, j, sum W^T + x U^T) for every item of the chunk.
  template <typename Finish>
  __device__ __forceinline__ void product(const Chunk& c, int half, const Finish& finish) const {
    const int items = (c.end - c.begin) << a.rows_log2, H = a.H;
    const int units = (items + kItemsPerThread - 1) / kItemsPerThread * H;
    const int64_t ld = kWeightsShared ? a.ld_weights : H;
    for (int e = threadIdx.x; e < units; e += blockDim.x) {
      const int first = e / H * kItemsPerThread, j = e % H;
      int item[kItemsPerThread];
      T acc[kItemsPerThread];
#pragma unroll
      for (int q = 0; q < kItemsPerThread; ++q) {
        item[q] = first + q < items ? first + q : items - 1;
        acc[q] = 0;
      }
      const S* w = weights + j;
      int k = 0;
#pragma unroll 2
      for (; k + 4 <= H; k += 4) {
        T wk[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) wk[i] = to_acc(w[(k + i) * ld]);
#pragma unroll
        for (int q = 0; q < kItemsPerThread; ++q) {
          const Quad<T> s = *reinterpret_cast<const Quad<T>*>(sum + item[q] * a.ld_sum + k);
#pragma unroll
          for (int i = 0; i < 4; ++i) acc[q] += wk[i] * s.v[i];
        }
      }
      for (; k < H; ++k) {
        const T wk = to_acc(w[k * ld]);
#pragma unroll
        for (int q = 0; q < kItemsPerThread; ++q) acc[q] += wk * sum[item[q] * a.ld_sum + k];
      }
      for (int i = 0; i < a.C; ++i) {
        const T wc = to_acc(input_weights[i * ld + j]);
#pragma unroll
        for (int q = 0; q < kItemsPerThread; ++q)
          if ((item[q] & (rows - 1)) < tile_rows)
            acc[q] += wc * to_acc(input0[(half * a.items + item[q]) * a.C + i]);
      }
#pragma unroll
      for (int q = 0; q < kItemsPerThread; ++q) {
        const int r = (first + q) & (rows - 1);
        if (first + q < items && r < tile_rows)
          finish(c.begin + ((first + q) >> a.rows_log2), first + q, r, j, acc[q]);
      }
    }
  }
};

// The chunk loop, with extra, keep and finish as above; after(chunk) runs between two products.
template <typename Tile, typename Extra, typename Keep, typename Finish, typename After>
__device__ __forceinline__ void sweep_tile(const Tile& tile, const Extra& extra, const Keep& keep,
                                           const Finish& finish, const After& after) {
  Chunk now = tile.first();
  int half = 0;
  tile.stage(now, half);
  while (!now.is_empty()) {
    const Chunk next = tile.after(now);
    tile.stage(next, half ^ 1);
    tile.gather(now, extra, keep);
    cp_async_wait<1>();  // the newest group is the next chunk's
    __syncthreads();
    tile.product(now, half, [&](int i, int item, int r, int j, auto acc) {
      finish(i, item, r, j, half, acc);
    });
    __syncthreads();
    after(now);
    now = next;
    half ^= 1;
  }
  cp_async_wait<0>();
}

template <typename F>
void with_bool(bool value, const F& f) {
  if (value)
    f(std::true_type{});
  else
    f(std::false_type{});
}

}  // namespace strnn::cuda
