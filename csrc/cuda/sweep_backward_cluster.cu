// Backward sweep, a cluster per tile of rows of B; see sweep_cluster.cuh for the plan and
// sweep_backward.cu for the op, which takes the sums over rows from the du and q written here.
//
// Predicted, not measured: the chain of the forward sweep, since one product with W^T per node is
// all there is in it; 8 bytes per state of traffic instead of 4, which a step of 1.3 us hides.
#include "sweep_cluster.cuh"

namespace strnn::cuda {
namespace {

struct ClusterBackwardArgs {
  ClusterSweep sweep;
  const uint8_t* mask;
  const void* pre;
  int activation;
  bool is_gated;
  void* dgate;
  void* du;
  void* q;
};

template <typename S, int kTiles>
__global__ void __launch_bounds__(kClusterThreads, kTiles == 8 ? 2 : 1)
    sweep_backward_cluster_kernel(const ClusterBackwardArgs f) {
#if STRNN_HAS_CLUSTERS
  STRNN_DYNAMIC_SHARED(raw);
  const ClusterTile<S, kTiles> tile(f.sweep, Carver{raw});

  const auto extra = [](int, bool, float (&)[4]) {};
  const auto keep = [&](int n, const float (&sum)[4]) {
    tile.store(static_cast<S*>(f.q) + tile.at(n), sum);
  };
  const auto finish = [&](const ClusterNode& node, const S* dh_at, const S* other_at,
                          float (&t)[4]) {
    const int64_t at = tile.at(node.n);
    float other[4], du[4];  // the gate, or h
    tile.unpack(other_at, other);
    if (f.sweep.input0) {
      float dh[4];
      tile.unpack(dh_at, dh);
#pragma unroll
      for (int i = 0; i < 4; ++i) t[i] += dh[i];
    }
    if (f.is_gated) {
      float dgate[4];
      tile.load(static_cast<const S*>(f.pre) + at, dgate);
#pragma unroll
      for (int i = 0; i < 4; ++i) dgate[i] *= t[i], du[i] = other[i] * t[i];
      tile.store(static_cast<S*>(f.dgate) + at, dgate);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        du[i] = node.is_off ? 0.f : derivative(f.activation, other[i]) * t[i];
    }
    if (node.slot >= 0) *reinterpret_cast<Four<S>*>(tile.slot(node.slot)) = tile.pack(du);
    if (f.du) tile.store(static_cast<S*>(f.du) + at, du);
  };
  sweep_cluster(tile, f.mask, extra, keep, finish);
#endif
}

template <typename S>
void run(const SweepBackward& a, const BackwardStates& states, const SweepSizes& sizes,
         const Plan& plan, void* scratch, void* stream) {
  ClusterBackwardArgs f{};
  f.sweep = cluster_sweep(a.program, a.B, a.H, sizes, plan);
  const void* other = a.gate ? a.gate : a.h;
  f.sweep.is_vector = are_quads(a.H, states.dh, other, a.pre, a.dgate, states.du, states.q);
  ClusterWeights weights = cluster_weights(a.D, a.H, plan);
  weights.from = a.w_hh.first, weights.step_j = 1, weights.step_k = a.H,
  weights.to = static_cast<uint4*>(scratch);
  arrange_weights<S>(weights, stream);
  f.sweep.fragments = weights.to;
  f.sweep.input0 = states.dh, f.sweep.input1 = other;
  f.mask = a.mask, f.pre = a.pre, f.activation = a.cell, f.is_gated = a.gate != nullptr;
  f.dgate = a.dgate, f.du = states.du, f.q = states.q;
  with_cluster_tiles(a.H, [&](auto tiles) {
    launch("sweep_backward_cluster", sweep_backward_cluster_kernel<S, decltype(tiles)::value>,
           cluster_grid(sizes, plan), plan.threads, plan.shared_bytes, stream, f, plan.cluster);
  });
}

}  // namespace

void sweep_backward_cluster(const SweepBackward& a, const BackwardStates& states, Dtype dtype,
                            const SweepSizes& sizes, const Plan& plan, void* scratch,
                            void* stream) {
  with_16_bits(dtype, [&](auto s) { run<decltype(s)>(a, states, sizes, plan, scratch, stream); });
}

}  // namespace strnn::cuda
