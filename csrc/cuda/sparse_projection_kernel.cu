// s[b,d,k] = sum_n weight[d,k,n] h[b,n,d] and its derivative. Exact zeros of weight cost a test, no
// arithmetic and no load of h.
//
// Forward: a thread is (b, d, kRowsPerThread rows k, one hidden unit) and walks the nodes; weight
// is read as a broadcast. Backward: dh is a thread per element that walks k; dweight is a sum over
// (b, hidden unit) of products, in parts (gemm.cuh). Predicted, not measured: bandwidth-bound; SEED
// (B = 288, N = 62, D = 4, H = 30, K = 10) reads 8.6 MB: about 4 us from the second-level cache.
#include "gemm.cuh"
#include "kernels.h"
#include "workspace.h"

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

template <typename S>
int64_t parts_of(const SparseProjectionBackward& a, const Device& device) {
  return choose_splits(gemm_tiles<S, S>(a.K, a.N) * a.D, a.B * a.H, device);
}

template <typename S>
void run_backward(const SparseProjectionBackward& a, const void* onto, const Device& device,
                  Workspace workspace, void* stream) {
  using T = acc_t<S>;
  if (a.dh) {
    const int64_t count = a.B * a.N * a.D * a.H;
    launch("sparse_projection_backward", sparse_projection_backward_kernel<S>,
           dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0, stream,
           Spread{a.B, a.N, a.D, a.H, a.K, a.ds, a.weight, onto, a.dh});
  }
  if (!a.dweight) return;
  const int64_t parts = parts_of<S>(a, device), count = a.D * a.K * a.N;
  T* partial = workspace.take<T>(parts * count);
  // dweight[d][k][n] = sum over (b, j) of ds[b,d,k,j] h[b,n,d,j]
  Gemm g{a.K, a.N, a.B * a.H, a.H, a.D, parts, {}, {}, {}};
  g.a = {a.ds, a.H, a.D * a.K * a.H, 1, a.K * a.H};
  g.b = {a.h, a.D * a.H, a.N * a.D * a.H, 1, a.H};
  g.out = {partial, a.N, a.K * a.N, count};
  gemm<S, S, T>(g, stream);
  reduce<S>({{count, parts, partial, a.dweight}}, stream);
}

}  // namespace

void sparse_projection(const SparseProjection& a, Dtype dtype, void* stream) {
  const int64_t count = a.B * a.D * ((a.K + kRowsPerThread - 1) / kRowsPerThread) * a.H;
  with_dtype(dtype, [&](auto s) {
    launch("sparse_projection_forward", sparse_projection_forward_kernel<decltype(s)>,
           dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0, stream, a);
  });
}

int64_t sparse_projection_backward_workspace(const SparseProjectionBackward& a, Dtype dtype,
                                             const Device& device) {
  Workspace workspace(nullptr);
  with_dtype(dtype, [&](auto s) {
    using S = decltype(s);
    workspace.take<acc_t<S>>(a.dweight ? parts_of<S>(a, device) * a.D * a.K * a.N : 0);
  });
  return workspace.size();
}

void sparse_projection_backward(const SparseProjectionBackward& a, const void* onto, Dtype dtype,
                                const Device& device, void* workspace, void* stream) {
  with_dtype(dtype, [&](auto s) {
    run_backward<decltype(s)>(a, onto, device, Workspace(workspace), stream);
  });
}

}  // namespace strnn::cuda
