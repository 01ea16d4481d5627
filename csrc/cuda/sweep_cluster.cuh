// The sweep for wide states, bfloat16 and float16, on sm_90 and later: a thread-block cluster per
// (direction, tile of 8 or 16 rows of B), whose CTAs share the hidden units.
//
// A CTA keeps the rows of W (backward: columns) of its slice of at most kClusterSlice units in
// registers for the whole sweep, as the left operands of mma; the states are the right ones. The
// states of the slice lie in slots that only one thread reads and writes: thread t has row t / 16
// and four units of the tile. A chunk is up to `nodes` nodes of one group:
//
//   gather   sum of predecessors' states of the own slice, rounded to the storage type and written
//            to all CTAs of the cluster: sums [2][nodes][rows][ld]
//   -- barrier of the cluster (arrive, start the copies of the next chunk's inputs, wait)
//   product  of each node: a warp has 2 of 4 blocks of 16 units and every fourth block of k, and
//            writes its part of the sum to shared memory: parts [2][4][rows][68]
//   -- __syncthreads
//   finish   the four parts added in their order, then the pass's own: activation or gate, to the
//            slot and to global memory
//
// Two copies of the sums and of the parts make one barrier of the cluster per chunk and one of the
// CTA per node enough: who writes a copy again has passed a barrier that all its readers reached
// after reading. Peers write a CTA's memory only between its first and its last barrier, so none of
// them is late.
#pragma once
#include <cstring>
#include <type_traits>

#include "../common/sweep.h"
#include "activation.cuh"
#include "families.h"
#include "launch.cuh"
#include "planner.h"
#include "ptx.cuh"
#include "storage.cuh"
#include "sweep_kernel.cuh"

namespace strnn::cuda {

constexpr int kClusterQuads = kClusterThreads / kClusterRows;  // threads of a row: four units each
constexpr int kClusterParts = 4;                               // of a sum over k
constexpr int kClusterBlocks = 2;                              // of 16 units, of a warp
constexpr int kClusterFragments = kClusterBlocks * kClusterThreads;

struct ClusterSweep {
  Program program;
  int64_t B, N, D;
  int H, slice, nodes, rows;  // of a CTA's slice, of a chunk at most, of a tile: 8 or 16
  bool is_vector;             // rows of H may be read four units at a time
  ClusterLayout layout;
  const uint4* fragments;  // of W; see ClusterWeights
  const void* input0;      // (B, N, D, H) or null: zeros
  const void* input1;      // (B, N, D, H) or null
};

// W in the order in which the threads of the CTAs load it: [D][CTA][b][t][thread], the four
// registers of an operand a of mma. That of (b, t) covers units 16 (block + 2 b) of the CTA's slice
// and 16 (part + 4 t) of k, where warp = part + 4 block; zero outside W.
struct ClusterWeights {
  int64_t D, H;
  int size, slice, tiles;
  const void* from;  // element (j, k) of direction d at [d * H * H + j * step_j + k * step_k]
  int64_t step_j, step_k;
  uint4* to;

  __host__ __device__ int64_t count() const { return D * size * kClusterFragments * tiles; }
};

template <typename S>
__global__ void __launch_bounds__(kClusterThreads) cluster_weights_kernel(const ClusterWeights a) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kClusterThreads + threadIdx.x;
  if (e >= a.count()) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int fragments = static_cast<int>(blockIdx.x), t = fragments % a.tiles,
            b = fragments / a.tiles % kClusterBlocks,
            cta = fragments / (a.tiles * kClusterBlocks);  // of all directions
  const S* from = static_cast<const S*>(a.from) + cta / a.size * a.H * a.H;
  uint32_t pair[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int unit = 16 * (warp / kClusterParts + 2 * b) + lane / 4 + i % 2 * 8;
    const int j = cta % a.size * a.slice + unit;
    const int k = 16 * (warp % kClusterParts + kClusterParts * t) + lane % 4 * 2 + i / 2 * 8;
    S value[2] = {from_acc<S>(0.f), from_acc<S>(0.f)};
#pragma unroll
    for (int q = 0; q < 2; ++q)
      if (unit < a.slice && j < a.H && k + q < a.H)
        value[q] = from[j * a.step_j + (k + q) * a.step_k];
    std::memcpy(&pair[i], value, sizeof value);
  }
  a.to[e] = {pair[0], pair[1], pair[2], pair[3]};
}

template <typename S>
void arrange_weights(const ClusterWeights& a, void* stream) {
  launch("cluster_weights", cluster_weights_kernel<S>,
         dim3(static_cast<unsigned>(a.count() / kClusterThreads)), kClusterThreads, 0, stream, a);
}

// kTiles: blocks of 16 of k that a warp has at most, H <= 64 kTiles.
template <typename S, int kTiles>
struct ClusterTile {
  const ClusterSweep& a;
  int64_t b0;
  int d, rank, size, lane, part, block, r, quad, j;
  bool is_live;   // this thread's row is in B and its units are in H
  bool has_high;  // the tile has more than 8 rows
  S *sums, *staged, *slots;
  float* parts;
  uint32_t w[kClusterBlocks][kTiles][4];

  __device__ __forceinline__ ClusterTile(const ClusterSweep& args, Carver carver) : a(args) {
    sums = carver.take<S>(a.layout.sums);
    parts = carver.take<float>(a.layout.parts);
    staged = carver.take<S>(a.layout.staged);
    slots = carver.take<S>(a.layout.slots);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    lane = thread % 32, part = warp % kClusterParts, block = warp / kClusterParts;
    rank = static_cast<int>(cluster_rank()), size = static_cast<int>(cluster_size());
    d = static_cast<int>(blockIdx.y);
    b0 = static_cast<int64_t>(blockIdx.x / size) * a.rows;
    r = thread / kClusterQuads, quad = thread % kClusterQuads;
    j = rank * a.slice + 4 * quad;
    has_high = a.rows > 8 && b0 + 8 < a.B;
    is_live = b0 + r < a.B && r < a.rows && 4 * quad < a.slice && j < a.H;
    load_weights();
    for (int e = thread; e < a.layout.sums; e += kClusterThreads) sums[e] = from_acc<S>(0.f);
  }

  __device__ __forceinline__ void load_weights() {
    const uint4* from = a.fragments +
                        (static_cast<int64_t>(d) * size + rank) * kClusterFragments * kTiles +
                        static_cast<int>(threadIdx.x);
#pragma unroll
    for (int b = 0; b < kClusterBlocks; ++b)
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4 f = __ldg(from + (b * kTiles + t) * kClusterThreads);
        w[b][t][0] = f.x, w[b][t][1] = f.y, w[b][t][2] = f.z, w[b][t][3] = f.w;
      }
  }

  __device__ __forceinline__ int table(const int32_t* of, int64_t i) const { return __ldg(of + i); }
  __device__ __forceinline__ int64_t row(int n) const { return (b0 + r) * a.N + n; }
  // This thread's units of node n in a tensor (B, N, D, H).
  __device__ __forceinline__ int64_t at(int n) const { return (row(n) * a.D + d) * a.H + j; }

  __device__ __forceinline__ void unpack(const S* from, float (&v)[4]) const {
    const Four<S> four = *reinterpret_cast<const Four<S>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = to_acc(four.v[i]);
  }
  __device__ __forceinline__ Four<S> pack(const float (&v)[4]) const {
    Four<S> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.v[i] = from_acc<S>(v[i]);
    return four;
  }
  // Four units in global memory, which may be fewer at the end of a row and not aligned.
  __device__ __forceinline__ void load(const S* from, float (&v)[4]) const {
    if (a.is_vector) return unpack(from, v);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = j + i < a.H ? to_acc(from[i]) : 0.f;
  }
  __device__ __forceinline__ void store(S* to, const float (&v)[4]) const {
    if (a.is_vector) {
      *reinterpret_cast<Four<S>*>(to) = pack(v);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (j + i < a.H) to[i] = from_acc<S>(v[i]);
    }
  }
  // The thread's own places.
  __device__ __forceinline__ S* slot(int index) const {
    return slots + (index * kClusterThreads + static_cast<int>(threadIdx.x)) * 4;
  }
  __device__ __forceinline__ S* input(int half, int which, int m) const {
    return staged +
           (((half * 2 + which) * a.nodes + m) * kClusterThreads + static_cast<int>(threadIdx.x)) *
               4;
  }

  __device__ __forceinline__ Chunk first() const { return after({0, 0, 0}); }
  __device__ __forceinline__ Chunk after(const Chunk& c) const {
    return chunk_from(a.program, d, c.g, c.end, a.nodes);
  }

  // Starts the copies of the chunk's inputs.
  __device__ __forceinline__ void stage(const Chunk& c, int half) const {
    if (is_live)
      for (int i = c.begin; i < c.end; ++i) {
        const int64_t from = at(table(a.program.node, d * a.N + i));
        if (a.input0) copy(static_cast<const S*>(a.input0) + from, input(half, 0, i - c.begin));
        if (a.input1) copy(static_cast<const S*>(a.input1) + from, input(half, 1, i - c.begin));
      }
    cp_async_commit();
  }
  __device__ __forceinline__ void copy(const S* from, S* to) const {
    if (a.is_vector) return cp_async<8>(to, from);
    float v[4];
    load(from, v);
    *reinterpret_cast<Four<S>*>(to) = pack(v);
  }

  // Sums of the states of predecessors, plus extra(node, whether it has none, sum), to all CTAs of
  // the cluster; keep(node, sum) sees them.
  template <typename Extra, typename Keep>
  __device__ __forceinline__ void gather(const Chunk& c, int half, const Extra& extra,
                                         const Keep& keep) const {
    if (!is_live) return;
    for (int i = c.begin; i < c.end; ++i) {
      const int32_t* range = a.program.pred_ptr + d * (a.N + 1) + i;
      const int begin = table(range, 0), end = table(range, 1);
      const int n = table(a.program.node, d * a.N + i);
      float total[4] = {};
      for (int p = begin; p < end; ++p) {
        float state[4];
        unpack(slot(table(a.program.pred_slot, p)), state);
#pragma unroll
        for (int q = 0; q < 4; ++q) total[q] += state[q];
      }
      extra(n, begin == end, total);
      keep(n, total);
      const Four<S> four = pack(total);
      uint2 bits;
      std::memcpy(&bits, &four, sizeof bits);
      S* to = sums + ((half * a.nodes + i - c.begin) * kClusterRows + r) * a.layout.ld + j;
      // Each CTA begins with itself, so that not all write to the same one at once.
      for (int p = 0; p < size; ++p) store_cluster(to, (rank + p) & (size - 1), bits);
    }
  }

  __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&left)[4], uint32_t b0,
                                           uint32_t b1) const {
    if constexpr (std::is_same_v<S, __nv_bfloat16>)
      mma_bf16(d, left, b0, b1, d);
    else
      mma_f16(d, left, b0, b1, d);
  }

  // This warp's part of the product of W and the sums of node m of the chunk.
  __device__ __forceinline__ void product(int half, int m, float* to) const {
    float acc[kClusterBlocks][2][4] = {};
    // Matrices of an ldmatrix: rows 0 to 7 and k 0 to 7, k 8 to 15; rows 8 to 15 likewise.
    const S* from = sums +
                    ((half * a.nodes + m) * kClusterRows + lane % 8 + lane / 16 * 8) * a.layout.ld +
                    lane / 8 % 2 * 8;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int k = 16 * (part + kClusterParts * t);
      if (k >= a.H) break;
      uint32_t b[4];
      ldmatrix_x4(b, from + k);
#pragma unroll
      for (int u = 0; u < kClusterBlocks; ++u) {
        multiply(acc[u][0], w[u][t], b[0], b[1]);
        if (has_high) multiply(acc[u][1], w[u][t], b[2], b[3]);
      }
    }
#pragma unroll
    for (int u = 0; u < kClusterBlocks; ++u)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int item = 8 * h + lane % 4 * 2 + i % 2;
          const int unit = 16 * (block + 2 * u) + lane / 4 + i / 2 * 8;
          to[(part * kClusterRows + item) * kClusterLdParts + unit] = acc[u][h][i];
        }
  }

  __device__ __forceinline__ void add_parts(const float* from, float (&v)[4]) const {
#pragma unroll
    for (int p = 0; p < kClusterParts; ++p) {
      const Quad<float> q = *reinterpret_cast<const Quad<float>*>(
          from + (p * kClusterRows + r) * kClusterLdParts + 4 * quad);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = p ? v[i] + q.v[i] : q.v[i];
    }
  }
};

// What `finish` needs to know of a node besides the product; read before the product, which hides
// the latency.
struct ClusterNode {
  int n, slot;  // slot: -1 if nobody reads the state
  bool is_off;  // masked
};

// The chunk loop of a CTA; extra and keep as in gather, finish(node, input0, input1, sum) with the
// thread's places of the inputs.
template <typename Tile, typename Extra, typename Keep, typename Finish>
__device__ __forceinline__ void sweep_cluster(const Tile& tile, const uint8_t* mask,
                                              const Extra& extra, const Keep& keep,
                                              const Finish& finish) {
  const ClusterSweep& a = tile.a;
  constexpr int kParts = kClusterParts * kClusterRows * kClusterLdParts;
  Chunk now = tile.first();
  tile.stage(now, 0);
  cluster_arrive();
  cluster_wait();  // all CTAs of the cluster run, and their sums are zero
  int half = 0, turn = 0;
  while (!now.is_empty()) {
    tile.gather(now, half, extra, keep);
    cluster_arrive();
    const Chunk next = tile.after(now);
    tile.stage(next, half ^ 1);
    cluster_wait();
    for (int i = now.begin; i < now.end; ++i) {
      ClusterNode node{};
      if (tile.is_live) {
        const int64_t at = tile.d * a.N + i;
        node.n = tile.table(a.program.node, at);
        node.slot = tile.table(a.program.num_succ, at) ? tile.table(a.program.slot, at) : -1;
        node.is_off = mask && !mask[tile.row(node.n)];
      }
      float* parts = tile.parts + turn * kParts;
      tile.product(half, i - now.begin, parts);
      cp_async_wait<1>();  // the newest group is the next chunk's
      __syncthreads();
      if (tile.is_live) {
        float sum[4];
        tile.add_parts(parts, sum);
        finish(node, tile.input(half, 0, i - now.begin), tile.input(half, 1, i - now.begin), sum);
      }
      turn ^= 1;
    }
    now = next;
    half ^= 1;
  }
  cp_async_wait<0>();
}

// The part of the arguments that both passes have.
inline ClusterSweep cluster_sweep(const Program& program, int64_t B, int64_t H,
                                  const SweepSizes& sizes, const Plan& plan) {
  ClusterSweep sweep{};
  sweep.program = program;
  sweep.B = B, sweep.N = program.N, sweep.D = program.D;
  sweep.H = static_cast<int>(H);
  sweep.slice = static_cast<int>(cluster_slice(H, plan.cluster));
  sweep.nodes = plan.items / kClusterRows;
  sweep.rows = 1 << plan.rows_log2;
  sweep.layout = ClusterLayout::of(sizes, plan);
  return sweep;
}

// Whether rows of H elements can be read four at a time: of pointers that are null or aligned.
template <typename... Pointers>
bool are_quads(int64_t H, const Pointers*... pointers) {
  uintptr_t all = static_cast<uintptr_t>(H) % 4;
  ((all |= reinterpret_cast<uintptr_t>(pointers) % 16), ...);
  return all == 0;
}

// The instance of the kernels: blocks of k that a warp has room for.
inline int cluster_tiles(int64_t H) { return H <= 512 ? 8 : 16; }

inline ClusterWeights cluster_weights(int64_t D, int64_t H, const Plan& plan) {
  ClusterWeights w{};
  w.D = D, w.H = H, w.size = plan.cluster;
  w.slice = static_cast<int>(cluster_slice(H, plan.cluster));
  w.tiles = cluster_tiles(H);
  return w;
}

inline dim3 cluster_grid(const SweepSizes& z, const Plan& plan) {
  const int64_t rows = int64_t{1} << plan.rows_log2, tiles = (z.B + rows - 1) / rows;
  return dim3(static_cast<unsigned>(tiles * plan.cluster), static_cast<unsigned>(z.D));
}

template <typename F>
void with_cluster_tiles(int64_t H, const F& f) {
  if (cluster_tiles(H) == 8)
    f(std::integral_constant<int, 8>{});
  else
    f(std::integral_constant<int, 16>{});
}

}  // namespace strnn::cuda
