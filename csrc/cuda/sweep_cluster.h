// The host side of the cluster family (sweep_cluster.cuh), for the ops that choose it.
#pragma once
#include "../common/dtype.h"
#include "../common/sweep.h"
#include "planner.h"

namespace strnn::cuda {

// Bytes of scratch for W in the order in which the CTAs load it.
int64_t cluster_weights_bytes(int64_t D, int64_t H, const Plan&);

// The states alone: x holds u (B, N, D, H), and bias is added to it.
void sweep_forward_cluster(const SweepForward&, Dtype, const SweepSizes&, const Plan&,
                           void* weights, void* stream);

// du (float, or null), its copy in the storage type dx (or null) and q; see sweep_backward.cu.
void sweep_backward_cluster(const SweepBackward&, Dtype, const SweepSizes&, const Plan&,
                            const void* dh, float* du, void* dx, float* q, void* weights,
                            void* stream);

}  // namespace strnn::cuda
