// Backward sweep, a launch per group of the reversed program; see sweep_level.cuh for the plan and
// sweep_backward.cu for the op. Predicted, not measured: as forward.
#include "families.h"
#include "sweep_level.cuh"

namespace strnn::cuda {
namespace {

struct LevelBackwardArgs {
  LevelSweep sweep;
  SweepBackward a;
  BackwardStates states;
};

template <typename S>
__global__ void __launch_bounds__(kLevelThreads, sizeof(S) == 8 ? 1 : 2)
    sweep_backward_level_kernel(const LevelBackwardArgs f) {
  using T = acc_t<S>;
  STRNN_DYNAMIC_SHARED(raw);
  const SweepBackward& a = f.a;
  const int64_t N = a.N, D = a.D, H = a.H, d = blockIdx.y;
  const auto at = [&](int64_t b, int64_t n) { return ((b * N + n) * D + d) * H; };

  const auto extra = [](const LevelItem&, int) { return T(0); };
  const auto keep = [&](const LevelItem& item, int k, T sum) {
    static_cast<T*>(f.states.q)[at(item.b, item.n) + k] = sum;
  };
  const auto finish = [&](const LevelItem& item, int j, T t) {
    const int64_t to = at(item.b, item.n) + j;
    if (f.states.dh) t += to_acc(static_cast<const S*>(f.states.dh)[to]);
    T du;
    if (a.gate) {
      static_cast<S*>(a.dgate)[to] = from_acc<S>(to_acc(static_cast<const S*>(a.pre)[to]) * t);
      du = to_acc(static_cast<const S*>(a.gate)[to]) * t;
    } else {
      const T h = to_acc(static_cast<const S*>(a.h)[to]);
      du = a.mask && !a.mask[item.b * N + item.n] ? T(0) : derivative(a.cell, h) * t;
    }
    static_cast<T*>(f.states.du)[to] = du;
    if (f.states.dx) static_cast<S*>(f.states.dx)[to] = from_acc<S>(du);
  };
  sweep_level<S>(f.sweep, Carver{raw}, static_cast<const T*>(f.states.du), false, extra, keep,
                 finish);
}

}  // namespace

void sweep_backward_level(const SweepBackward& a, const BackwardStates& states, Dtype dtype,
                          const Plan& plan, void* stream) {
  LevelBackwardArgs f{};
  f.sweep = {a.program, a.B, a.N, a.D, static_cast<int>(a.H), 0, a.w_hh.first, 1, a.H};
  f.a = a, f.states = states;
  with_dtype(dtype, [&](auto s) {
    launch_levels("sweep_backward_level", sweep_backward_level_kernel<decltype(s)>, f, plan,
                  stream);
  });
}

}  // namespace strnn::cuda
