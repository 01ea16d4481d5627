// Forward sweep, a launch per group of the program; see sweep_level.cuh for the plan and
// sweep_forward.cu for the op.
//
// Predicted, not measured (H200 at 1.98 GHz), a step of a bidirectional chain with H = 1024, B = 64
// in float32: 128 tiles, one per SM, 16 blocks of k each of 64 x 32 x 32 fma (0.33 us) behind a
// latency of 0.4 us: 12 us, and 2.5 us for the launch. The general family fetches W (4 MB) in every
// CTA for every four rows: 400 us at 40 bytes per ns of an SM. An ideal product would take 4 us.
#include "families.h"
#include "sweep_level.cuh"

namespace strnn::cuda {
namespace {

struct LevelForwardArgs {
  LevelSweep sweep;
  SweepForward a;
};

template <typename S>
__global__ void __launch_bounds__(kLevelThreads, sizeof(S) == 8 ? 1 : 2)
    sweep_forward_level_kernel(const LevelForwardArgs f) {
  using T = acc_t<S>;
  STRNN_DYNAMIC_SHARED(raw);
  const SweepForward& a = f.a;
  const int64_t N = a.N, D = a.D, H = a.H, d = blockIdx.y;
  const auto at = [&](int64_t b, int64_t n) { return ((b * N + n) * D + d) * H; };

  const auto extra = [&](const LevelItem& item, int k) -> T {
    const int64_t row = item.b * D + d;
    const bool enters = a.entry ? a.entry[row] == item.n : item.begin == item.end;
    return enters ? to_acc(static_cast<const S*>(a.h0)[row * H + k]) : T(0);
  };
  const auto keep = [](const LevelItem&, int, T) {};
  const auto finish = [&](const LevelItem& item, int j, T sum) {
    const int64_t to = at(item.b, item.n) + j;
    sum += to_acc(static_cast<const S*>(a.x)[to]);
    if (a.bias.first) sum += to_acc(static_cast<const S*>(a.bias.first)[d * H + j]);
    if (a.pre) static_cast<S*>(a.pre)[to] = from_acc<S>(sum);
    T y;
    if (a.gate)
      y = to_acc(static_cast<const S*>(a.gate)[to]) * sum;
    else
      y = a.mask && !a.mask[item.b * N + item.n] ? T(0) : activate(a.cell, sum);
    static_cast<S*>(a.h)[to] = from_acc<S>(y);
  };
  sweep_level<S>(f.sweep, Carver{raw}, static_cast<const S*>(a.h), a.h0 != nullptr, extra, keep,
                 finish);
}

}  // namespace

void sweep_forward_level(const SweepForward& a, Dtype dtype, const Plan& plan, void* stream) {
  LevelForwardArgs f{};
  f.sweep = {a.program, a.B, a.N, a.D, static_cast<int>(a.H), 0, a.w_hh.first, a.H, 1};
  f.a = a;
  with_dtype(dtype, [&](auto s) {
    launch_levels("sweep_forward_level", sweep_forward_level_kernel<decltype(s)>, f, plan, stream);
  });
}

}  // namespace strnn::cuda
