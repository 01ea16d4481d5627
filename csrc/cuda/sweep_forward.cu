// Forward sweep: h = mask * act(u + w_hh sum_pred h), u = w_ih x + bias or given; with a gate h =
// gate * (u + w_hh sum_pred h); of gated cells see common/cell.h; s = projection h. The family of
// the plan sweeps; u before it and s after it are products of their own where that does not fuse
// them.
#include <type_traits>

#include "families.h"
#include "gemm.cuh"
#include "kernels.h"
#include "workspace.h"

namespace strnn::cuda {
namespace {

// Scratch of a forward sweep.
template <typename S>
struct Scratch {
  S *h, *u, *c;
  acc_t<S>* kept;
  char* cluster_weights;

  Scratch(const SweepForward& a, const Plan& plan, Workspace& workspace) {
    const int64_t states = a.B * a.N * a.D * a.H;
    const bool is_level = plan.family() == Family::kLevel;
    const bool is_gated = a.cell >= kNumActivations, is_rounded = !std::is_same_v<S, acc_t<S>>;
    const bool needs_h = (a.K && !plan.projects) || is_level;
    h = workspace.take<S>(!a.h && needs_h ? states : 0);
    u = workspace.take<S>(a.C && !plan.takes_x ? gates_of(a.cell) * states : 0);
    c = workspace.take<S>(is_level && a.cell == kLstm && !is_rounded && !a.c ? states : 0);
    kept = workspace.take<acc_t<S>>(is_level && is_gated && is_rounded ? states : 0);
    cluster_weights = workspace.take<char>(cluster_weights_bytes(a.D, a.H, plan));
  }
};

// u[b,n,d] = w_ih[d] x[b,n] before the sweep.
template <typename S>
void input_product(const SweepForward& a, S* u, void* stream) {
  const int64_t rows = gates_of(a.cell) * a.H;
  Gemm product{a.B * a.N, rows, a.C, a.C, a.D, 1, {}, {}, {}};
  product.a = {a.x, a.C, 0, 1, 0};
  product.b = {a.w_ih.first, a.C, 0, 1, rows * a.C};
  product.out = {u, a.D * rows, rows, 0};
  gemm<S, S, S>(product, stream);
}

template <typename S>
void run(SweepForward a, Dtype dtype, const Device& device, Workspace workspace, void* stream) {
  const Plan plan = plan_sweep(sizes_of(a, dtype), device);
  const Scratch<S> scratch(a, plan, workspace);
  if (!a.h) a.h = scratch.h;
  if (!a.c) a.c = scratch.c;
  if (scratch.u) {
    input_product<S>(a, scratch.u, stream);
    a.x = scratch.u, a.C = 0;
  }
  switch (plan.family()) {
    case Family::kRow:
      sweep_forward_row(a, plan, stream);
      break;
    case Family::kTensorCore:
      (a.cell < kNumActivations ? sweep_forward_tensor : sweep_forward_tensor_gated)(a, dtype, plan,
                                                                                     stream);
      break;
    case Family::kCluster:
      sweep_forward_cluster(a, dtype, plan, scratch.cluster_weights, stream);
      break;
    case Family::kLevel:
      sweep_forward_level(a, dtype, scratch.kept, plan, stream);
  }
  if (a.K && !plan.projects)
    sparse_projection({a.B, a.N, a.D, a.H, a.K, a.h, a.projection, a.s}, dtype, stream);
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
