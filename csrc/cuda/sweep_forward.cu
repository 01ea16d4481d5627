// Forward sweep: h = mask * act(u + w_hh sum_pred h), u = w_ih x + bias or given; with a gate h =
// gate * (u + w_hh sum_pred h); s = projection h. General family; see sweep_kernel.cuh for the plan
// of a CTA.
//
// Predicted, not measured (H200 at 1.98 GHz): a chunk costs two barriers, a gather from shared
// memory and H / 4 steps of one 128-bit broadcast load per item and one weight load per k: about
// 0.5 us for H = 32, 0.8 us for H = 128 with weights in shared memory, per group of the program;
// SEED (13 groups, B = 288) about 10 us; 0.6 flop per byte of shared memory is what limits large
// batches.
#include <type_traits>

#include "families.h"
#include "gemm.cuh"
#include "kernels.h"
#include "sweep_kernel.cuh"
#include "workspace.h"

namespace strnn::cuda {
namespace {

struct ForwardArgs {
  GeneralSweep sweep;
  const uint8_t* mask;
  const void* h0;
  const int32_t* entry;
  const void* bias;
  const void* projection;
  int activation;
  bool is_gated, projects;
  void* h;
  void* pre;
  void* s;
};

template <typename S, bool kWeightsShared, bool kSlotsShared>
__global__ void __launch_bounds__(kSweepThreads, kSweepBlocks)
    sweep_forward_kernel(const ForwardArgs f) {
  using T = acc_t<S>;
  STRNN_DYNAMIC_SHARED(raw);
  const GeneralTile<S, kWeightsShared, kSlotsShared> tile(f.sweep, Carver{raw});
  const GeneralSweep& a = f.sweep;
  const int d = tile.d, H = a.H;

  const auto extra = [&](int i, bool is_source, int r, int j) -> T {
    if (!f.h0) return 0;
    const int64_t at = (tile.b0 + r) * a.D + d;
    const bool enters = f.entry ? f.entry[at] == tile.node(i) : is_source;
    return enters ? to_acc(static_cast<const S*>(f.h0)[at * H + j]) : T(0);
  };
  const auto keep = [](int, int, int, T) {};
  const auto finish = [&](int i, int item, int r, int j, int half, T acc) {
    const int n = tile.node(i);
    const int64_t at = tile.state_row(r, n) + j;
    if (!a.C) acc += to_acc(tile.input0[(half * a.items + item) * H + j]);
    if (f.bias) acc += to_acc(static_cast<const S*>(f.bias)[d * H + j]);
    if (f.pre) static_cast<S*>(f.pre)[at] = from_acc<S>(acc);
    T y;
    if (f.is_gated)
      y = to_acc(tile.input1[(half * a.items + item) * H + j]) * acc;
    else
      y = f.mask && !f.mask[tile.row(r, n)] ? T(0) : activate(f.activation, acc);
    if (tile.has_successors(i)) tile.slot(tile.table(a.program.slot, d * a.N + i), r)[j] = y;
    if (f.h) static_cast<S*>(f.h)[at] = from_acc<S>(y);
    if (f.projects) tile.state[item * H + j] = y;
  };
  // s[k][r][j] belongs to one thread for the whole sweep; the states are overwritten only after the
  // next chunk's first barrier.
  const int outputs = f.projects ? a.K * static_cast<int>(tile.tile_rows) * H : 0;
  const auto output = [&](int e, int& k, int& r, int& j) {
    j = e % H, r = e / H % static_cast<int>(tile.tile_rows),
    k = e / H / static_cast<int>(tile.tile_rows);
  };
  const auto after = [&](const Chunk& c) {
    for (int e = threadIdx.x; e < outputs; e += blockDim.x) {
      int k, r, j;
      output(e, k, r, j);
      const S* weight =
          static_cast<const S*>(f.projection) + (static_cast<int64_t>(d) * a.K + k) * a.N;
      T total = c.begin == 0 ? T(0) : tile.projected[e];
      for (int i = c.begin; i < c.end; ++i) {
        const T g = to_acc(weight[tile.node(i)]);
        if (g != 0) total += g * tile.state[(((i - c.begin) << a.rows_log2) + r) * H + j];
      }
      tile.projected[e] = total;
    }
  };
  sweep_tile(tile, extra, keep, finish, after);
  for (int e = threadIdx.x; e < outputs; e += blockDim.x) {
    int k, r, j;
    output(e, k, r, j);
    static_cast<S*>(f.s)[(((tile.b0 + r) * a.D + d) * a.K + k) * H + j] =
        from_acc<S>(tile.projected[e]);
  }
}

struct Transpose {
  int64_t J, K, D;  // from (D, J, K) to (D, K, J)
  const void* from;
  void* to;
};

template <typename S>
__global__ void __launch_bounds__(256) transpose_kernel(const Transpose t) {
  const int64_t count = t.D * t.J * t.K;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; e < count;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t j = e % t.J, k = e / t.J % t.K, d = e / t.J / t.K;
    static_cast<S*>(t.to)[e] = static_cast<const S*>(t.from)[(d * t.J + j) * t.K + k];
  }
}

template <typename S>
void transpose(const Transpose& t, void* stream) {
  const int64_t blocks = (t.D * t.J * t.K + 255) / 256;
  launch("transpose", transpose_kernel<S>,
         dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096)), 256, 0, stream, t);
}

// Whether u is computed before the sweep.
bool needs_input(Family family) { return family == Family::kCluster || family == Family::kLevel; }

// Scratch of a forward sweep.
template <typename S>
struct Scratch {
  S *w_hh, *w_ih, *h, *u;
  acc_t<S>* slots;
  char* cluster_weights;

  Scratch(const SweepForward& a, const Plan& plan, Workspace& workspace) {
    const int64_t tiles = (a.B + (int64_t{1} << plan.rows_log2) - 1) >> plan.rows_log2;
    const bool is_transposed = plan.family == Family::kGeneral && !plan.weights_in_shared;
    w_hh = workspace.take<S>(is_transposed ? a.D * a.H * a.H : 0);
    w_ih = workspace.take<S>(is_transposed ? a.D * a.H * a.C : 0);
    const int64_t states = a.B * a.N * a.D * a.H;
    u = workspace.take<S>(a.C && needs_input(plan.family) ? states : 0);
    h = workspace.take<S>(
        !a.h && ((a.K && !plan.projects) || plan.family == Family::kLevel) ? states : 0);
    slots = workspace.take<acc_t<S>>(
        plan.slots_in_shared ? 0 : (tiles << plan.rows_log2) * a.D * a.program.S * a.H);
    cluster_weights = workspace.take<char>(
        plan.family == Family::kCluster ? cluster_weights_bytes(a.D, a.H, plan) : 0);
  }
};

// u[b,n,d] = w_ih[d] x[b,n] before the sweep, for the families that do not fuse it.
template <typename S>
void input_product(const SweepForward& a, S* u, void* stream) {
  Gemm product{a.B * a.N, a.H, a.C, a.C, a.D, 1, {}, {}, {}};
  product.a = {a.x, a.C, 0, 1, 0};
  product.b = {a.w_ih.first, a.C, 0, 1, a.H * a.C};
  product.out = {u, a.D * a.H, a.H, 0};
  gemm<S, S, S>(product, stream);
}

template <typename S>
void run(const SweepForward& a, Dtype dtype, const Device& device, Workspace workspace,
         void* stream) {
  const SweepSizes sizes = sizes_of(a, dtype);
  const Plan plan = plan_sweep(sizes, device);
  const Scratch<S> scratch(a, plan, workspace);
  if (plan.family != Family::kGeneral) {
    SweepForward kept = a;
    if (!a.h) kept.h = scratch.h;
    if (needs_input(plan.family)) {
      if (a.C)
        input_product<S>(a, scratch.u, stream), kept.x = scratch.u;
      else
        kept.bias = {};
    }
    if (plan.family == Family::kWarpPerRow)
      sweep_forward_warp(kept, plan, stream);
    else if (plan.family == Family::kTensorCore)
      sweep_forward_tensor(kept, dtype, plan, stream);
    else if (plan.family == Family::kCluster)
      sweep_forward_cluster(kept, dtype, sizes, plan, scratch.cluster_weights, stream);
    else
      sweep_forward_level(kept, dtype, plan, stream);
    if (a.K && !plan.projects)
      sparse_projection({a.B, a.N, a.D, a.H, a.K, kept.h, a.projection, a.s}, dtype, stream);
    return;
  }
  ForwardArgs f{};
  GeneralSweep& sweep = f.sweep;
  sweep.program = a.program;
  sweep.B = a.B, sweep.N = a.N, sweep.D = a.D;
  sweep.H = static_cast<int>(a.H), sweep.C = static_cast<int>(a.C), sweep.K = static_cast<int>(a.K);
  sweep.rows_log2 = plan.rows_log2, sweep.items = plan.items;
  sweep.layout = GeneralLayout::of(sizes, plan);
  sweep.ld_sum = sweep.layout.ld_sum, sweep.ld_weights = sweep.layout.ld_weights;
  if (plan.weights_in_shared) {
    sweep.weights = a.w_hh.first, sweep.weight_k = 1, sweep.weight_j = a.H;
    sweep.input_weights = a.w_ih.first, sweep.input_weight_c = 1, sweep.input_weight_j = a.C;
  } else {
    transpose<S>({a.H, a.H, a.D, a.w_hh.first, scratch.w_hh}, stream);
    if (a.C) transpose<S>({a.H, a.C, a.D, a.w_ih.first, scratch.w_ih}, stream);
    sweep.weights = scratch.w_hh, sweep.input_weights = scratch.w_ih;
  }
  sweep.input0 = a.x, sweep.input1 = a.gate;
  sweep.slots = scratch.slots;
  f.mask = a.mask, f.h0 = a.h0, f.entry = a.entry, f.bias = a.C ? a.bias.first : nullptr,
  f.projection = a.projection;
  f.activation = a.cell, f.is_gated = a.gate != nullptr, f.projects = plan.projects;
  f.h = a.h ? a.h : scratch.h, f.pre = a.pre, f.s = a.s;
  const dim3 grid(
      static_cast<unsigned>((a.B + (int64_t{1} << plan.rows_log2) - 1) >> plan.rows_log2),
      static_cast<unsigned>(a.D));
  with_bool(plan.weights_in_shared, [&](auto weights) {
    with_bool(plan.slots_in_shared, [&](auto slots) {
      launch("sweep_forward",
             sweep_forward_kernel<S, decltype(weights)::value, decltype(slots)::value>, grid,
             plan.threads, plan.shared_bytes, stream, f);
    });
  });
  if (a.K && !plan.projects)
    sparse_projection({a.B, a.N, a.D, a.H, a.K, f.h, a.projection, a.s}, dtype, stream);
}

}  // namespace

int64_t sweep_workspace(const SweepForward& a, Dtype dtype, const Device& device) {
  Workspace workspace(nullptr);
  with_dtype(dtype, [&](auto s) {
    Scratch<decltype(s)>(a, plan_sweep(sizes_of(a, dtype), device), workspace);
  });
  return workspace.size();
}

void sweep(const SweepForward& a, Dtype dtype, const Device& device, void* workspace,
           void* stream) {
  with_dtype(dtype,
             [&](auto s) { run<decltype(s)>(a, dtype, device, Workspace(workspace), stream); });
}

}  // namespace strnn::cuda
