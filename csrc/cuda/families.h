// The sweeps of the families that sweep_forward.cu and sweep_backward.cu hand over to: cluster
// (sweep_cluster.cuh) and level (sweep_level.cuh).
#pragma once
#include "../common/sweep.h"
#include "planner.h"

namespace strnn::cuda {

// Bytes of scratch for W in the order in which the CTAs of a cluster load it.
int64_t cluster_weights_bytes(int64_t D, int64_t H, const Plan&);

// The states alone: x holds u (B, N, D, H), and bias is added to it. level: h is not null.
void sweep_forward_cluster(const SweepForward&, Dtype, const SweepSizes&, const Plan&,
                           void* weights, void* stream);
void sweep_forward_level(const SweepForward&, Dtype, const Plan&, void* stream);

// What the backward sweep reads, and leaves for the sums over rows; see sweep_backward.cu. du and q
// are of the storage type (cluster, where du may be null) or of the computed type (level).
struct BackwardStates {
  const void* dh;
  void *du, *q;
  void* dx = nullptr;  // level: a copy of du in the storage type, or null
};
void sweep_backward_cluster(const SweepBackward&, const BackwardStates&, Dtype, const SweepSizes&,
                            const Plan&, void* weights, void* stream);
void sweep_backward_level(const SweepBackward&, const BackwardStates&, Dtype, const Plan&,
                          void* stream);

}  // namespace strnn::cuda
