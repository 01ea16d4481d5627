// The sweeps of the families that sweep.cu hands over to.
#pragma once
#include <type_traits>

#include "../common/sweep.h"
#include "planner.h"
#include "workspace.h"

namespace strnn::cuda {

// What the plan of a SweepForward or SweepBackward depends on.
template <typename A>
SweepSizes sizes_of(const A& a, Dtype dtype) {
  constexpr bool kIsBackward = std::is_same_v<A, SweepBackward>;
  const Program& program = a.program;
  return {a.B, a.N, a.D, a.C, a.H, a.K, program.G, program.S, dtype, kIsBackward, a.cell, a.mean};
}

// The families run the sweep itself. What they do not fuse comes apart: u before it (then x holds
// u), the projection, and the sums of the backward sweep over rows.

// What a family reads and leaves beside the arguments.
struct ForwardStates {
  void* kept;  // of level: (B, N, D, H), what is carried, of gated cells in 16 bits
};

// See sweep.cu. All (B, N, D, H), in the storage type. Sums: [plan.ctas] of each, null where
// products over du and q follow.
struct BackwardStates {
  const void* dh;  // or null
  void* du;        // or null, not of level
  void* q;         // or null where the family adds up dw_hh itself
  float* dw_hh;    // [D][H][H]
  float* dw_ih;    // [D][H][C]
  float* dbias;    // [D][H]
  // Of gated cells, whose du (then da) and q have the rows of a bias and of w_hh for each of H
  // units, dm, the gradient of what was carried to a node, in the computed type; null where nobody
  // asks, but not of level. Of level's means [D][N], what a node counts for each of its
  // predecessors, or null.
  void* dm;
  void* factors;
};

// da of a gated cell is in the order of a bias in one piece, of which dbias is the sum and dw_ih
// has the first rows: of a gru r, z, n of the input, n of the state. Where in it row k of w_hh (G
// H) is.
__host__ __device__ constexpr int64_t state_column(int64_t k, int64_t H, int64_t gates,
                                                   int64_t bias_rows) {
  return k < (gates - 1) * H ? k : k + (bias_rows - gates) * H;
}

// The families, of A, States = SweepForward, ForwardStates and SweepBackward, BackwardStates.
// level: h is not null, of an lstm in a type that is computed in c is neither.
template <typename A, typename States>
void sweep_row(const A&, const States&, Dtype, const Plan&, void* stream);
template <typename A, typename States>
void sweep_tensor(const A&, const States&, Dtype, const Plan&, void* stream);
template <typename A, typename States>
void sweep_tensor_gated(const A&, const States&, Dtype, const Plan&, void* stream);
template <typename A, typename States>
void sweep_cluster(const A&, const States&, Dtype, const Plan&, void* stream);
template <typename A, typename States>
void sweep_level(const A&, const States&, Dtype, const Plan&, void* stream);

}  // namespace strnn::cuda
