// The passes of the sweep, unit by unit of a node: what is added to the sum of its predecessors,
// and what becomes of the product. A family of kernels is one template over a pass; it knows where
// the states of predecessors are, makes the product, and hands over the units that a thread has:
// `units` loads and stores them.
//
//   forward   pre = W q + u, q = sum_pred h (+ h0);  h = mask * act(pre), or gate * pre
//   backward  see sweep_backward.cu
//
// CellForward and CellBackward are those of gated cells: a row of pre-activations, of u, of da and
// of what is saved has several blocks of H, and beside the product a node takes m, the reduced
// carry.
#pragma once
#include <type_traits>
#include <utility>

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
  using Cell = AnyElman;
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
  // Adds h0, or another first state, from unit j on, if it enters at node n.
  template <typename Units, int kCount>
  __device__ __forceinline__ void add_h0(const Units& units, int64_t row, int entry, int n,
                                         bool is_source, int j, acc_t<S> (&sum)[kCount]) const {
    add_first(units, a.h0, row, entry, n, is_source, j, sum);
  }
  template <typename Units, int kCount>
  __device__ __forceinline__ void add_first(const Units& units, const void* first, int64_t row,
                                            int entry, int n, bool is_source, int j,
                                            acc_t<S> (&sum)[kCount]) const {
    if (!first || !(a.entry ? entry == n : is_source)) return;
    acc_t<S> h0[kCount];
    units.load(static_cast<const S*>(first) + row * a.H + j, h0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] += h0[i];
  }
  template <typename Units, int kCount>
  __device__ __forceinline__ void keep(const Units&, int64_t, const acc_t<S> (&)[kCount]) const {}
  // A sum of so many predecessors, or their mean.
  __device__ __forceinline__ acc_t<S> reduced(acc_t<S> sum, int count) const {
    return a.mean && count > 1 ? sum * (acc_t<S>(1) / acc_t<S>(count)) : sum;
  }
  // What each predecessor is multiplied by, or null: nothing.
  __device__ __forceinline__ acc_t<S>* factors() const { return nullptr; }

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
  using Cell = AnyElman;
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
  __device__ __forceinline__ acc_t<S> reduced(acc_t<S> sum, int) const { return sum; }
  __device__ __forceinline__ acc_t<S>* factors() const {
    return static_cast<acc_t<S>*>(to.factors);
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

// Calls f with 0 .. kCount - 1 as constants.
template <typename F, int... kIndices>
__device__ __forceinline__ void for_each(std::integer_sequence<int, kIndices...>, const F& f) {
  (f(std::integral_constant<int, kIndices>{}), ...);
}
template <typename Cell>
using BlocksOf = std::make_integer_sequence<int, Cell::kBlocks>;

template <typename S, typename Gated>
struct CellForward : Forward<S> {
  using Cell = Gated;
  using T = acc_t<S>;
  using Forward<S>::a;
  T* kept;  // (B, N, D, H): what is carried, where storage rounds it

  __device__ __forceinline__ const T* carried() const {
    if constexpr (!std::is_same_v<S, T>) return kept;
    return static_cast<const T*>(Cell::kCarry == Carry::kState ? a.h : a.c);
  }
  __device__ __forceinline__ const void* first_carried() const {
    return Cell::kCarry == Carry::kState ? a.h0 : a.c0;
  }

  // From the products with q, in v by block, to the state of unit j of `row` of (B, N, D).
  __device__ __forceinline__ void finish(int64_t row, int d, int64_t j, bool is_off,
                                         T (&v)[Cell::kBlocks], T m) const {
    const int64_t H = a.H, at = row * H + j;
    const S* u = static_cast<const S*>(a.x) + row * Cell::kGates * H + j;
    const S* bias = static_cast<const S*>(a.bias.first) + d * Cell::kBlocks * H + j;
    for_each(BlocksOf<Cell>{}, [&](auto block) {
      constexpr int b = decltype(block)::value, kOfBias = Cell::kBiasGate[b];
      if constexpr (b < Cell::kGates) {
        constexpr int kOfInput = Cell::kInputGate[b];
        v[b] += to_acc(u[kOfInput * H]);
      }
      if (a.bias.first) v[b] += to_acc(bias[kOfBias * H]);
    });
    CellState<T> y = Cell::forward(v, m);
    if (is_off) y = {};
    if (a.saved && !is_off) {
      T values[Cell::kSaved];
      Cell::save(v, m, values);
      S* saved = static_cast<S*>(a.saved) + row * Cell::kSaved * H + j;
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) saved[k * H] = from_acc<S>(values[k]);
    }
    static_cast<S*>(a.h)[at] = from_acc<S>(y.h);
    if (Cell::kCarry == Carry::kCell && a.c) static_cast<S*>(a.c)[at] = from_acc<S>(y.c);
    if (!std::is_same_v<S, T>) kept[at] = Cell::kCarry == Carry::kState ? y.h : y.c;
  }
};

template <typename S, typename Gated>
struct CellBackward : Backward<S, acc_t<S>> {
  using Cell = Gated;
  using T = acc_t<S>;
  using Backward<S, T>::a;
  using Backward<S, T>::to;

  __device__ __forceinline__ const T* carried() const { return static_cast<const T*>(to.dm); }

  // From t, and the gradient of what was carried on from there, to da and dm.
  __device__ __forceinline__ void finish(int64_t row, int, int64_t j, bool is_off, T (&v)[1],
                                         T m) const {
    const int64_t H = a.H, at = row * H + j;
    T dh = v[0], dc = 0;
    if (to.dh) dh += to_acc(static_cast<const S*>(to.dh)[at]);
    if (Cell::kCarry == Carry::kState) dh += m;
    if (Cell::kCarry == Carry::kCell) {
      dc = m;
      if (a.dc) dc += to_acc(static_cast<const S*>(a.dc)[at]);
    }
    const S* saved = static_cast<const S*>(a.saved) + row * Cell::kSaved * H + j;
    T values[Cell::kSaved];
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) values[k] = to_acc(saved[k * H]);
    const auto gradient = Cell::backward(values, to_acc(static_cast<const S*>(a.h)[at]), dh, dc);
    T* da = static_cast<T*>(to.du) + row * Cell::kBlocks * H + j;
    for_each(BlocksOf<Cell>{}, [&](auto block) {  // by choice: what a masked node saved may be NaN
      constexpr int b = decltype(block)::value, kOfBias = Cell::kBiasGate[b];
      da[kOfBias * H] = is_off ? T(0) : gradient.a[b];
    });
    static_cast<T*>(to.dm)[at] = is_off ? T(0) : gradient.m;
  }
};

}  // namespace strnn::cuda
