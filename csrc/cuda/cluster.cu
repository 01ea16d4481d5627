// The sweep for wide states, bfloat16 and float16, on sm_90 and later: a thread-block cluster per
// (direction, tile of 8 or 16 rows of B), whose CTAs share the hidden units.
//
// A CTA keeps the rows of W (backward: columns) of its slice of at most kClusterSlice units in
// registers for the whole sweep, as the left operands of mma; the states are the right ones. The
// states of the slice lie in slots that only one thread reads and writes: thread t has row t / 16
// and four units of the tile. A chunk is up to `nodes` nodes of one group:
//
//   gather   sum of predecessors' states of the own slice, rounded to the storage type and sent to
//            all CTAs of the cluster (st.async): sums [2][nodes][rows][ld]
//   -- start the copies of the next chunk's inputs; mbarrier of the half: all sums are there
//   product  of each node: a warp has 2 of 4 blocks of 16 units and every fourth block of k, and
//            writes its part of the sum to shared memory: parts [2][4][rows][68]
//   -- __syncthreads
//   finish   the four parts added in their order, then the pass's own: activation or gate, to the
//            slot and to global memory
//
// The sums have two halves, each with an mbarrier of which a chunk is a phase. Who sends sums of
// chunk c + 2 has all of chunk c + 1, which each CTA sends behind the __syncthreads that ends its
// products of chunk c: nobody reads that half any more, and all have waited for its phase. For this
// each CTA sends to each in every chunk, nodes masked or not: the first row of a tile is in B, and
// CTAs without units (rank * slice >= H) leave at once and are sent nothing. A CTA exits with all
// sums of the last chunk, after which nobody sends any. Two copies of the parts make one
// __syncthreads per node enough: who writes a copy again has passed one behind all that read it.
//
// Predicted, not measured (H200 at 1.98 GHz), a step of a chain with H = 1024 and 16 rows in 16
// CTAs: 690 instructions (PTX) of each of 8 warps, two to a scheduler, which issues 0.35 to 0.5 a
// cycle with so few: 1.4 to 2.0 us, beside 0.40 us of the tensor cores (at 62 % of their peak) and
// 0.50 us in which 32 KB of sums come into each CTA. With a barrier of the cluster instead, 0.6 to
// 1 us more: its fences wait for the stores of h, and empty L1. T = 512, B = 64, both directions
// are 8 clusters, 128 SMs: 0.7 to 1.0 ms if all run at once, against 0.14 ms of arithmetic at the
// peak and 0.06 ms of u and h at 4.8 TB/s. H = 512 in 8 CTAs, 8 rows: 370 instructions, 0.7 to 1.1
// us. Backward likewise, since one product with W^T per node is all there is in its chain. A gate
// and what it was applied to are read where they are needed: their latency is in each step.
#include <type_traits>

#include "launch.cuh"
#include "mma.cuh"
#include "pass.cuh"
#include "planner.h"
#include "ptx.cuh"

namespace strnn::cuda {
namespace {

constexpr int kClusterQuads = kClusterThreads / kClusterRows;  // threads of a row: four units each
constexpr int kClusterParts = 4;                               // of a sum over k
constexpr int kClusterBlocks = 2;                              // of 16 units, of a warp

// Consecutive nodes of one group, at most as many as a chunk has.
struct Chunk {
  int g, begin, end;  // group, positions

  __device__ __forceinline__ bool is_empty() const { return begin >= end; }
};

template <typename Pass>
struct ClusterArgs {
  Pass pass;
  int slice, nodes, rows;  // units of a CTA; nodes of a chunk at most; rows of a tile: 8 or 16
  bool is_vector;          // rows of H may be read four units at a time
  ClusterLayout layout;
};

// kTiles: blocks of 16 of k that a warp has at most, H <= 64 kTiles.
template <typename Pass, int kTiles>
struct ClusterTile {
  using S = typename Pass::Storage;
  using Core = TensorCore<S>;
  const ClusterArgs<Pass>& f;
  const decltype(Pass::a)& a;
  int64_t b0;
  int d, rank, size, lane, part, block, r, quad, j, entry;
  bool is_live;   // this thread's row is in B and its units are in H
  bool has_high;  // the tile has more than 8 rows
  uint64_t* barriers;
  S *sums, *staged, *slots;
  float* parts;
  uint32_t w[kClusterBlocks][kTiles][4];

  __device__ __forceinline__ ClusterTile(const ClusterArgs<Pass>& args, unsigned char* raw)
      : f(args), a(args.pass.a) {
    barriers = array_at<uint64_t>(raw, f.layout.barriers);
    sums = array_at<S>(raw, f.layout.sums);
    parts = array_at<float>(raw, f.layout.parts);
    staged = array_at<S>(raw, f.layout.staged);
    slots = array_at<S>(raw, f.layout.slots);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    lane = thread % 32, part = warp % kClusterParts, block = warp / kClusterParts;
    rank = static_cast<int>(cluster_rank());
    size = static_cast<int>((a.H + f.slice - 1) / f.slice);
    d = static_cast<int>(blockIdx.y);
    b0 = static_cast<int64_t>(blockIdx.x / cluster_size()) * f.rows;
    r = thread / kClusterQuads, quad = thread % kClusterQuads;
    j = rank * f.slice + 4 * quad;
    has_high = f.rows > 8 && b0 + 8 < a.B;
    is_live = b0 + r < a.B && r < f.rows && 4 * quad < f.slice && j < a.H;
    entry = is_live ? f.pass.entry((b0 + r) * a.D + d) : -1;
    if (f.is_vector)
      load_weights<true>();
    else
      load_weights<false>();
    for (int e = thread; e < 2 * f.nodes * kClusterRows * f.layout.ld; e += kClusterThreads)
      sums[e] = from_acc<S>(0.f);
    if (thread == 0) mbarrier_init(barriers), mbarrier_init(barriers + 1);
  }

  // W as left operands: units 16 (block + 2 b) of the slice and 16 (part + 4 t) of k, in matrices
  // of 8 x 8; zero outside W. Backward, rows of W are read as columns and transposed.
  template <bool kIsVector>
  __device__ __forceinline__ void load_weights() {
    const int H = static_cast<int>(a.H);
    const int unit = rank * f.slice + 16 * block, k = 16 * part;
    int row = (Pass::kIsBackward ? k : unit) + lane / 4,
        column = (Pass::kIsBackward ? unit : k) + lane % 4 * 2;
    const S* from = static_cast<const S*>(a.w_hh.first) + d * a.H * a.H + row * a.H + column;
#pragma unroll
    for (int e = 0; e < kClusterBlocks * kTiles * 4; ++e) {
      const int b = e / (4 * kTiles), t = e / 4 % kTiles, i = e % 4;
      if (e % 16 == 0)  // or too many loads are under way for the registers
        from = keep(from), row = keep(row), column = keep(column);
      const int units = 32 * b + i % 2 * 8, ks = 64 * t + i / 2 * 8;
      const int down = Pass::kIsBackward ? ks : units, right = Pass::kIsBackward ? units : ks;
      const S* const at = from + down * H + right;
      uint32_t pair = 0;
      if constexpr (kIsVector) {
        if (row + down < H && column + right < H)
          pair = __ldg(reinterpret_cast<const uint32_t*>(at));
      } else {
        const auto* const halves = reinterpret_cast<const uint16_t*>(at);
#pragma unroll
        for (int q = 0; q < 2; ++q)
          if (row + down < H && column + right + q < H) pair |= __ldg(halves + q) << 16 * q;
      }
      w[b][t][i] = Pass::kIsBackward ? transpose_8x8(pair) : keep(pair);
    }
  }

  __device__ __forceinline__ int table(const int32_t* of, int64_t i) const { return __ldg(of + i); }
  __device__ __forceinline__ int64_t row(int n) const { return (b0 + r) * a.N + n; }
  // This thread's units of node n in a tensor (B, N, D, H).
  __device__ __forceinline__ int64_t at(int n) const { return (row(n) * a.D + d) * a.H + j; }

  // Four units in global memory, which may be fewer at the end of a row and not aligned.
  __device__ __forceinline__ void load(const S* from, float (&v)[4]) const {
    if (f.is_vector) return Core::values(Core::load(from), v);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = j + i < a.H ? to_acc(from[i]) : 0.f;
  }
  __device__ __forceinline__ void store(S* to, const float (&v)[4]) const {
    if (f.is_vector) {
      put(to, Core::piece(v));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (j + i < a.H) to[i] = from_acc<S>(v[i]);
    }
  }
  static __device__ __forceinline__ void put(S* to, const typename Core::Piece& four) {
    *reinterpret_cast<typename Core::Piece*>(to) = four;
  }
  // The thread's own places.
  __device__ __forceinline__ S* slot(int index) const {
    return slots + (index * kClusterThreads + static_cast<int>(threadIdx.x)) * 4;
  }
  __device__ __forceinline__ S* input(int half, int which, int m) const {
    return staged +
           (((half * 2 + which) * f.nodes + m) * kClusterThreads + static_cast<int>(threadIdx.x)) *
               4;
  }

  // u, or dh if there is one.
  __device__ __forceinline__ bool has_input() const {
    if constexpr (Pass::kIsBackward) return f.pass.to.dh != nullptr;
    return true;
  }

  __device__ __forceinline__ Chunk first() const { return after({0, 0, 0}); }
  __device__ __forceinline__ Chunk after(const Chunk& c) const {
    const int32_t* group = a.program.group_ptr + d * (a.program.G + 1);
    if (c.end >= a.N) return {c.g, 0, 0};
    int g = c.g;
    while (table(group, g + 1) <= c.end) ++g;
    return {g, c.end, min(table(group, g + 1), c.end + f.nodes)};
  }

  // Starts the copies of the chunk's inputs.
  __device__ __forceinline__ void stage(const Chunk& c, int half) const {
    if (is_live)
      for (int i = c.begin; i < c.end; ++i) {
        const int64_t from = at(table(a.program.node, d * a.N + i));
        const auto copy_of = [&](const void* array, int which) {
          if (array) copy(static_cast<const S*>(array) + from, input(half, which, i - c.begin));
        };
        if constexpr (Pass::kIsBackward)
          copy_of(f.pass.to.dh, 0), copy_of(a.h, 1);
        else
          copy_of(a.x, 0);
      }
    cp_async_commit();
  }
  __device__ __forceinline__ void copy(const S* from, S* to) const {
    if (f.is_vector) return cp_async<8>(to, from);
    float v[4];
    load(from, v);
    put(to, Core::piece(v));
  }

  // The bytes that the chunk brings: of each node and row, all quads of units.
  __device__ __forceinline__ void expect(const Chunk& c, int half) const {
    static_assert(2 * kClusterMaxNodes * kClusterRows * kClusterMaxH < 1 << 20);  // can be counted
    const int rows = static_cast<int>(min(a.B - b0, int64_t{f.rows}));
    const int quads = static_cast<int>(a.H + 3) / 4;
    if (threadIdx.x == 0) mbarrier_expect(barriers + half, 8 * quads * rows * (c.end - c.begin));
  }
  // Sums of the states of predecessors to all CTAs of the cluster.
  __device__ __forceinline__ void gather(const Chunk& c, int half) const {
    if (!is_live) return;
    for (int i = c.begin; i < c.end; ++i) {
      const int32_t* range = a.program.pred_ptr + d * (a.N + 1) + i;
      const int begin = table(range, 0), end = table(range, 1);
      const int n = table(a.program.node, d * a.N + i);
      float total[4] = {};
      for (int p = begin; p < end; ++p) {
        float state[4];
        Core::values(Core::load(slot(table(a.program.pred_slot, p))), state);
#pragma unroll
        for (int q = 0; q < 4; ++q) total[q] += state[q];
      }
      f.pass.add_h0(*this, (b0 + r) * a.D + d, entry, n, begin == end, j, total);
      f.pass.keep(*this, at(n), total);
      const typename Core::Piece four = Core::piece(total);
      S* to = sums + ((half * f.nodes + i - c.begin) * kClusterRows + r) * f.layout.ld + j;
      // Each CTA begins with itself, so that not all write to the same one at once.
      for (int p = 0, peer = rank; p < size; ++p, peer = peer + 1 < size ? peer + 1 : 0)
        send(to, barriers + half, peer, {four.w[0], four.w[1]});
    }
  }

  // This warp's part of the product of W and the sums of node m of the chunk.
  __device__ __forceinline__ void product(int half, int m, float* to) const {
    float acc[kClusterBlocks][2][4] = {};
    // Matrices of an ldmatrix: rows 0 to 7 and k 0 to 7, k 8 to 15; rows 8 to 15 likewise.
    const S* from = sums +
                    ((half * f.nodes + m) * kClusterRows + lane % 8 + lane / 16 * 8) * f.layout.ld +
                    lane / 8 % 2 * 8;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int k = 16 * (part + kClusterParts * t);
      if (k >= a.H) break;
      uint32_t b[4];
      ldmatrix_x4(b, from + k);
#pragma unroll
      for (int u = 0; u < kClusterBlocks; ++u) {
        mma(acc[u][0], w[u][t], b[0], b[1], acc[u][0], S{});
        if (has_high) mma(acc[u][1], w[u][t], b[2], b[3], acc[u][1], S{});
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

template <typename Pass, int kTiles>
__global__ void __launch_bounds__(kClusterThreads, kTiles == 8 ? 2 : 1)
    sweep_cluster_kernel(const ClusterArgs<Pass> f) {
#if STRNN_HAS_CLUSTERS
  STRNN_DYNAMIC_SHARED(raw);
  using Tile = ClusterTile<Pass, kTiles>;
  const auto& a = f.pass.a;
  if (cluster_rank() * f.slice >= a.H) return;
  const Tile tile(f, raw);
  constexpr int kParts = kClusterParts * kClusterRows * kClusterLdParts;
  float bias[4] = {};
  if (!Pass::kIsBackward && a.bias.first && tile.is_live)
    tile.load(static_cast<const typename Pass::Storage*>(a.bias.first) + tile.d * a.H + tile.j,
              bias);
  Chunk now = tile.first();
  tile.stage(now, 0);
  cluster_sync();  // all CTAs run, their sums are zero and their mbarriers are there
  int half = 0, parity = 0, turn = 0;
  while (!now.is_empty()) {
    tile.expect(now, half);
    tile.gather(now, half);
    const Chunk next = tile.after(now);
    tile.stage(next, half ^ 1);
    mbarrier_wait(tile.barriers + half, parity);
    for (int i = now.begin; i < now.end; ++i) {
      ClusterNode node{};
      if (tile.is_live) {
        const int64_t at = tile.d * a.N + i;
        node.n = tile.table(a.program.node, at);
        node.slot = tile.table(a.program.num_succ, at) ? tile.table(a.program.slot, at) : -1;
        node.is_off = a.mask && !a.mask[tile.row(node.n)];
      }
      float* parts = tile.parts + turn * kParts;
      tile.product(half, i - now.begin, parts);
      cp_async_wait<1>();  // the newest group is the next chunk's
      __syncthreads();
      if (tile.is_live) {
        float v[4], input[2][4];
        tile.add_parts(parts, v);
#pragma unroll
        for (int which = 0; which <= Pass::kIsBackward; ++which)
          Tile::Core::values(Tile::Core::load(tile.input(half, which, i - now.begin)),
                             input[which]);
        if (tile.has_input())
#pragma unroll
          for (int q = 0; q < 4; ++q) v[q] += input[0][q] + bias[q];
        f.pass.finish(tile, tile.at(node.n), node.is_off, v, input[Pass::kIsBackward]);
        if (node.slot >= 0) Tile::put(tile.slot(node.slot), Tile::Core::piece(v));
      }
      turn ^= 1;
    }
    now = next;
    parity ^= half, half ^= 1;
  }
  cp_async_wait<0>();
#endif
}

}  // namespace

int64_t max_cluster() {
  const auto kernel = sweep_cluster_kernel<Forward<__nv_bfloat16>, 16>;
  const auto check = [](cudaError_t error) {
    check_launch(error, "sweep_forward_cluster", dim3(kMaxCluster), kClusterThreads, 0,
                 kMaxCluster);
  };
  // Compiled for an older architecture, and now for this one from that code, the kernel is empty.
  cudaFuncAttributes compiled{};
  check(cudaFuncGetAttributes(&compiled, kernel));
  if (compiled.ptxVersion < 90) return 0;
  int size = 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kMaxCluster), config.blockDim = dim3(kClusterThreads);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  check(cudaOccupancyMaxPotentialClusterSize(&size, kernel, &config));
  return size;
}

std::array<int64_t, 4> active_clusters(const Device& device) {
  const auto kernel = sweep_cluster_kernel<Forward<__nv_bfloat16>, 16>;
  // All the shared memory of an SM, so that no other CTA is there.
  const int shared = static_cast<int>(device.shared_per_block);
  std::array<int64_t, 4> found{};
  for (int i = 0, size = 2; size <= device.max_cluster; ++i, size *= 2) {
    const auto check = [&](cudaError_t error) {
      check_launch(error, "sweep_forward_cluster", dim3(size), kClusterThreads, shared, size);
    };
    int count = 0;
    const ClusterLaunch launch(dim3(size), kClusterThreads, shared, size);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config));
    found[i] = count;
  }
  return found;
}

template <typename A, typename States>
void sweep_cluster(const A& a, const States& states, Dtype dtype, const Plan& plan, void* stream) {
  with_16_bits(dtype, [&](auto s) {
    with_pass<decltype(s)>(a, states, [&](const auto& pass) {
      using Pass = std::decay_t<decltype(pass)>;
      if constexpr (Pass::Cell::kBlocks == 1) {
        const ClusterPlan& c = std::get<ClusterPlan>(plan.kind);
        uintptr_t all = reinterpret_cast<uintptr_t>(a.w_hh.first) % 16 | a.H % 4;
        for (const void* array : pass.arrays()) all |= reinterpret_cast<uintptr_t>(array) % 16;
        const ClusterArgs<Pass> f{pass,     static_cast<int>(cluster_slice(a.H, c.size)),
                                  c.nodes,  c.rows,
                                  all == 0, c.layout};
        launch_sweep("sweep_forward_cluster", "sweep_backward_cluster",
                     a.H <= 512 ? sweep_cluster_kernel<Pass, 8> : sweep_cluster_kernel<Pass, 16>,
                     plan, stream, f, c.size);
      }
    });
  });
}

STRNN_BOTH_PASSES(sweep_cluster);

}  // namespace strnn::cuda
