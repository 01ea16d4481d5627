// Sums of products outside the serial chain: out[z][m][n] = sum_k a[z][m,k] b[z][k,n], any strides,
// in parts of k that are added up in their order (bitwise repeatable). All gradients of weights, dx
// and dh0 go through it.
//
// One CTA per (tile of 32 x 32 outputs, part, z); 256 threads with 2 x 2 outputs each; 32 steps of
// k at a time through shared memory. Predicted (not measured): fma-bound at about a third of the
// float32 peak, since each pair of fma needs one load from shared memory.
//
// Where both operands are of 16 bits: tiles of 64 x 64 on tensor cores, 4 warps with 32 x 32
// outputs each. A step of 32 k is 64 mma, 32 ldmatrix and 8 loads of 16 bytes per thread (2 bytes
// where rows are not aligned). Predicted (not measured): a third of the tensor peak or the memory's
// bandwidth, whichever is less.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../common/sweep.h"
#include "launch.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "storage.cuh"

namespace strnn::cuda {

constexpr int kGemmTile = 32;
constexpr int kGemmThreads = 256;
constexpr int kGemmLd =
    kGemmTile +
    1;  // a tile is written along either axis: odd, so that neither meets bank conflicts

// Element (i, k) of batch z at data[i * step + k_hi * hi + k_lo * lo + z * batch], k = k_hi * K_lo
// + k_lo, so that the rows of a sum may be the pairs of two strided axes. Null: all ones (for a
// bias).
struct Operand {
  const void* data;
  int64_t step, hi, lo, batch;
};
// Element (m, n) at data[m * step + n + z * batch + part * part_step].
struct Result {
  void* data;
  int64_t step, batch, part_step;
};
struct Gemm {
  int64_t M, N, K, K_lo, Z, parts;
  Operand a, b;
  Result out;
  // [K] or null: where it is false, b counts as zero whatever it holds (0 * NaN is not zero).
  const uint8_t* live_b = nullptr;
  // By gemm(): the kernel does not divide 64-bit numbers, which is a call that costs registers.
  int64_t part_size = 0;
  double inverse_lo = 0;
};

// An index k taken apart: once by a reciprocal, exact after a correction by one, then only
// advanced.
struct Contraction {
  int64_t hi, lo, K_lo;

  __device__ __forceinline__ Contraction(int64_t k, const Gemm& g)
      : hi(static_cast<int64_t>(static_cast<double>(k) * g.inverse_lo)),
        lo(k - hi * g.K_lo),
        K_lo(g.K_lo) {
    if (lo < 0) lo += K_lo, --hi;
    advance(0);
  }
  __device__ __forceinline__ void advance(int64_t by) {
    lo += by;
    while (lo >= K_lo) lo -= K_lo, ++hi;
  }
};

template <typename A, typename B, typename Out>
__global__ void __launch_bounds__(kGemmThreads) gemm_kernel(const Gemm g) {
  using T = acc_t<B>;
  STRNN_DYNAMIC_SHARED(raw);
  Carver carver{raw};
  T* tile_a = carver.take<T>(kGemmTile * kGemmLd);  // [k][m]
  T* tile_b = carver.take<T>(kGemmTile * kGemmLd);  // [k][n]
  const unsigned tiles_n = static_cast<unsigned>((g.N + kGemmTile - 1) / kGemmTile);
  const int64_t m0 = static_cast<int64_t>(blockIdx.x / tiles_n) * kGemmTile;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x % tiles_n) * kGemmTile;
  const int64_t part = blockIdx.y, z = blockIdx.z;
  const int64_t begin = part * g.part_size;
  const int64_t end = begin + g.part_size < g.K ? begin + g.part_size : g.K;
  const A* a = static_cast<const A*>(g.a.data) + z * g.a.batch;
  const B* b = static_cast<const B*>(g.b.data) + z * g.b.batch;
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;  // and 16 further
  const bool is_m_fast = g.a.step == 1, is_n_fast = g.b.step == 1;

  const int fast = threadIdx.x % kGemmTile, slow = threadIdx.x / kGemmTile;
  constexpr int kPasses = kGemmTile * kGemmTile / kGemmThreads,
                kStep = kGemmTile / kPasses;  // elements of a tile per thread
  Contraction at_a(begin + (is_m_fast ? slow : fast), g),
      at_b(begin + (is_n_fast ? slow : fast), g);
  const int step_a = is_m_fast ? kStep : 0, step_b = is_n_fast ? kStep : 0;

  T acc[2][2] = {};
  for (int64_t k0 = begin; k0 < end; k0 += kGemmTile) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int other = slow + pass * kStep;
      const int m = is_m_fast ? fast : other, k_a = is_m_fast ? other : fast;
      const int n = is_n_fast ? fast : other, k_b = is_n_fast ? other : fast;
      T value_a = 0, value_b = 0;
      if (m0 + m < g.M && k0 + k_a < end)
        value_a = to_acc(a[(m0 + m) * g.a.step + at_a.hi * g.a.hi + at_a.lo * g.a.lo]);
      if (n0 + n < g.N && k0 + k_b < end && !(g.live_b && !g.live_b[k0 + k_b]))
        value_b = g.b.data ? T(to_acc(b[(n0 + n) * g.b.step + at_b.hi * g.b.hi + at_b.lo * g.b.lo]))
                           : T(1);
      tile_a[k_a * kGemmLd + m] = value_a;
      tile_b[k_b * kGemmLd + n] = value_b;
      at_a.advance(step_a);
      at_b.advance(step_b);
    }
    at_a.advance(kGemmTile - kPasses * step_a);
    at_b.advance(kGemmTile - kPasses * step_b);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kGemmTile; ++k) {
      const T a0 = tile_a[k * kGemmLd + row], a1 = tile_a[k * kGemmLd + row + 16];
      const T b0 = tile_b[k * kGemmLd + column], b1 = tile_b[k * kGemmLd + column + 16];
      acc[0][0] += a0 * b0;
      acc[0][1] += a0 * b1;
      acc[1][0] += a1 * b0;
      acc[1][1] += a1 * b1;
    }
    __syncthreads();
  }
  Out* out = static_cast<Out*>(g.out.data) + part * g.out.part_step + z * g.out.batch;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t m = m0 + row + 16 * i, n = n0 + column + 16 * j;
      if (m < g.M && n < g.N) out[m * g.out.step + n] = from_acc<Out>(acc[i][j]);
    }
}

constexpr int kTensorTile = 64;
constexpr int kTensorDepth = 32;  // steps of k at a time
constexpr int kTensorGemmThreads = 128;
constexpr int kTensorLd = kTensorTile + 8;  // rows of ldmatrix meet in no bank
constexpr int kVector = 8;                  // elements of a load
constexpr int kVectors = kTensorTile * kTensorDepth / kVector / kTensorGemmThreads;  // of a thread

// One operand's way to shared memory as [k][m], kVector elements of its contiguous axis at a time.
template <typename S>
struct TensorLoader {
  const S* data;
  int64_t step, hi, lo, size, first;  // of m: their number, and the tile's first
  const uint8_t* live;
  bool is_k_fast, is_aligned;
  uint4 vector[kVectors];

  __device__ __forceinline__ TensorLoader(const Operand& o, int64_t size, int64_t first,
                                          const uint8_t* live, const Gemm& g)
      : data(static_cast<const S*>(o.data) + blockIdx.z * o.batch),
        step(o.step),
        hi(o.hi),
        lo(o.lo),
        size(size),
        first(first),
        live(live),
        is_k_fast(o.step != 1 && o.lo == 1) {
    const int64_t strides = is_k_fast ? o.step | o.hi | g.K_lo | g.K : o.hi | o.lo | size;
    is_aligned = (o.step == 1 || (is_k_fast && !live)) &&
                 ((strides | o.batch) % kVector | reinterpret_cast<uintptr_t>(o.data) % 16) == 0;
  }

  __device__ __forceinline__ int m_of(int i) const {
    const int v = threadIdx.x + i * kTensorGemmThreads;
    return is_k_fast ? v % kTensorTile : v % (kTensorTile / kVector) * kVector;
  }
  __device__ __forceinline__ int k_of(int i) const {
    const int v = threadIdx.x + i * kTensorGemmThreads;
    return is_k_fast ? v / kTensorTile * kVector : v / (kTensorTile / kVector);
  }

  __device__ __forceinline__ void fetch(int64_t k0, int64_t end, const Gemm& g) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t m = first + m_of(i), k = k0 + k_of(i);
      Contraction at(k, g);
      vector[i] = {};
      if (is_aligned) {
        if (m < size && k < end && !(live && !live[k]))
          vector[i] = *reinterpret_cast<const uint4*>(data + m * step + at.hi * hi + at.lo * lo);
        continue;
      }
      uint32_t words[kVector / 2];
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const int64_t m_e = is_k_fast ? m : m + e, k_e = is_k_fast ? k + e : k;
        float value = 0;
        if (m_e < size && k_e < end && !(live && !live[k_e]))
          value = to_acc(data[m_e * step + at.hi * hi + at.lo * lo]);
        words[e / 2] = e % 2 ? words[e / 2] | pack(0, value, S{}) : pack(value, 0, S{});
        if (is_k_fast) at.advance(1);
      }
      vector[i] = {words[0], words[1], words[2], words[3]};
    }
  }

  __device__ __forceinline__ void store(S* tile) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      S* to = tile + k_of(i) * kTensorLd + m_of(i);
      if (!is_k_fast) {
        *reinterpret_cast<uint4*>(to) = vector[i];
        continue;
      }
      const uint32_t words[kVector / 2] = {vector[i].x, vector[i].y, vector[i].z, vector[i].w};
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const float2 both = unpack(words[e / 2], S{});
        to[e * kTensorLd] = from_acc<S>(e % 2 ? both.y : both.x);
      }
    }
  }
};

template <typename S, typename Out>
__global__ void __launch_bounds__(kTensorGemmThreads) gemm_tensor_kernel(const Gemm g) {
  using Core = TensorCore<S>;
  STRNN_DYNAMIC_SHARED(raw);
  Carver carver{raw};
  S* tile_a = carver.take<S>(kTensorDepth * kTensorLd);
  S* tile_b = carver.take<S>(kTensorDepth * kTensorLd);
  const unsigned tiles_n = static_cast<unsigned>((g.N + kTensorTile - 1) / kTensorTile);
  const int64_t m0 = static_cast<int64_t>(blockIdx.x / tiles_n) * kTensorTile;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x % tiles_n) * kTensorTile;
  const int64_t begin = blockIdx.y * g.part_size;
  const int64_t end = begin + g.part_size < g.K ? begin + g.part_size : g.K;
  TensorLoader<S> a(g.a, g.M, m0, nullptr, g), b(g.b, g.N, n0, g.live_b, g);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row0 = warp / 2 * 32, column0 = warp % 2 * 32;

  float acc[2][2][2][4] = {};  // units of rows and of columns, as TensorCore::multiply has them
  if (begin < end) a.fetch(begin, end, g), b.fetch(begin, end, g);
#pragma unroll 1
  for (int64_t k0 = begin; k0 < end; k0 += kTensorDepth) {
    a.store(tile_a), b.store(tile_b);
    __syncthreads();
    if (k0 + kTensorDepth < end)
      a.fetch(k0 + kTensorDepth, end, g), b.fetch(k0 + kTensorDepth, end, g);
#pragma unroll
    for (int k = 0; k < kTensorDepth; k += kUnit) {
      typename Core::Operand rows[2];
      typename Core::Weight columns[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        rows[i] = Core::left_of_columns(tile_a + k * kTensorLd + row0 + i * kUnit, kTensorLd);
        columns[i] = Core::transposed(tile_b + k * kTensorLd + column0 + i * kUnit, kTensorLd);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) Core::multiply(acc[i][j], rows[i], columns[j]);
    }
    __syncthreads();
  }
  Out* out =
      static_cast<Out*>(g.out.data) + blockIdx.y * g.out.part_step + blockIdx.z * g.out.batch;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int64_t m = m0 + row0 + i * kUnit + lane / 4 + 8 * (e % 4 / 2);
        const int64_t n = n0 + column0 + j * kUnit + 8 * (e / 4) + 2 * (lane % 4) + e % 2;
        if (m < g.M && n < g.N) out[m * g.out.step + n] = from_acc<Out>(acc[i][j][e / 4][e % 4]);
      }
}

template <typename A, typename B>
constexpr bool kIsTensorGemm = std::is_same_v<A, B> && sizeof(A) == 2;

// Tiles of an output, with operands of types A and B.
template <typename A, typename B>
int64_t gemm_tiles(int64_t M, int64_t N) {
  constexpr int64_t kTile = kIsTensorGemm<A, B> ? kTensorTile : kGemmTile;
  return ((M + kTile - 1) / kTile) * ((N + kTile - 1) / kTile);
}

template <typename A, typename B, typename Out>
void gemm(Gemm g, void* stream) {
  g.part_size = (g.K + g.parts - 1) / g.parts;
  g.inverse_lo = 1.0 / static_cast<double>(g.K_lo);
  dim3 grid(0, static_cast<unsigned>(g.parts), static_cast<unsigned>(g.Z));
  if constexpr (kIsTensorGemm<A, B>)
    if (g.b.data) {  // all ones are a sum, no product
      g.part_size = (g.part_size + kTensorDepth - 1) / kTensorDepth * kTensorDepth;
      grid.x = static_cast<unsigned>(gemm_tiles<A, B>(g.M, g.N));
      return launch("gemm_tensor", gemm_tensor_kernel<A, Out>, grid, kTensorGemmThreads,
                    2 * kTensorDepth * kTensorLd * static_cast<int64_t>(sizeof(A)), stream, g);
    }
  grid.x = static_cast<unsigned>(gemm_tiles<float, float>(g.M, g.N));
  const int64_t tile =
      (kGemmTile * kGemmLd * static_cast<int64_t>(sizeof(acc_t<B>)) + 127) / 128 * 128;
  launch("gemm", gemm_kernel<A, B, Out>, grid, kGemmThreads, 2 * tile, stream, g);
}

struct Reduce {
  int64_t count, parts;
  const void* from;  // [parts][count]
  void* to;          // [count]
};
// Several in one launch, and the CTA that each begins with.
constexpr int kMaxReduces = 3;
struct Reduces {
  Reduce each[kMaxReduces];
  unsigned first[kMaxReduces + 1];
};

// to[i] = sum over parts: warp w of a CTA adds up parts w, w + kReduceWarps, .. of 32 outputs, in
// their order and 8 at a time, then the sums of the warps are added up in theirs. SEED's 288 parts
// are 36 for a warp: 5 latencies of memory, by count, not measured.
constexpr int kReduceWarps = 8;
template <typename S>
__device__ __forceinline__ void reduce_block(const Reduce& r, unsigned block, acc_t<S>* sums) {
  using T = acc_t<S>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = int64_t{block} * 32 + lane;
  const T* const from = static_cast<const T*>(r.from) + i;
  T sum = 0;
  if (i < r.count) {
#pragma unroll 8
    for (int64_t part = warp; part < r.parts; part += kReduceWarps) sum += from[part * r.count];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || i >= r.count) return;
  for (int w = 1; w < kReduceWarps; ++w) sum += sums[32 * w + lane];
  static_cast<S*>(r.to)[i] = from_acc<S>(sum);
}

template <typename S>
__global__ void __launch_bounds__(32 * kReduceWarps) reduce_kernel(const Reduces all) {
  STRNN_DYNAMIC_SHARED(raw);
  auto* const sums = reinterpret_cast<acc_t<S>*>(raw);  // [warp][output]
  // Not by a choice of pointers, whose memory would then be unknown.
#pragma unroll
  for (int k = 0; k < kMaxReduces; ++k)
    if (blockIdx.x >= all.first[k] && blockIdx.x < all.first[k + 1])
      reduce_block<S>(all.each[k], blockIdx.x - all.first[k], sums);
}

template <typename S>
void reduce(std::initializer_list<Reduce> each, void* stream) {
  Reduces all{};
  std::copy(each.begin(), each.end(), all.each);
  for (int k = 0; k < kMaxReduces; ++k)
    all.first[k + 1] = all.first[k] + static_cast<unsigned>((all.each[k].count + 31) / 32);
  launch("reduce", reduce_kernel<S>, dim3(all.first[kMaxReduces]), 32 * kReduceWarps,
         32 * kReduceWarps * static_cast<int64_t>(sizeof(acc_t<S>)), stream, all);
}

// dx[b,n] = sum over (d, j) of du[b,n,d,j] w_ih[d,j], all rows j of w_ih; du may have more.
template <typename S, typename Du>
void input_gradient(const SweepBackward& a, const Du* du, void* stream) {
  const int64_t rows = gates_of(a.cell) * a.H, width = bias_rows_of(a.cell) * a.H;
  const bool is_dense = rows == width;
  Gemm dx{a.B * a.N, a.C, a.D * rows, is_dense ? a.D * rows : rows, 1, 1, {}, {}, {}};
  dx.a = {du, a.D * width, is_dense ? 0 : width, 1, 0};
  dx.b = {a.w_ih.first, 1, is_dense ? 0 : rows * a.C, a.C, 0};
  dx.out = {a.dx, a.C, 0, 0};
  gemm<Du, S, S>(dx, stream);
}

}  // namespace strnn::cuda
