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
// sums, which have no serial chain, follow over the whole device (gemm.cuh), each in parts that are
// added up in their order: bitwise repeatable, no atomics.
#include <algorithm>
#include <type_traits>

#include "families.h"
#include "gemm.cuh"
#include "kernels.h"
#include "workspace.h"

namespace strnn::cuda {
namespace {

// e[b,d] = sum of du[b,n,d] over the nodes where h0 entered, in the order of the program: `gates`
// blocks of H, from rows that have `blocks` (state_column).
struct Entered {
  Program program;
  int64_t B, H, gates, blocks;
  const int32_t* entry;
  const void* du;
  void* e;
};

template <typename Du, typename T>
__global__ void __launch_bounds__(128) sum_entered_kernel(const Entered a) {
  const int64_t N = a.program.N, D = a.program.D, columns = a.gates * a.H, width = a.blocks * a.H;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= a.B * D * columns) return;
  const int64_t j = at % columns, d = at / columns % D, b = at / columns / D;
  const Du* du = static_cast<const Du*>(a.du) + (b * N * D + d) * width +
                 state_column(j, a.H, a.gates, a.blocks);
  T sum = 0;
  if (a.entry) {
    const int64_t n = a.entry[b * D + d];
    if (n >= 0 && n < N) sum = to_acc(du[n * D * width]);
  } else {
    for (int64_t i = 0; i < N; ++i)
      if (a.program.num_succ[d * N + i] == 0)
        sum += to_acc(du[a.program.node[d * N + i] * D * width]);
  }
  static_cast<T*>(a.e)[at] = sum;
}

SparseProjectionBackward projection_of(const SweepBackward& a, void* dh) {
  return {a.B, a.N, a.D, a.H, a.K, a.ds, a.h, a.projection, dh, a.dprojection};
}

// Scratch of a backward sweep. Parts of the sums over rows: dw_hh [parts (+ 1 for h0)], dw_ih and
// dbias [parts]. Du: what du and q are kept in.
template <typename S, typename Du>
struct Scratch {
  using T = acc_t<S>;
  S* dh;
  Du *du, *q;
  T *dm, *factors, *e, *dw_hh, *dw_ih, *dbias;
  T* dh0;  // [2]: through the product, and through what is carried
  int64_t parts_hh, parts_ih, parts_bias;
  bool sums_input;  // the sweep leaves the parts of dw_ih and dbias
  void* projection;
  char* cluster_weights;

  Scratch(const SweepBackward& a, Dtype dtype, const Plan& plan, const Device& device,
          Workspace& workspace) {
    const int64_t states = a.B * a.N * a.D * a.H, rows = a.B * a.N, first = a.B * a.D * a.H;
    const int64_t gates = gates_of(a.cell), blocks = bias_rows_of(a.cell), GH = gates * a.H;
    dh = workspace.take<S>(a.ds && !plan.projects ? states : 0);
    projection = workspace.take<char>(
        a.ds ? sparse_projection_backward_workspace(projection_of(a, nullptr), dtype, device) : 0);
    const bool is_du_in_dx = std::is_same_v<S, Du> && a.C == 0 && a.dx;
    const bool is_level = plan.family() == Family::kLevel;
    const bool is_du_needed = (a.C && (a.dx || !plan.sums_input)) || a.h0 || is_level;
    du = is_du_in_dx ? static_cast<Du*>(a.dx)
                     : workspace.take<Du>(is_du_needed ? blocks * states : 0);
    q = workspace.take<Du>(plan.sums_states ? 0 : gates * states);
    const bool is_gated = a.cell >= kNumActivations;
    dm = workspace.take<T>(is_gated && (is_level || a.h0 || a.c0) ? states : 0);
    factors = workspace.take<T>(is_level && a.mean ? a.D * a.N : 0);
    e = workspace.take<T>(a.h0 ? gates * first : 0);
    dh0 = workspace.take<T>(is_gated && (a.h0 || a.c0) ? 2 * first : 0);
    cluster_weights = workspace.take<char>(cluster_weights_bytes(a.D, a.H, plan));
    sums_input = plan.sums_input;
    const auto parts = [&](bool sums, int64_t tiles) {
      return sums ? plan.ctas : choose_splits(tiles * a.D, rows, device);
    };
    parts_hh = parts(plan.sums_states, gemm_tiles<Du, S>(GH, a.H));
    parts_ih = parts(sums_input, gemm_tiles<Du, S>(GH, a.C));
    parts_bias = parts(sums_input, gemm_tiles<float, float>(blocks * a.H, 1));
    dw_hh = workspace.take<T>((parts_hh + 1) * a.D * GH * a.H);
    dw_ih = workspace.take<T>(a.dw_ih ? parts_ih * a.D * GH * a.C : 0);
    dbias = workspace.take<T>(a.dbias ? parts_bias * a.D * blocks * a.H : 0);
  }

  // What the sweep is to write.
  BackwardStates states(const SweepBackward& a, const void* dh) const {
    BackwardStates to{dh, du, q};
    if (!a.C && static_cast<const void*>(du) != a.dx) to.dx = a.dx;
    to.dm = dm, to.factors = factors;
    if constexpr (std::is_same_v<T, float>) {
      if (!q) to.dw_hh = dw_hh;
      if (sums_input) to.dw_ih = dw_ih, to.dbias = dbias;
    }
    return to;
  }
};

// The gradients that are sums over rows, and dx and dh0, from du and q.
template <typename S, typename Du>
void run_sums(const SweepBackward& a, const Scratch<S, Du>& scratch, void* stream) {
  using T = acc_t<S>;
  const int64_t B = a.B, D = a.D, C = a.C, H = a.H, rows = B * a.N, state = D * H;
  const int64_t gates = gates_of(a.cell), blocks = bias_rows_of(a.cell);
  const int64_t GH = gates * H, weights = D * GH * H;
  const auto over_rows = [&](int64_t M, int64_t N, int64_t parts) {
    return Gemm{M, N, rows, std::max<int64_t>(1, rows), D, parts, {}, {}, {}};
  };
  const Operand du{scratch.du, 1, 0, blocks * state, blocks * H};

  if (scratch.q) {
    Gemm hh = over_rows(GH, H, scratch.parts_hh);
    hh.a = {scratch.q, 1, 0, gates * state, GH};
    hh.b = {a.h, 1, 0, state, H};
    hh.out = {scratch.dw_hh, H, GH * H, weights};
    gemm<Du, S, T>(hh, stream);
  }
  const auto sum_entered = [&](auto* from, int64_t gates, int64_t blocks, T* to) {
    using From = std::remove_pointer_t<decltype(from)>;
    launch("sum_entered", sum_entered_kernel<From, T>,
           dim3(static_cast<unsigned>((B * gates * state + 127) / 128)), 128, 0, stream,
           Entered{a.program, B, H, gates, blocks, a.entry, from, to});
  };
  T* const dm0 = scratch.dh0 + B * state;
  if (scratch.dh0) sum_entered(scratch.dm, 1, 1, dm0);
  if (a.dc0) reduce<S>({{B * state, 1, dm0, a.dc0}}, stream);
  if (a.h0) {
    sum_entered(scratch.du, gates, blocks, scratch.e);
    Gemm entered{GH, H, B, std::max<int64_t>(1, B), D, 1, {}, {}, {}};
    entered.a = {scratch.e, 1, 0, gates * state, GH};
    entered.b = {a.h0, 1, 0, state, H};
    entered.out = {scratch.dw_hh + scratch.parts_hh * weights, H, GH * H, weights};
    gemm<T, S, T>(entered, stream);
    Gemm dh0{B, H, GH, GH, D, 1, {}, {}, {}};
    dh0.a = {scratch.e, gates * state, 0, 1, GH};
    dh0.b = {a.w_hh.first, 1, 0, H, GH * H};
    dh0.out = {scratch.dh0 ? scratch.dh0 : a.dh0, state, H, 0};
    if (a.dh0 && scratch.dh0) {
      gemm<T, S, T>(dh0, stream);
      reduce<S>({{B * state, a.cell == kGru ? 2 : 1, scratch.dh0, a.dh0}}, stream);
    } else if (a.dh0) {
      gemm<T, S, S>(dh0, stream);
    }
  }
  if (a.dbias) {
    Gemm bias = over_rows(blocks * H, 1, scratch.parts_bias);
    bias.a = du;
    bias.b = {nullptr, 1, 0, 0, 0};
    bias.out = {scratch.dbias, 1, blocks * H, blocks * state};
    if (!scratch.sums_input) gemm<Du, S, T>(bias, stream);
  }
  if (a.dw_ih) {
    Gemm ih = over_rows(GH, C, scratch.parts_ih);
    ih.a = du;
    ih.b = {a.x, 1, 0, C, 0};
    ih.out = {scratch.dw_ih, C, GH * C, gates * state * C};
    ih.live_b = a.mask;
    if (!scratch.sums_input) gemm<Du, S, T>(ih, stream);
  }
  reduce<S>({{weights, scratch.parts_hh + (a.h0 ? 1 : 0), scratch.dw_hh, a.dw_hh},
             {a.dbias ? blocks * state : 0, scratch.parts_bias, scratch.dbias, a.dbias},
             {a.dw_ih ? gates * state * C : 0, scratch.parts_ih, scratch.dw_ih, a.dw_ih}},
            stream);
  if (C && a.dx) input_gradient<S>(a, scratch.du, stream);
}

// dh with the projection's share in it, unless the sweep itself adds that.
template <typename S, typename Du>
const void* projected_gradient(const SweepBackward& a, const Scratch<S, Du>& scratch, Dtype dtype,
                               const Device& device, void* stream) {
  if (a.dprojection && !a.ds) reduce<S>({{a.D * a.K * a.N, 0, nullptr, a.dprojection}}, stream);
  if (!a.ds) return a.dh;
  sparse_projection_backward(projection_of(a, scratch.dh), a.dh, dtype, device, scratch.projection,
                             stream);
  return scratch.dh ? scratch.dh : a.dh;
}

template <typename S, typename Du>
void run(const SweepBackward& a, Dtype dtype, const Plan& plan, const Device& device,
         Workspace& workspace, void* stream) {
  const Scratch<S, Du> scratch(a, dtype, plan, device, workspace);
  const BackwardStates to =
      scratch.states(a, projected_gradient(a, scratch, dtype, device, stream));
  switch (plan.family()) {
    case Family::kRow:
      sweep_backward_row(a, to, plan, stream);
      break;
    case Family::kTensorCore:
      (a.cell < kNumActivations ? sweep_backward_tensor : sweep_backward_tensor_gated)(
          a, to, dtype, plan, stream);
      break;
    case Family::kCluster:
      sweep_backward_cluster(a, to, dtype, plan, scratch.cluster_weights, stream);
      break;
    case Family::kLevel:
      sweep_backward_level(a, to, dtype, plan, stream);
  }
  run_sums(a, scratch, stream);
}

// Calls f with the types of the storage and of du and q: the computed type, but where du and q are
// operands of mma.
template <typename F>
void with_types(Dtype dtype, const Plan& plan, const F& f) {
  const bool is_mma = plan.family() == Family::kTensorCore || plan.family() == Family::kCluster;
  with_dtype(dtype, [&](auto s) { is_mma ? f(s, s) : f(s, acc_t<decltype(s)>{}); });
}

}  // namespace

int64_t sweep_backward_workspace(const SweepBackward& a, Dtype dtype, const Device& device) {
  const Plan plan = plan_sweep(sizes_of(a, dtype), device);
  Workspace workspace(nullptr);
  with_types(dtype, plan, [&](auto s, auto du) {
    Scratch<decltype(s), decltype(du)>(a, dtype, plan, device, workspace);
  });
  return workspace.size();
}

void sweep_backward(const SweepBackward& a, Dtype dtype, const Device& device, void* base,
                    void* stream) {
  const Plan plan = plan_sweep(sizes_of(a, dtype), device);
  Workspace workspace(base);
  with_types(dtype, plan, [&](auto s, auto du) {
    run<decltype(s), decltype(du)>(a, dtype, plan, device, workspace, stream);
  });
}

}  // namespace strnn::cuda
