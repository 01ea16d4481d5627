// The sweep for narrow states, float32: one warp per (direction, row of B), lane j = hidden unit j
// < 32.
//
// Row j of W (forward) or column j (backward) stays in lane j's registers for the whole sweep; a
// state lives in a slot of shared memory that only its own lane reads and writes, so gathering
// predecessors needs no synchronisation. What all lanes need of each other, the sum of
// predecessors, goes through a vector in shared memory: a __syncwarp per step, no barrier. A step
// takes up to kWarpNodes nodes of one group, whose chains of additions overlap. Inputs come by
// cp.async, several nodes ahead.
#pragma once
#include "../common/sweep.h"
#include "activation.cuh"
#include "families.h"
#include "kernels.h"
#include "launch.cuh"
#include "planner.h"
#include "ptx.cuh"
#include "workspace.h"

namespace strnn::cuda {

constexpr int kLanes = 32;
constexpr int kWarpNodes = 2;  // nodes of a step

// The sweep program of one direction in shared memory, two int4 for each position:
// {node, slot or -1 if nobody reads the state, first predecessor, their number},
// {slots of the first three predecessors, whether a group starts here}.
struct WarpProgram {
  const int4* records;
  const int32_t* pred_slot;  // of all, in global memory, for the fourth predecessor and later ones

  __device__ __forceinline__ WarpProgram(const Program& p, int d, int4* to)
      : records(to), pred_slot(p.pred_slot) {
    for (int i = threadIdx.x; i < p.N; i += blockDim.x) {
      const int32_t* range = p.pred_ptr + d * (p.N + 1) + i;
      const int begin = range[0], count = range[1] - begin;
      const bool is_read = p.num_succ[d * p.N + i] != 0;
      to[2 * i] = {p.node[d * p.N + i], is_read ? p.slot[d * p.N + i] : -1, begin, count};
      to[2 * i + 1] = {count > 0 ? p.pred_slot[begin] : 0, count > 1 ? p.pred_slot[begin + 1] : 0,
                       count > 2 ? p.pred_slot[begin + 2] : 0, 0};
    }
    __syncthreads();
    for (int g = threadIdx.x; g < p.G; g += blockDim.x) {
      const int start = p.group_ptr[d * (p.G + 1) + g];
      if (start < p.N) to[2 * start + 1].w = 1;
    }
    __syncthreads();
  }

  __device__ __forceinline__ int node(int i) const { return records[2 * i].x; }
  __device__ __forceinline__ bool starts_group(int i) const { return records[2 * i + 1].w != 0; }

  // Sum over the predecessors' slots of this lane.
  __device__ __forceinline__ float gather(const int4& a, const int4& b, const float* slots) const {
    const int lane = threadIdx.x % kLanes;
    float sum = 0;
    if (a.w > 0) sum = slots[b.x * kLanes + lane];
    if (a.w > 1) sum += slots[b.y * kLanes + lane];
    if (a.w > 2) sum += slots[b.z * kLanes + lane];
    for (int p = 3; p < a.w; ++p) sum += slots[__ldg(pred_slot + a.z + p) * kLanes + lane];
    return sum;
  }
};

// acc + sum_k w[k] v[k] for a vector that all lanes read, in two chains.
template <int kWidth>
__device__ __forceinline__ float dot(const float (&w)[kWidth], const float* v, float acc) {
  float even = acc, odd = 0;
#pragma unroll
  for (int k = 0; k < kWidth; k += 4) {
    const Quad<float> q = *reinterpret_cast<const Quad<float>*>(v + k);
    even += w[k] * q.v[0];
    odd += w[k + 1] * q.v[1];
    even += w[k + 2] * q.v[2];
    odd += w[k + 3] * q.v[3];
  }
  return even + odd;
}

// w[k] += x v[k] for a vector that all lanes read.
template <int kWidth>
__device__ __forceinline__ void add_outer(float (&w)[kWidth], float x, const float* v) {
#pragma unroll
  for (int k = 0; k < kWidth; k += 4) {
    const Quad<float> q = *reinterpret_cast<const Quad<float>*>(v + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[k + i] += x * q.v[i];
  }
}

// s[k] += weight[k] y, where a weight of zero does not read a y that is not finite.
__device__ __forceinline__ void add_projection(float (&s)[kWarpMaxK], float y,
                                               const float* weight) {
  if (isfinite(y)) return add_outer(s, y, weight);
#pragma unroll
  for (int k = 0; k < kWarpMaxK; ++k)
    if (weight[k] != 0) s[k] += weight[k] * y;
}

// Bit n: node n of row b is not masked. By one warp, for itself.
__device__ __forceinline__ void load_mask_bits(const uint8_t* mask, int64_t N, unsigned* bits) {
  const int lane = threadIdx.x % kLanes;
  for (int64_t n = 0; n < N; n += kLanes) {
    const unsigned word = __ballot_sync(kAllLanes, n + lane < N && mask[n + lane]);
    if (lane == 0) bits[n / kLanes] = word;
  }
}

// weight[k][n] of a direction as [n][kWarpMaxK], zero beyond K.
__device__ __forceinline__ void load_projection(const float* from, int64_t K, int64_t N,
                                                float* to) {
  for (int e = threadIdx.x; e < N * kWarpMaxK; e += blockDim.x) {
    const int k = e % kWarpMaxK, n = e / kWarpMaxK;
    to[e] = k < K ? from[k * N + n] : 0;
  }
}

// The kernels exist for C = 0 and for rows of x padded to 8 and to 32.
template <typename F>
void with_input_width(int64_t C, const F& f) {
  if (C == 0)
    f(std::integral_constant<int, 0>{});
  else if (C <= 8)
    f(std::integral_constant<int, 8>{});
  else
    f(std::integral_constant<int, 32>{});
}

}  // namespace strnn::cuda
