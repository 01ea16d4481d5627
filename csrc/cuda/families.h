// The sweeps of the families that sweep_forward.cu and sweep_backward.cu hand over to.
#pragma once
#include "../common/sweep.h"
#include "planner.h"
#include "workspace.h"

namespace strnn::cuda {

void sweep_forward_warp(const SweepForward&, const Plan&, void* stream);
int64_t sweep_backward_warp_workspace(const SweepBackward&, const Plan&, const Device&);
void sweep_backward_warp(const SweepBackward&, const Plan&, const Device&, Workspace, void* stream);

// The projection, and the sums of the backward sweep, follow apart.
void sweep_forward_tensor(const SweepForward&, Dtype, const Plan&, void* stream);

// What the backward sweep reads, and leaves for the sums.
struct TensorGradients {
  const void* dh;  // (B, N, D, H) or null
  void* du;        // (B, N, D, H) or null
  void* q;         // (B, N, D, H), without dw_hh
  float* dw_hh;    // [plan.parts][D][H][H] or null
};
void sweep_backward_tensor(const SweepBackward&, const TensorGradients&, Dtype, const Plan&,
                           void* stream);

}  // namespace strnn::cuda
