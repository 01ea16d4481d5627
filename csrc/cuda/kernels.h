// The ops of the CUDA backend, free of torch: raw device pointers, the limits of the device,
// scratch of the size that <op>_workspace names, who makes products, a stream (cudaStream_t). All
// of them only launch; nothing waits. The tables of a Program lie on the device.
#pragma once
#include "../common/dtype.h"
#include "../common/sparse_projection.h"
#include "../common/sweep.h"
#include "planner.h"
#include "products.h"

namespace strnn::cuda {

// CTAs of the largest cluster that the current device, of sm_90 or later, can run; 0 if the kernels
// were not compiled for that.
int64_t max_cluster();
// And how many of 2, 4, 8 and 16 CTAs, up to that size, it runs at once, each on an SM of its own.
std::array<int64_t, 4> active_clusters(const Device&);

int64_t sweep_workspace(const SweepForward&, Dtype, const Device&);
void sweep(const SweepForward&, Dtype, const Device&, void* workspace, Products&, void* stream);

int64_t sweep_backward_workspace(const SweepBackward&, Dtype, const Device&);
void sweep_backward(const SweepBackward&, Dtype, const Device&, void* workspace, Products&,
                    void* stream);

void sparse_projection(const SparseProjection&, Dtype, void* stream);

// Elements of scratch, for parts of dweight.
int64_t sparse_projection_parts(const SparseProjectionBackward&, const Device&);
// onto (B, N, D, H) or null is added to dh.
void sparse_projection_backward(const SparseProjectionBackward&, const void* onto, Dtype,
                                const Device&, void* parts, Products&, void* stream);

}  // namespace strnn::cuda
