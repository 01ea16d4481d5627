// Everything that is compiled once per instruction set. A capability_<name>.cpp sets the compiler's
// target, defines STRNN_CAPABILITY (its name, and a namespace) and STRNN_VEC_BYTES, and includes
// this file. The standard headers come before the target is set, so that no inline function of the
// standard library is compiled for a set that the machine may lack. The width is a macro of our own
// because g++ reads a whole file before it obeys the target pragma: __AVX512F__ would not be
// defined.

namespace strnn::cpu::STRNN_CAPABILITY {

#include "tiles.h"
//
#include "vec.h"
//
#include "activation.h"
#define STRNN_CELL_INLINE STRNN_INLINE
#include "../common/cell.h"
#include "gemm.h"
#ifdef STRNN_TILES
#include "gemm_tiles.h"
#endif
#include "scratch.h"
//
#include "sweep_kernel.h"
//
#include "sparse_projection_kernel.h"
#include "sweep_backward.h"
#include "sweep_forward.h"

#ifdef STRNN_PAIRS
// Products of bfloat16 by pairs; but in a relu's forward that a backward follows those of x alone:
// rounding a state across the kink would change its derivative. All else is STRNN_BASE's.
inline void sweep(const SweepForward& a, Dtype dtype, int num_threads, ParallelFor parallel_for) {
  if (dtype != Dtype::kBFloat16 || a.gate)
    STRNN_BASE::kCapability.sweep(a, dtype, num_threads, parallel_for);
  else if (a.cell == kRelu && a.has_backward)
    SweepForwardKernel<BFloat16, float, Pair>::run(a, num_threads, parallel_for);
  else
    SweepForwardKernel<BFloat16, Pair>::run(a, num_threads, parallel_for);
}
inline void sweep_backward(const SweepBackward& a, Dtype dtype, int num_threads,
                           ParallelFor parallel_for) {
  if (dtype == Dtype::kBFloat16 && !a.gate)
    SweepBackwardKernel<BFloat16, Pair>::run(a, num_threads, parallel_for);
  else
    STRNN_BASE::kCapability.sweep_backward(a, dtype, num_threads, parallel_for);
}
inline void sparse_projection(const SparseProjection& a, Dtype dtype, int num_threads,
                              ParallelFor parallel_for) {
  STRNN_BASE::kCapability.sparse_projection(a, dtype, num_threads, parallel_for);
}
inline void sparse_projection_backward(const SparseProjectionBackward& a, Dtype dtype,
                                       int num_threads, ParallelFor parallel_for) {
  STRNN_BASE::kCapability.sparse_projection_backward(a, dtype, num_threads, parallel_for);
}
#else
// Calls f(S{}) with the storage type of dtype.
template <typename F>
void with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Half{});
  }
}

inline void sweep(const SweepForward& a, Dtype dtype, int num_threads, ParallelFor parallel_for) {
  with_dtype(dtype,
             [&](auto s) { SweepForwardKernel<decltype(s)>::run(a, num_threads, parallel_for); });
}
inline void sweep_backward(const SweepBackward& a, Dtype dtype, int num_threads,
                           ParallelFor parallel_for) {
  with_dtype(dtype,
             [&](auto s) { SweepBackwardKernel<decltype(s)>::run(a, num_threads, parallel_for); });
}
inline void sparse_projection(const SparseProjection& a, Dtype dtype, int num_threads,
                              ParallelFor parallel_for) {
  with_dtype(dtype, [&](auto s) {
    SparseProjectionKernel<decltype(s)>::forward(a, num_threads, parallel_for);
  });
}
inline void sparse_projection_backward(const SparseProjectionBackward& a, Dtype dtype,
                                       int num_threads, ParallelFor parallel_for) {
  with_dtype(dtype, [&](auto s) {
    SparseProjectionKernel<decltype(s)>::backward(a, num_threads, parallel_for);
  });
}
#endif

const Capability kCapability{
    STRNN_NAME(STRNN_CAPABILITY), kVecBytes, sweep, sweep_backward, sparse_projection,
    sparse_projection_backward};

}  // namespace strnn::cpu::STRNN_CAPABILITY
