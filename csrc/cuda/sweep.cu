// Forward sweep: h = mask * act(u + w_hh sum_pred h), u = w_ih x + bias or given; with a gate h =
// gate * (u + w_hh sum_pred h); of gated cells see common/cell.h; s = projection h. The family of
// the plan sweeps; u before it and s after it are products of their own where that does not fuse
// them.
//
// Derivative of the sweep: the same operation on the reversed topology (a.program), so that a
// "predecessor" is a successor of the forward sweep. With q = sum of successors' du and t = dh +
// projection^T ds + w_hh^T q:
//
//   du = mask * act'(h) * t          with a gate: du = gate * t, dgate = pre * t
//   dw_hh = sum_bn q (x) h           the same total as that of du (x) (sum of predecessors' h)
//   dw_ih = sum_bn du (x) x,  dbias = sum_bn du,  dx = sum_d du w_ih
//   e = sum of du where h0 entered:  dh0 = e w_hh,  dw_hh += e (x) h0
//
// Of gated cells da and dm (common/cell.h) take the place of du: q has the rows of w_hh, and e too;
// the sum of dm where c0, or a gru's h0, entered is its gradient, or is added to it. With a mean a
// successor counts as much as its own predecessors leave it.
//
// Where the family of the plan does not add them up itself, the sweep writes du and q, and the
// sums, which have no serial chain, are products that follow (products.h). What a family adds up
// are parts, one of each CTA, that are added up in their order: bitwise repeatable, no atomics.
#include <algorithm>
#include <initializer_list>

#include "families.h"
#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"
#include "storage.cuh"
#include "workspace.h"

namespace strnn::cuda {
namespace {

constexpr int kThreads = 128;  // of what has one for each output

struct Reduce {
  int64_t count, parts;
  const float* from;  // [parts][count]
  void* to;           // [count]
};
// Several in one launch, and the CTA that each begins with.
constexpr int kMaxReduces = 3;
struct Reduces {
  Reduce each[kMaxReduces];
  unsigned first[kMaxReduces + 1];
};

// to[i] = sum over parts: warp w of a CTA adds up parts w, w + kReduceWarps, .. of 32 outputs, in
// their order and 8 at a time, then the sums of the warps are added up in theirs. SEED's 288 parts
// are 36 for a warp: 5 latencies of memory, by count, not measured.
constexpr int kReduceWarps = 8;
template <typename S>
__device__ __forceinline__ void reduce_block(const Reduce& r, unsigned block, float* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = int64_t{block} * 32 + lane;
  float sum = 0;
  if (i < r.count) {
#pragma unroll 8
    for (int64_t part = warp; part < r.parts; part += kReduceWarps)
      sum += r.from[part * r.count + i];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || i >= r.count) return;
  for (int w = 1; w < kReduceWarps; ++w) sum += sums[32 * w + lane];
  static_cast<S*>(r.to)[i] = from_acc<S>(sum);
}

template <typename S>
__global__ void __launch_bounds__(32 * kReduceWarps) reduce_kernel(const Reduces all) {
  STRNN_DYNAMIC_SHARED(raw);
  auto* const sums = reinterpret_cast<float*>(raw);  // [warp][output]
  // Not by a choice of pointers, whose memory would then be unknown.
#pragma unroll
  for (int k = 0; k < kMaxReduces; ++k)
    if (blockIdx.x >= all.first[k] && blockIdx.x < all.first[k + 1])
      reduce_block<S>(all.each[k], blockIdx.x - all.first[k], sums);
}

void reduce(Dtype dtype, std::initializer_list<Reduce> each, void* stream) {
  Reduces all{};
  std::copy(each.begin(), each.end(), all.each);
  for (int k = 0; k < kMaxReduces; ++k)
    all.first[k + 1] = all.first[k] + static_cast<unsigned>((all.each[k].count + 31) / 32);
  with_dtype(dtype, [&](auto s) {
    launch("reduce", reduce_kernel<decltype(s)>, dim3(all.first[kMaxReduces]), 32 * kReduceWarps,
           32 * kReduceWarps * static_cast<int64_t>(sizeof(float)), stream, all);
  });
}

// e[b,d] = sum of du[b,n,d] over the nodes where h0 entered, in the order of the program: `gates`
// blocks of H, from rows that have `blocks` (state_column).
struct Entered {
  Program program;
  int64_t B, H, gates, blocks;
  const int32_t* entry;
  const void* du;
  void* e;
};

template <typename Du, typename S>
__global__ void __launch_bounds__(kThreads) sum_entered_kernel(const Entered a) {
  const int64_t N = a.program.N, D = a.program.D, columns = a.gates * a.H, width = a.blocks * a.H;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= a.B * D * columns) return;
  const int64_t j = at % columns, d = at / columns % D, b = at / columns / D;
  const Du* du = static_cast<const Du*>(a.du) + (b * N * D + d) * width +
                 state_column(j, a.H, a.gates, a.blocks);
  acc_t<S> sum = 0;
  if (a.entry) {
    const int64_t n = a.entry[b * D + d];
    if (n >= 0 && n < N) sum = to_acc(du[n * D * width]);
  } else {
    for (int64_t i = 0; i < N; ++i)
      if (a.program.num_succ[d * N + i] == 0)
        sum += to_acc(du[a.program.node[d * N + i] * D * width]);
  }
  static_cast<S*>(a.e)[at] = from_acc<S>(sum);
}

// x, of which rows of masked nodes count as zero whatever they hold (0 * NaN is not zero).
struct MaskedInput {
  int64_t count, C;
  const void* x;
  const uint8_t* mask;
  void* to;
};

template <typename S>
__global__ void __launch_bounds__(kThreads) masked_input_kernel(const MaskedInput a) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= a.count) return;
  static_cast<S*>(a.to)[at] = a.mask[at / a.C] ? static_cast<const S*>(a.x)[at] : from_acc<S>(0);
}

// Scratch of a forward sweep.
struct ForwardScratch {
  void *h, *u, *c, *kept;

  ForwardScratch(const SweepForward& a, Dtype dtype, const Plan& plan, Workspace& workspace) {
    const int64_t states = a.B * a.N * a.D * a.H;
    const bool is_level = plan.family() == Family::kLevel;
    const bool is_gated = a.cell >= kNumActivations, is_rounded = storage_bytes(dtype) == 2;
    const bool needs_h = (a.K && !plan.projects) || is_level;
    h = workspace.take(!a.h && needs_h ? states : 0);
    u = workspace.take(a.C && !plan.takes_x ? gates_of(a.cell) * states : 0);
    c = workspace.take(is_level && a.cell == kLstm && !is_rounded && !a.c ? states : 0);
    kept = workspace.take_computed(is_level && is_gated && is_rounded ? states : 0);
  }
};

SparseProjectionBackward projection_of(const SweepBackward& a, void* dh) {
  return {a.B, a.N, a.D, a.H, a.K, a.ds, a.h, a.projection, dh, a.dprojection};
}

// Scratch of a backward sweep.
struct BackwardScratch {
  void *dh, *du, *q, *e, *x, *dm, *factors;
  // Terms of sums: dw_hh from the nodes and from h0; a gru's dh0 from the product and from what is
  // carried; dx from each direction; parts of dprojection.
  void *dw, *dh0, *dx, *dprojection;
  float *dw_hh, *dw_ih, *dbias;  // parts that the family leaves

  BackwardScratch(const SweepBackward& a, const Plan& plan, const Device& device,
                  Workspace& workspace) {
    const int64_t states = a.B * a.N * a.D * a.H, rows = a.B * a.N, first = a.B * a.D * a.H;
    const int64_t gates = gates_of(a.cell), blocks = bias_rows_of(a.cell), GH = gates * a.H;
    const bool is_gated = a.cell >= kNumActivations, is_level = plan.family() == Family::kLevel;
    dh = workspace.take(a.ds && !plan.projects ? states : 0);
    const bool is_du_needed = (a.C && (a.dx || !plan.sums_input)) || a.h0 || is_level;
    du = !a.C && a.dx ? a.dx : workspace.take(is_du_needed ? blocks * states : 0);
    q = workspace.take(plan.sums_states ? 0 : gates * states);
    e = workspace.take(a.h0 ? gates * first : 0);
    x = workspace.take(a.C && a.mask && !plan.sums_input ? rows * a.C : 0);
    dm = workspace.take_computed(is_gated && (is_level || a.h0 || a.c0) ? states : 0);
    factors = workspace.take_computed(is_level && a.mean ? a.D * a.N : 0);
    dw = workspace.take(a.h0 ? 2 * a.D * GH * a.H : 0);
    dh0 = workspace.take(a.h0 && a.cell == kGru ? 2 * first : 0);
    dx = workspace.take(a.C && a.dx && gates != blocks ? a.D * rows * a.C : 0);
    dprojection =
        workspace.take(a.ds ? sparse_projection_parts(projection_of(a, nullptr), device) : 0);
    dw_hh = workspace.take_floats(plan.sums_states ? plan.ctas * a.D * GH * a.H : 0);
    dw_ih = workspace.take_floats(plan.sums_input ? plan.ctas * a.D * GH * a.C : 0);
    dbias = workspace.take_floats(plan.sums_input && a.dbias ? plan.ctas * a.D * GH : 0);
  }
};

unsigned blocks_of(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

// The gradients that are sums over rows, and dx and dh0, from du and q.
void run_sums(const SweepBackward& a, const BackwardScratch& scratch, const Plan& plan, Dtype dtype,
              Products& products, void* stream) {
  const int64_t B = a.B, D = a.D, C = a.C, H = a.H, rows = B * a.N;
  const int64_t gates = gates_of(a.cell), blocks = bias_rows_of(a.cell);
  const int64_t GH = gates * H, width = blocks * H, weights = D * GH * H;
  const auto second = [&](void* of, int64_t count) {
    return static_cast<char*>(of) + count * storage_bytes(dtype);
  };
  const auto sum_entered = [&](const void* du, bool is_computed, int64_t gates, int64_t blocks,
                               void* to) {
    const Entered entered{a.program, B, H, gates, blocks, a.entry, du, to};
    with_dtype(dtype, [&](auto s) {
      using S = decltype(s);
      launch("sum_entered",
             is_computed ? sum_entered_kernel<acc_t<S>, S> : sum_entered_kernel<S, S>,
             dim3(blocks_of(B * D * gates * H)), kThreads, 0, stream, entered);
    });
  };

  void* const dw = a.h0 ? scratch.dw : a.dw_hh;
  if (plan.sums_states)
    reduce(dtype,
           {{weights, plan.ctas, scratch.dw_hh, dw},
            {plan.sums_input ? D * GH * C : 0, plan.ctas, scratch.dw_ih, a.dw_ih},
            {plan.sums_input && a.dbias ? D * GH : 0, plan.ctas, scratch.dbias, a.dbias}},
           stream);
  else
    products.multiply(dtype, D, GH, H, rows, {scratch.q, GH, 1, D * GH}, {a.h, H, D * H, 1},
                      {dw, GH * H, H, 1});
  if (a.dc0) sum_entered(scratch.dm, true, 1, 1, a.dc0);
  if (a.h0) {
    sum_entered(scratch.du, false, gates, blocks, scratch.e);
    products.multiply(dtype, D, GH, H, B, {scratch.e, GH, 1, D * GH}, {a.h0, H, D * H, 1},
                      {second(dw, weights), GH * H, H, 1});
    products.sum(dtype, weights, 2, dw, a.dw_hh);
  }
  if (a.dh0) {
    void* const to = scratch.dh0 ? scratch.dh0 : a.dh0;
    products.multiply(dtype, D, B, H, GH, {scratch.e, GH, D * GH, 1}, {a.w_hh.first, GH * H, H, 1},
                      {to, H, D * H, 1});
    if (scratch.dh0) {
      sum_entered(scratch.dm, true, 1, 1, second(to, B * D * H));
      products.sum(dtype, B * D * H, 2, to, a.dh0);
    }
  }
  if (a.dbias && !plan.sums_input) products.sum(dtype, D * width, rows, scratch.du, a.dbias);
  if (a.dw_ih && !plan.sums_input) {
    const MaskedInput input{rows * C, C, a.x, a.mask, scratch.x};
    if (scratch.x)
      with_dtype(dtype, [&](auto s) {
        launch("masked_input", masked_input_kernel<decltype(s)>, dim3(blocks_of(input.count)),
               kThreads, 0, stream, input);
      });
    products.multiply(dtype, D, GH, C, rows, {scratch.du, width, 1, D * width},
                      {scratch.x ? scratch.x : a.x, 0, C, 1}, {a.dw_ih, GH * C, C, 1});
  }
  if (!C || !a.dx) return;
  if (scratch.dx) {
    products.multiply(dtype, D, rows, C, GH, {scratch.du, width, D * width, 1},
                      {a.w_ih.first, GH * C, C, 1}, {scratch.dx, rows * C, C, 1});
    products.sum(dtype, rows * C, D, scratch.dx, a.dx);
  } else {
    products.multiply(dtype, 1, rows, C, D * GH, {scratch.du, 0, D * GH, 1},
                      {a.w_ih.first, 0, C, 1}, {a.dx, 0, C, 1});
  }
}

// The family of the plan sweeps.
template <typename A, typename States>
void run_family(const A& a, const States& states, Dtype dtype, const Plan& plan, void* stream) {
  switch (plan.family()) {
    case Family::kRow:
      return sweep_row(a, states, dtype, plan, stream);
    case Family::kTensorCore:
      if (a.cell >= kNumActivations) return sweep_tensor_gated(a, states, dtype, plan, stream);
      return sweep_tensor(a, states, dtype, plan, stream);
    case Family::kCluster:
      return sweep_cluster(a, states, dtype, plan, stream);
    case Family::kLevel:
      return sweep_level(a, states, dtype, plan, stream);
  }
}

}  // namespace

int64_t sweep_workspace(const SweepForward& a, Dtype dtype, const Device& device) {
  Workspace workspace(nullptr, dtype);
  ForwardScratch(a, dtype, plan_sweep(sizes_of(a, dtype), device), workspace);
  return workspace.size();
}

void sweep(const SweepForward& given, Dtype dtype, const Device& device, void* base,
           Products& products, void* stream) {
  SweepForward a = given;
  const Plan plan = plan_sweep(sizes_of(a, dtype), device);
  Workspace workspace(base, dtype);
  const ForwardScratch scratch(a, dtype, plan, workspace);
  if (!a.h) a.h = scratch.h;
  if (!a.c) a.c = scratch.c;
  if (scratch.u) {
    const int64_t width = a.D * gates_of(a.cell) * a.H;
    products.multiply(dtype, 1, a.B * a.N, width, a.C, {a.x, 0, a.C, 1}, {a.w_ih.first, 0, 1, a.C},
                      {scratch.u, 0, width, 1});
    a.x = scratch.u, a.C = 0;
  }
  run_family(a, ForwardStates{scratch.kept}, dtype, plan, stream);
  if (a.K && !plan.projects)
    sparse_projection({a.B, a.N, a.D, a.H, a.K, a.h, a.projection, a.s}, dtype, stream);
}

int64_t sweep_backward_workspace(const SweepBackward& a, Dtype dtype, const Device& device) {
  Workspace workspace(nullptr, dtype);
  BackwardScratch(a, plan_sweep(sizes_of(a, dtype), device), device, workspace);
  return workspace.size();
}

void sweep_backward(const SweepBackward& a, Dtype dtype, const Device& device, void* base,
                    Products& products, void* stream) {
  const Plan plan = plan_sweep(sizes_of(a, dtype), device);
  Workspace workspace(base, dtype);
  const BackwardScratch scratch(a, plan, device, workspace);
  // dh with the projection's share in it, unless the sweep itself adds that.
  if (a.ds)
    sparse_projection_backward(projection_of(a, scratch.dh), a.dh, dtype, device,
                               scratch.dprojection, products, stream);
  else if (a.dprojection)
    products.sum(dtype, a.D * a.K * a.N, 0, nullptr, a.dprojection);
  const BackwardStates states{scratch.dh ? scratch.dh : a.dh,
                              scratch.du,
                              scratch.q,
                              scratch.dw_hh,
                              scratch.dw_ih,
                              scratch.dbias,
                              scratch.dm,
                              scratch.factors};
  run_family(a, states, dtype, plan, stream);
  run_sums(a, scratch, plan, dtype, products, stream);
}

}  // namespace strnn::cuda
