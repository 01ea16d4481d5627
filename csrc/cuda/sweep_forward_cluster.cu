// Forward sweep, a cluster per tile of rows of B; see sweep_cluster.cuh for the plan and
// sweep_forward.cu for the op.
//
// Predicted, not measured (H200 at 1.98 GHz), a step of a chain with H = 1024 and 16 rows in 16
// CTAs: 16 x 64 x 1024 fma per CTA at 62 % of the tensor cores' peak 0.40 us; 32 KB of sums into
// every CTA at 32 bytes per cycle 0.50 us; barrier of the cluster 0.2 us; gather, parts, activation
// 0.2 us: together 1.3 us. T = 512, B = 64, both directions are 8 clusters, 128 SMs: 0.67 ms
// against 0.14 ms of arithmetic at the peak and 0.06 ms of u and h at 4.8 TB/s. H = 512 in 8 CTAs,
// 8 rows: 0.1 + 0.13 + 0.2 + 0.2 = 0.6 us. The arrival at the barrier waits until the stores of h
// before it are done: if that measures as more, they can follow it.
#include "sweep_cluster.cuh"

namespace strnn::cuda {
namespace {

struct ClusterForwardArgs {
  ClusterSweep sweep;
  const uint8_t* mask;
  const void* h0;
  const int32_t* entry;
  const void* bias;
  int activation;
  bool is_gated;
  void* h;
  void* pre;
};

template <typename S, int kTiles>
__global__ void __launch_bounds__(kClusterThreads, kTiles == 8 ? 2 : 1)
    sweep_forward_cluster_kernel(const ClusterForwardArgs f) {
#if STRNN_HAS_CLUSTERS
  STRNN_DYNAMIC_SHARED(raw);
  const ClusterTile<S, kTiles> tile(f.sweep, Carver{raw});
  const int64_t row = (tile.b0 + tile.r) * f.sweep.D + tile.d;  // of a tensor (B, D)
  const int entry = f.entry && tile.is_live ? f.entry[row] : -1;
  float bias[4] = {};
  if (f.bias && tile.is_live)
    tile.load(static_cast<const S*>(f.bias) + tile.d * f.sweep.H + tile.j, bias);

  const auto extra = [&](int n, bool is_source, float (&sum)[4]) {
    if (!f.h0 || !(f.entry ? entry == n : is_source)) return;
    float h0[4];
    tile.load(static_cast<const S*>(f.h0) + row * f.sweep.H + tile.j, h0);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += h0[i];
  };
  const auto keep = [](int, const float (&)[4]) {};
  const auto finish = [&](const ClusterNode& node, const S* u_at, const S* gate_at,
                          float (&sum)[4]) {
    const int64_t at = tile.at(node.n);
    float u[4], y[4];
    tile.unpack(u_at, u);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += u[i] + bias[i];
    if (f.pre) tile.store(static_cast<S*>(f.pre) + at, sum);
    if (f.is_gated) {
      float gate[4];
      tile.unpack(gate_at, gate);
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = gate[i] * sum[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = node.is_off ? 0.f : activate(f.activation, sum[i]);
    }
    if (node.slot >= 0) *reinterpret_cast<Four<S>*>(tile.slot(node.slot)) = tile.pack(y);
    if (f.h) tile.store(static_cast<S*>(f.h) + at, y);
  };
  sweep_cluster(tile, f.mask, extra, keep, finish);
#endif
}

template <typename S>
void run(const SweepForward& a, const SweepSizes& sizes, const Plan& plan, void* scratch,
         void* stream) {
  ClusterForwardArgs f{};
  f.sweep = cluster_sweep(a.program, a.B, a.H, sizes, plan);
  f.sweep.is_vector = are_quads(a.H, a.x, a.gate, a.h0, a.bias.first, a.h, a.pre);
  ClusterWeights weights = cluster_weights(a.D, a.H, plan);
  weights.from = a.w_hh.first, weights.step_j = a.H, weights.step_k = 1,
  weights.to = static_cast<uint4*>(scratch);
  arrange_weights<S>(weights, stream);
  f.sweep.fragments = weights.to;
  f.sweep.input0 = a.x, f.sweep.input1 = a.gate;
  f.mask = a.mask, f.h0 = a.h0, f.entry = a.entry, f.bias = a.bias.first;
  f.activation = a.cell, f.is_gated = a.gate != nullptr;
  f.h = a.h, f.pre = a.pre;
  with_cluster_tiles(a.H, [&](auto tiles) {
    launch("sweep_forward_cluster", sweep_forward_cluster_kernel<S, decltype(tiles)::value>,
           cluster_grid(sizes, plan), plan.threads, plan.shared_bytes, stream, f, plan.cluster);
  });
}

}  // namespace

int64_t max_cluster() {
  const auto kernel = sweep_forward_cluster_kernel<__nv_bfloat16, 16>;
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

int64_t cluster_weights_bytes(int64_t D, int64_t H, const Plan& plan) {
  return cluster_weights(D, H, plan).count() * static_cast<int64_t>(sizeof(uint4));
}

void sweep_forward_cluster(const SweepForward& a, Dtype dtype, const SweepSizes& sizes,
                           const Plan& plan, void* scratch, void* stream) {
  with_16_bits(dtype, [&](auto s) { run<decltype(s)>(a, sizes, plan, scratch, stream); });
}

}  // namespace strnn::cuda
