// The passes of the sweep, unit by unit of a node: what is added to the sum of its predecessors,
// and what becomes of the product. A family of kernels is one template over a pass; it knows where
// the states of predecessors are, makes the product, and hands over the units that a thread has:
// `units` loads and stores them.
//
//   forward   pre = W q + u, q = sum_pred h (+ h0);  h = mask * act(pre), or gate * pre
//   backward  see sweep_backward.cu
#pragma once
#include "../common/sweep.h"
#include "activation.cuh"
#include "families.h"
#include "storage.cuh"

namespace strnn::cuda {

// One unit, or none.
struct OneUnit {
  bool is_there = true;

  template <typename S>
  __device__ __forceinline__ void load(const S* from, acc_t<S> (&v)[1]) const {
    v[0] = is_there ? to_acc(*from) : acc_t<S>(0);
  }
  template <typename S>
  __device__ __forceinline__ void store(S* to, const acc_t<S> (&v)[1]) const {
    if (is_there) *to = from_acc<S>(v[0]);
  }
};

template <typename S>
struct Forward {
  using Storage = S;
  using Sums = S;  // what the states that it gathers are kept as in memory
  static constexpr bool kIsBackward = false;
  SweepForward a;

  // Element (j, k) of W is at j * weight_j + k * weight_k.
  __host__ __device__ int64_t weight_j() const { return a.H; }
  __host__ __device__ int64_t weight_k() const { return 1; }
  __device__ __forceinline__ const S* states() const { return static_cast<const S*>(a.h); }

  __device__ __forceinline__ bool has_h0() const { return a.h0 != nullptr; }
  // The node where h0 of a row of (B, D) enters; has a meaning only with a.entry.
  __device__ __forceinline__ int entry(int64_t row) const { return a.entry ? a.entry[row] : -1; }
  // Adds h0 from unit j on, if it enters at node n.
  template <typename Units, int kCount>
  __device__ __forceinline__ void add_h0(const Units& units, int64_t row, int entry, int n,
                                         bool is_source, int j, acc_t<S> (&sum)[kCount]) const {
    if (!a.h0 || !(a.entry ? entry == n : is_source)) return;
    acc_t<S> h0[kCount];
    units.load(static_cast<const S*>(a.h0) + row * a.H + j, h0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] += h0[i];
  }
  template <typename Units, int kCount>
  __device__ __forceinline__ void keep(const Units&, int64_t, const acc_t<S> (&)[kCount]) const {}

  // From the pre-activations v of the units at `at` of (B, N, D, H) to their states.
  template <typename Units, int kCount>
  __device__ __forceinline__ void finish(const Units& units, int64_t at, bool is_off,
                                         acc_t<S> (&v)[kCount], const acc_t<S> (&)[kCount]) const {
    if (a.pre) units.store(static_cast<S*>(a.pre) + at, v);
    if (a.gate) {
      acc_t<S> gate[kCount];
      units.load(static_cast<const S*>(a.gate) + at, gate);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] *= gate[i];
    } else {
      activate(a.cell, v, S{});
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i)  // by choice, as 0 * v may be NaN
      if (is_off) v[i] = 0;
    if (a.h) units.store(static_cast<S*>(a.h) + at, v);
  }
};

// Du: what du and q are kept as.
template <typename S, typename Du>
struct Backward {
  using Storage = S;
  using Sums = Du;
  static constexpr bool kIsBackward = true;
  SweepBackward a;
  BackwardStates to;

  __host__ __device__ int64_t weight_j() const { return 1; }
  __host__ __device__ int64_t weight_k() const { return a.H; }
  __device__ __forceinline__ const Du* states() const { return static_cast<const Du*>(to.du); }

  __device__ __forceinline__ bool has_h0() const { return false; }
  __device__ __forceinline__ int entry(int64_t) const { return -1; }
  template <typename Units, int kCount>
  __device__ __forceinline__ void add_h0(const Units&, int64_t, int, int, bool, int,
                                         acc_t<S> (&)[kCount]) const {}
  template <typename Units, int kCount>
  __device__ __forceinline__ void keep(const Units& units, int64_t at,
                                       const acc_t<S> (&sum)[kCount]) const {
    if (to.q) units.store(static_cast<Du*>(to.q) + at, sum);
  }

  // From t, in v, and h to du.
  template <typename Units, int kCount>
  __device__ __forceinline__ void finish(const Units& units, int64_t at, bool is_off,
                                         acc_t<S> (&v)[kCount], const acc_t<S> (&h)[kCount]) const {
    acc_t<S> other[kCount];
    if (a.gate) {
      units.load(static_cast<const S*>(a.pre) + at, other);
#pragma unroll
      for (int i = 0; i < kCount; ++i) other[i] *= v[i];
      units.store(static_cast<S*>(a.dgate) + at, other);
      units.load(static_cast<const S*>(a.gate) + at, other);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) other[i] = h[i];
      derive(a.cell, other);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = is_off ? acc_t<S>(0) : other[i] * v[i];
    if (to.du) units.store(static_cast<Du*>(to.du) + at, v);
    if (to.dx) units.store(static_cast<S*>(to.dx) + at, v);
  }
};

}  // namespace strnn::cuda
