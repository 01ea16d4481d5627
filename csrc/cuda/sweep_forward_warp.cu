// Forward sweep, a warp per row of B; see sweep_warp.cuh for the plan and sweep_forward.cu for the
// op.
//
// Predicted, not measured (H200 at 1.98 GHz, SEED: B = 288, N = 62, D = 4, C = 5, H = 30): 1152
// warps of about 40 steps; a step issues about 110 instructions for two nodes and its chain
// (gather, exchange, 16 dependent fma, activation) is about 200 cycles long. Chain: 40 x 200 cycles
// = 4 us; issue: 2.2 warps per scheduler x 40 x 110 = 5 us; bytes: 8.9 MB = 1.9 us. Together with
// the prologue 6 to 8 us.
#include <type_traits>

#include "storage.cuh"
#include "sweep_warp.cuh"

namespace strnn::cuda {
namespace {

struct WarpForwardArgs {
  SweepForward a;
  WarpLayout layout;
};

template <int kC, bool kProjects>
__global__ void __launch_bounds__(kWarpMaxThreads, 2)
    sweep_forward_warp_kernel(const WarpForwardArgs f) {
  const SweepForward& a = f.a;
  STRNN_DYNAMIC_SHARED(raw);
  Carver carver{raw};
  int4* records = carver.take<int4>(f.layout.records);
  float* projection = carver.take<float>(f.layout.projection);
  float* all_slots = carver.take<float>(f.layout.slots);
  float* all_vectors = carver.take<float>(f.layout.vectors);
  float* all_rings = carver.take<float>(f.layout.rings);
  unsigned* all_masks = carver.take<unsigned>(f.layout.masks);

  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
  const int d = blockIdx.y, N = static_cast<int>(a.N), H = static_cast<int>(a.H);
  constexpr int kWidth = kC ? kC : kLanes;  // of an input row in the ring
  float* slots = all_slots + warp * (f.layout.slots / warps);
  float* vectors = all_vectors + warp * (f.layout.vectors / warps);
  float* ring = all_rings + warp * (f.layout.rings / warps);
  unsigned* bits = all_masks + warp * (f.layout.masks / warps);

  if (kProjects)
    load_projection(static_cast<const float*>(a.projection) + d * a.K * N, a.K, N, projection);
  for (int e = lane; e < kWarpRing * kWidth; e += kLanes) ring[e] = 0;  // the padding stays zero
  const WarpProgram program(a.program, d, records);

  float w[kLanes], w_ih[kC ? kC : 1];
  const float* w_row =
      static_cast<const float*>(a.w_hh.first) + (static_cast<int64_t>(d) * H + lane) * H;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) w[k] = lane < H && k < H ? w_row[k] : 0;
  const int C = static_cast<int>(a.C);
  const float* w_ih_row =
      static_cast<const float*>(a.w_ih.first) + (static_cast<int64_t>(d) * H + lane) * C;
#pragma unroll
  for (int c = 0; c < kC; ++c) w_ih[c] = lane < H && c < C ? w_ih_row[c] : 0;
  const float bias =
      kC && a.bias.first && lane < H ? static_cast<const float*>(a.bias.first)[d * H + lane] : 0;

  const int64_t b = static_cast<int64_t>(blockIdx.x) * warps + warp;
  if (b >= a.B) return;
  const int64_t row = b * a.D + d;
  const float h0 = a.h0 && lane < H ? static_cast<const float*>(a.h0)[row * H + lane] : 0;
  const int entry = a.entry ? a.entry[row] : -1;
  if (a.mask) load_mask_bits(a.mask + b * N, N, bits);

  const auto stage = [&](int i) {
    if (i < N) {
      const int64_t n = b * N + program.node(i);
      const float* from = static_cast<const float*>(a.x) + (kC ? n * C : (n * a.D + d) * H) + lane;
      if (lane < (kC ? C : H)) cp_async<4>(ring + i % kWarpRing * kWidth + lane, from);
    }
    cp_async_commit();
  };
  for (int i = 0; i < kWarpRing - kWarpNodes; ++i) stage(i);

  float s[kProjects ? kWarpMaxK : 1] = {};
  int half = 0;
  for (int i = 0; i < N;) {
    const int count = i + 1 < N && !program.starts_group(i + 1) ? 2 : 1;
    int4 record[kWarpNodes];
    float* vector[kWarpNodes];
#pragma unroll
    for (int q = 0; q < kWarpNodes; ++q) {
      const int at = q < count ? i + q : i;
      record[q] = program.records[2 * at];
      float sum = program.gather(record[q], program.records[2 * at + 1], slots);
      const bool enters = a.entry ? entry == record[q].x : record[q].w == 0;
      if (enters) sum += h0;
      vector[q] = vectors + (half * kWarpNodes + q) * kLanes;
      vector[q][lane] = sum;
    }
    half ^= 1;
    cp_async_wait<kWarpRing - 2 * kWarpNodes>();  // the inputs of i and i + 1 are there
    __syncwarp();
    // Every lane is done with the nodes before i: their places in the ring are free.
    for (int q = 0; q < count; ++q) stage(i + kWarpRing - kWarpNodes + q);
    float u[kWarpNodes];
#pragma unroll
    for (int q = 0; q < kWarpNodes; ++q) {
      const float* input = ring + (q < count ? i + q : i) % kWarpRing * kWidth;
      u[q] = dot(w, vector[q], kC ? bias : input[lane]);
      if constexpr (kC != 0) u[q] = dot(w_ih, input, u[q]);
    }
#pragma unroll
    for (int q = 0; q < kWarpNodes; ++q) {
      if (q >= count) break;
      const int n = record[q].x;
      const bool is_off = lane >= H || (a.mask && !(bits[n / kLanes] >> n % kLanes & 1));
      const float y = is_off ? 0 : activate(a.cell, u[q]);
      if (record[q].y >= 0) slots[record[q].y * kLanes + lane] = y;
      if (a.h && lane < H) static_cast<float*>(a.h)[((b * N + n) * a.D + d) * H + lane] = y;
      if constexpr (kProjects) add_outer(s, y, projection + n * kWarpMaxK);
    }
    i += count;
  }
  cp_async_wait<0>();
  if constexpr (kProjects) {
#pragma unroll
    for (int k = 0; k < kWarpMaxK; ++k)
      if (k < a.K && lane < H) static_cast<float*>(a.s)[(row * a.K + k) * H + lane] = s[k];
  }
}

}  // namespace

void sweep_forward_warp(const SweepForward& a, const Plan& plan, void* stream) {
  const WarpForwardArgs f{a, plan.warp};
  const int64_t warps = plan.threads / kLanes;
  const dim3 grid(static_cast<unsigned>((a.B + warps - 1) / warps), static_cast<unsigned>(a.D));
  with_input_width(a.C, [&](auto width) {
    constexpr int kC = decltype(width)::value;
    launch(
        "sweep_forward_warp",
        plan.projects ? sweep_forward_warp_kernel<kC, true> : sweep_forward_warp_kernel<kC, false>,
        grid, plan.threads, plan.shared_bytes, stream, f);
  });
}

}  // namespace strnn::cuda
