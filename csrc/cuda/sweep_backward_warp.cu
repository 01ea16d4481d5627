// Derivative of the sweep, a warp per row of B; see sweep_warp.cuh for the plan and
// sweep_backward.cu for the formulas. dw_hh, dw_ih and dbias grow in registers over all rows of a
// warp (lane j: row j), are added up over the warps of a CTA in their order, and over the CTAs by
// the reduction that follows.
//
// Predicted, not measured (H200 at 1.98 GHz, SEED: B = 288, N = 62, D = 4, C = 5, H = 30): a step
// issues about 210 instructions for two nodes and its chain is about 250 cycles long; 40 steps;
// issue 2.2 x 40 x 210 = 9.5 us, chain 5 us, bytes 17 MB = 3.7 us; with the three reductions 14 to
// 18 us.
#include <type_traits>

#include "gemm.cuh"
#include "sweep_warp.cuh"

namespace strnn::cuda {
namespace {

struct WarpBackwardArgs {
  SweepBackward a;
  WarpLayout layout;
  int rows_per_warp;
  const float* dh;  // a.dh, or with the projection's share already in it
  float* du;        // (B, N, D, H) or null
  float* dw_hh;     // [CTA][D][H][H]
  float* dw_ih;     // [CTA][D][H][C] or null
  float* dbias;     // [CTA][D][H] or null
};

template <int kC, bool kProjects>
__global__ void __launch_bounds__(kWarpMaxThreads, 2)
    sweep_backward_warp_kernel(const WarpBackwardArgs f) {
  const SweepBackward& a = f.a;
  STRNN_DYNAMIC_SHARED(raw);
  Carver carver{raw};
  int4* records = carver.take<int4>(f.layout.records);
  float* projection = carver.take<float>(f.layout.projection);
  float* all_slots = carver.take<float>(f.layout.slots);
  float* all_vectors = carver.take<float>(f.layout.vectors);
  float* all_rings = carver.take<float>(f.layout.rings);
  unsigned* all_masks = carver.take<unsigned>(f.layout.masks);
  float* total = carver.take<float>(f.layout.total);

  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
  const int d = blockIdx.y, N = static_cast<int>(a.N), H = static_cast<int>(a.H);
  const int C = static_cast<int>(a.C);
  constexpr int kWidth = 2 * kLanes + kC;  // of an entry of the ring: h, dh, x
  float* slots = all_slots + warp * (f.layout.slots / warps);
  float* vectors = all_vectors + warp * (f.layout.vectors / warps);
  float* ring = all_rings + warp * (f.layout.rings / warps);
  unsigned* bits = all_masks + warp * (f.layout.masks / warps);

  if (kProjects)
    load_projection(static_cast<const float*>(a.projection) + d * a.K * N, a.K, N, projection);
  for (int e = lane; e < kWarpRing * kWidth; e += kLanes) ring[e] = 0;  // the padding stays zero
  const WarpProgram program(a.program, d, records);

  float w[kLanes];  // column `lane` of w_hh
  const float* w_hh = static_cast<const float*>(a.w_hh.first) + static_cast<int64_t>(d) * H * H;
#pragma unroll
  for (int k = 0; k < kLanes; ++k) w[k] = lane < H && k < H ? w_hh[k * H + lane] : 0;
  float dw_hh[kLanes] = {}, dw_ih[kC ? kC : 1] = {}, dbias = 0;

  for (int turn = 0; turn < f.rows_per_warp; ++turn) {
    const int64_t b = (static_cast<int64_t>(blockIdx.x) * f.rows_per_warp + turn) * warps + warp;
    if (b >= a.B) break;
    const int64_t row = b * a.D + d;
    const int entry = a.entry ? a.entry[row] : -1;
    float ds[kProjects ? kWarpMaxK : 1] = {}, entered = 0;
    if constexpr (kProjects) {
#pragma unroll
      for (int k = 0; k < kWarpMaxK; ++k)
        if (k < a.K && lane < H)
          ds[k] = static_cast<const float*>(a.ds)[(row * a.K + k) * H + lane];
    }
    __syncwarp();  // the row before is done with the vectors, the ring and the mask
    if (a.mask) load_mask_bits(a.mask + b * N, N, bits);

    const auto stage = [&](int i) {
      if (i < N) {
        const int64_t n = b * N + program.node(i);
        const int64_t from = (n * a.D + d) * H + lane;
        float* to = ring + i % kWarpRing * kWidth + lane;
        if (lane < H) {
          cp_async<4>(to, static_cast<const float*>(a.h) + from);
          if (f.dh) cp_async<4>(to + kLanes, f.dh + from);
        }
        if (lane < (kC ? C : 0))
          cp_async<4>(to + 2 * kLanes, static_cast<const float*>(a.x) + n * C + lane);
      }
      cp_async_commit();
    };
    for (int i = 0; i < kWarpRing - kWarpNodes; ++i) stage(i);

    int half = 0;
    for (int i = 0; i < N;) {
      const int count = i + 1 < N && !program.starts_group(i + 1) ? 2 : 1;
      int4 record[kWarpNodes];
      float* vector[kWarpNodes];
      float sum[kWarpNodes], t[kWarpNodes];
#pragma unroll
      for (int q = 0; q < kWarpNodes; ++q) {
        const int at = q < count ? i + q : i;
        record[q] = program.records[2 * at];
        sum[q] = program.gather(record[q], program.records[2 * at + 1], slots);
        vector[q] = vectors + (half * kWarpNodes + q) * kLanes;
        vector[q][lane] = sum[q];
      }
      half ^= 1;
      cp_async_wait<kWarpRing - 2 * kWarpNodes>();  // the inputs of i and i + 1 are there
      __syncwarp();
      // Every lane is done with the nodes before i: their places in the ring are free.
      for (int q = 0; q < count; ++q) stage(i + kWarpRing - kWarpNodes + q);
#pragma unroll
      for (int q = 0; q < kWarpNodes; ++q) {
        const float* input = ring + (q < count ? i + q : i) % kWarpRing * kWidth;
        t[q] = dot(w, vector[q], input[kLanes + lane]);
        if constexpr (kProjects) t[q] = dot(ds, projection + record[q].x * kWarpMaxK, t[q]);
      }
#pragma unroll
      for (int q = 0; q < kWarpNodes; ++q) {
        if (q >= count) break;
        const float* input = ring + (i + q) % kWarpRing * kWidth;
        const int n = record[q].x;
        const bool is_masked = a.mask && !(bits[n / kLanes] >> n % kLanes & 1);
        const bool is_off = lane >= H || is_masked;
        const float du = is_off ? 0 : derivative(a.cell, input[lane]) * t[q];
        if (record[q].y >= 0) slots[record[q].y * kLanes + lane] = du;
        if (f.du && lane < H) f.du[((b * N + n) * a.D + d) * H + lane] = du;
        if (a.entry ? entry == n : record[q].y < 0) entered += du;
        add_outer(dw_hh, sum[q], input);
        if constexpr (kC != 0) {
          if (!is_masked) add_outer(dw_ih, du, input + 2 * kLanes);  // 0 * NaN is not zero
          dbias += du;
        }
      }
      i += count;
    }
    cp_async_wait<0>();
    if (a.h0) {
      __syncwarp();
      vectors[lane] = entered;
      vectors[kLanes + lane] = lane < H ? static_cast<const float*>(a.h0)[row * H + lane] : 0;
      __syncwarp();
      const float dh0 = dot(w, vectors, 0);
      if (a.dh0 && lane < H) static_cast<float*>(a.dh0)[row * H + lane] = dh0;
      add_outer(dw_hh, entered, vectors + kLanes);
    }
  }

  // total[lane][k]: w_hh's row, w_ih's row, the bias; one warp after the other.
  constexpr int kTotal = kLanes + kC + 1;  // odd: lanes meet in no bank
  for (int turn = 0; turn < warps; ++turn) {
    if (warp == turn) {
      float* mine = total + lane * kTotal;
#pragma unroll
      for (int k = 0; k < kLanes; ++k) mine[k] = (turn ? mine[k] : 0) + dw_hh[k];
#pragma unroll
      for (int c = 0; c < kC; ++c) mine[kLanes + c] = (turn ? mine[kLanes + c] : 0) + dw_ih[c];
      mine[kLanes + kC] = (turn ? mine[kLanes + kC] : 0) + dbias;
    }
    __syncthreads();
  }
  const int64_t part = static_cast<int64_t>(blockIdx.x) * a.D + d;
  for (int e = threadIdx.x; e < H * H; e += blockDim.x)
    f.dw_hh[part * H * H + e] = total[e / H * kTotal + e % H];
  if constexpr (kC != 0) {
    for (int e = threadIdx.x; e < H * C; e += blockDim.x)
      f.dw_ih[part * H * C + e] = total[e / C * kTotal + kLanes + e % C];
    if (f.dbias)
      for (int e = threadIdx.x; e < H; e += blockDim.x)
        f.dbias[part * H + e] = total[e * kTotal + kLanes + kC];
  }
}

int64_t num_parts(const SweepBackward& a, const Plan& plan) {
  const int64_t rows = plan.threads / kLanes * plan.items;
  return (a.B + rows - 1) / rows;
}

SparseProjectionBackward projection_of(const SweepBackward& a, void* dh) {
  return {a.B, a.N, a.D, a.H, a.K, a.ds, a.h, a.projection, dh, a.dprojection};
}

struct Scratch {
  float *dw_hh, *dw_ih, *dbias, *du, *dh;
  void* projection;

  Scratch(const SweepBackward& a, const Plan& plan, const Device& device, Workspace& workspace) {
    const int64_t parts = num_parts(a, plan), states = a.B * a.N * a.D * a.H;
    dw_hh = workspace.take<float>(parts * a.D * a.H * a.H);
    dw_ih = workspace.take<float>(parts * a.D * a.H * a.C);
    dbias = workspace.take<float>(a.dbias ? parts * a.D * a.H : 0);
    du = a.C == 0 ? static_cast<float*>(a.dx) : workspace.take<float>(a.dx ? states : 0);
    dh = workspace.take<float>(a.ds && !plan.projects ? states : 0);
    projection = workspace.take<char>(a.ds ? sparse_projection_backward_workspace(
                                                 projection_of(a, nullptr), Dtype::kFloat32, device)
                                           : 0);
  }
};

}  // namespace

int64_t sweep_backward_warp_workspace(const SweepBackward& a, const Plan& plan,
                                      const Device& device) {
  Workspace workspace(nullptr);
  Scratch(a, plan, device, workspace);
  return workspace.size();
}

void sweep_backward_warp(const SweepBackward& a, const Plan& plan, const Device& device,
                         Workspace workspace, void* stream) {
  const Scratch scratch(a, plan, device, workspace);
  const int64_t parts = num_parts(a, plan), D = a.D, H = a.H, C = a.C;
  if (a.ds)
    sparse_projection_backward(projection_of(a, scratch.dh), a.dh, Dtype::kFloat32, device,
                               scratch.projection, stream);
  else if (a.dprojection)
    reduce<float>({D * a.K * a.N, 0, nullptr, a.dprojection}, stream);
  const bool projects = a.ds && plan.projects;
  const void* dh = a.ds && !projects ? scratch.dh : a.dh;
  const WarpBackwardArgs f{a,          plan.warp,     plan.items,    static_cast<const float*>(dh),
                           scratch.du, scratch.dw_hh, scratch.dw_ih, scratch.dbias};
  with_input_width(C, [&](auto width) {
    constexpr int kC = decltype(width)::value;
    launch("sweep_backward_warp",
           projects ? sweep_backward_warp_kernel<kC, true> : sweep_backward_warp_kernel<kC, false>,
           dim3(static_cast<unsigned>(parts), static_cast<unsigned>(D)), plan.threads,
           plan.shared_bytes, stream, f);
  });
  reduce<float>({D * H * H, parts, scratch.dw_hh, a.dw_hh}, stream);
  if (a.dw_ih) reduce<float>({D * H * C, parts, scratch.dw_ih, a.dw_ih}, stream);
  if (a.dbias) reduce<float>({D * H, C ? parts : 0, scratch.dbias, a.dbias}, stream);
  if (C && a.dx) input_gradient<float>(a, scratch.du, stream);
}

}  // namespace strnn::cuda
