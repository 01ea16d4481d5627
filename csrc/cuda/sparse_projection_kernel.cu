// s[b,d,k] = sum_n weight[d,k,n] h[b,n,d] and its derivative. Exact zeros of weight cost a test, no
// arithmetic and no load of h.
//
// Forward: a thread is (b, d, kRowsPerThread rows k, one hidden unit) and walks the nodes; weight
// is read as a broadcast. Backward: dh is a thread per element that walks k; of dweight a CTA makes
// kRowsPerThread x kNodes elements, a warp's lanes side by side over the hidden units of its rows
// of B. Predicted, not measured: bandwidth-bound; SEED (B = 288, N = 62, D = 4, H = 30, K = 10)
// reads 8.6 MB: about 4 us from the second-level cache.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"
#include "storage.cuh"

namespace strnn::cuda {
namespace {

constexpr int kRowsPerThread = 8;  // of s in registers: one load of h serves them all
constexpr int kThreads = 128;

template <typename S>
__global__ void __launch_bounds__(kThreads)
    sparse_projection_forward_kernel(const SparseProjection a) {
  using T = acc_t<S>;
  const int64_t blocks_k = (a.K + kRowsPerThread - 1) / kRowsPerThread;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= a.B * a.D * blocks_k * a.H) return;
  const int64_t j = e % a.H, k0 = e / a.H % blocks_k * kRowsPerThread, d = e / a.H / blocks_k % a.D,
                b = e / a.H / blocks_k / a.D;
  const S* h = static_cast<const S*>(a.h) + (b * a.N * a.D + d) * a.H + j;
  const S* weight = static_cast<const S*>(a.weight) + (d * a.K + k0) * a.N;
  T acc[kRowsPerThread] = {};
  for (int64_t n = 0; n < a.N; ++n) {
    T g[kRowsPerThread];
    bool some = false;
#pragma unroll
    for (int q = 0; q < kRowsPerThread; ++q) {
      g[q] = k0 + q < a.K ? to_acc(weight[q * a.N + n]) : T(0);
      some |= g[q] != 0;
    }
    if (!some) continue;
    const T value = to_acc(h[n * a.D * a.H]);
#pragma unroll
    for (int q = 0; q < kRowsPerThread; ++q)
      if (g[q] != 0) acc[q] += g[q] * value;
  }
#pragma unroll
  for (int q = 0; q < kRowsPerThread; ++q)
    if (k0 + q < a.K)
      static_cast<S*>(a.s)[((b * a.D + d) * a.K + k0 + q) * a.H + j] = from_acc<S>(acc[q]);
}

// dh[b,n,d] = sum_k weight[d,k,n] ds[b,d,k], plus `onto` (B, N, D, H) if there is one.
struct Spread {
  int64_t B, N, D, H, K;
  const void* ds;
  const void* weight;
  const void* onto;
  void* dh;
};

template <typename S>
__global__ void __launch_bounds__(kThreads) sparse_projection_backward_kernel(const Spread a) {
  using T = acc_t<S>;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= a.B * a.N * a.D * a.H) return;
  const int64_t j = e % a.H, d = e / a.H % a.D, n = e / a.H / a.D % a.N, b = e / a.H / a.D / a.N;
  const S* ds = static_cast<const S*>(a.ds) + (b * a.D + d) * a.K * a.H + j;
  const S* weight = static_cast<const S*>(a.weight) + d * a.K * a.N + n;
  T sum = a.onto ? to_acc(static_cast<const S*>(a.onto)[e]) : T(0);
  for (int64_t k = 0; k < a.K; ++k) {
    const T g = to_acc(weight[k * a.N]);
    if (g != 0) sum += g * to_acc(ds[k * a.H]);
  }
  static_cast<S*>(a.dh)[e] = from_acc<S>(sum);
}

constexpr int kNodes = 4, kWarps = kThreads / 32;

// dweight[d][k][n] = sum over (b, j) of ds[b,d,k,j] h[b,n,d,j], in parts of B: to [part][D][K][N].
struct WeightSum {
  int64_t B, N, D, H, K;
  const void* ds;
  const void* h;
  void* to;
};

template <typename S>
__global__ void __launch_bounds__(kThreads) sparse_projection_weights_kernel(const WeightSum a) {
  using T = acc_t<S>;
  constexpr int kValues = kRowsPerThread * kNodes;
  static_assert(kValues == 32);  // one for each lane
  __shared__ T sums[kWarps][kValues];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t tiles_n = (a.N + kNodes - 1) / kNodes;
  const int64_t d = blockIdx.x / tiles_n, n0 = blockIdx.x % tiles_n * kNodes,
                k0 = static_cast<int64_t>(blockIdx.y) * kRowsPerThread;
  T acc[kRowsPerThread][kNodes] = {};
  for (int64_t b = static_cast<int64_t>(blockIdx.z) * kWarps + warp; b < a.B;
       b += static_cast<int64_t>(gridDim.z) * kWarps) {
    const S* const ds = static_cast<const S*>(a.ds) + ((b * a.D + d) * a.K + k0) * a.H;
    const S* const h = static_cast<const S*>(a.h) + ((b * a.N + n0) * a.D + d) * a.H;
    for (int64_t j = lane; j < a.H; j += 32) {
      T g[kRowsPerThread];
#pragma unroll
      for (int q = 0; q < kRowsPerThread; ++q) g[q] = k0 + q < a.K ? to_acc(ds[q * a.H + j]) : T(0);
#pragma unroll
      for (int i = 0; i < kNodes; ++i) {
        const T y = n0 + i < a.N ? to_acc(h[i * a.D * a.H + j]) : T(0);
#pragma unroll
        for (int q = 0; q < kRowsPerThread; ++q) acc[q][i] += g[q] * y;
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kValues; ++e) {
    T sum = acc[e / kNodes][e % kNodes];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (lane == e) sums[warp][e] = sum;
  }
  __syncthreads();
  const int64_t k = k0 + lane / kNodes, n = n0 + lane % kNodes;
  if (warp > 0 || k >= a.K || n >= a.N) return;
  T sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += sums[w][lane];
  static_cast<S*>(a.to)[((blockIdx.z * a.D + d) * a.K + k) * a.N + n] = from_acc<S>(sum);
}

dim3 weights_grid(const SparseProjectionBackward& a, const Device& device) {
  const int64_t tiles = a.D * ((a.N + kNodes - 1) / kNodes),
                blocks_k = (a.K + kRowsPerThread - 1) / kRowsPerThread;
  const int64_t wanted = 4 * device.num_sms / std::max<int64_t>(1, tiles * blocks_k);
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, a.B / kWarps));
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(blocks_k),
              static_cast<unsigned>(parts));
}

}  // namespace

void sparse_projection(const SparseProjection& a, Dtype dtype, void* stream) {
  const int64_t count = a.B * a.D * ((a.K + kRowsPerThread - 1) / kRowsPerThread) * a.H;
  with_dtype(dtype, [&](auto s) {
    launch("sparse_projection_forward", sparse_projection_forward_kernel<decltype(s)>,
           dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0, stream, a);
  });
}

int64_t sparse_projection_parts(const SparseProjectionBackward& a, const Device& device) {
  const int64_t parts = weights_grid(a, device).z;
  return parts > 1 ? parts * a.D * a.K * a.N : 0;
}

void sparse_projection_backward(const SparseProjectionBackward& a, const void* onto, Dtype dtype,
                                const Device& device, void* parts, Products& products,
                                void* stream) {
  with_dtype(dtype, [&](auto s) {
    using S = decltype(s);
    if (a.dh) {
      const int64_t count = a.B * a.N * a.D * a.H;
      launch("sparse_projection_backward", sparse_projection_backward_kernel<S>,
             dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0, stream,
             Spread{a.B, a.N, a.D, a.H, a.K, a.ds, a.weight, onto, a.dh});
    }
    if (!a.dweight) return;
    const dim3 grid = weights_grid(a, device);
    launch("sparse_projection_weights", sparse_projection_weights_kernel<S>, grid, kThreads, 0,
           stream, WeightSum{a.B, a.N, a.D, a.H, a.K, a.ds, a.h, grid.z > 1 ? parts : a.dweight});
    if (grid.z > 1) products.sum(dtype, a.D * a.K * a.N, grid.z, parts, a.dweight);
  });
}

}  // namespace strnn::cuda
