// The passes of the sweep, unit by unit of a node: what is added to the sum of its predecessors,
// and what becomes of the product. A family of kernels is one template over a pass; it knows where
// the states of predecessors are, makes the product, and hands over the units that a thread has:
// `units` loads and stores them.
//
//   forward   pre = W q + u, q = sum_pred h (+ h0);  h = mask * act(pre), or gate * pre
//   backward  see sweep.cu
//
// CellForward and CellBackward are those of gated cells: a row of pre-activations, of u, of da and
// of what is saved has several blocks of H, and beside the product a node takes m, the reduced
// carry.
#pragma once
#include <array>
#include <type_traits>
#include <utility>

#include "../common/sweep.h"
#include "activation.cuh"
#include "families.h"
#include "launch.cuh"
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

// 1 / count, but for the last bit; a division is a call.
template <typename T>
__device__ __forceinline__ T reciprocal(int count) {
  const T n = static_cast<T>(count);
  T x = __fdividef(1.f, static_cast<float>(count));
  x *= T(2) - n * x;
  if constexpr (sizeof(T) == 8) x *= T(2) - n * x;
  return x;
}

template <typename S>
struct Forward {
  using Storage = S;
  using Cell = AnyElman;
  static constexpr bool kIsBackward = false;
  SweepForward a;

  // Element (j, k) of W is at j * weight_j + k * weight_k.
  __host__ __device__ int64_t weight_j() const { return a.H; }
  __host__ __device__ int64_t weight_k() const { return 1; }
  __device__ __forceinline__ const S* states() const { return static_cast<const S*>(a.h); }
  // All arrays of rows of H elements, null or not.
  std::array<const void*, 9> arrays() const {
    return {a.C ? nullptr : a.x, a.gate, a.h, a.pre, a.h0, a.bias.first, a.c, a.c0, a.saved};
  }

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
    return a.mean && count > 1 ? sum * reciprocal<acc_t<S>>(count) : sum;
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

template <typename S>
struct Backward {
  using Storage = S;
  using Cell = AnyElman;
  static constexpr bool kIsBackward = true;
  SweepBackward a;
  BackwardStates to;

  __host__ __device__ int64_t weight_j() const { return 1; }
  __host__ __device__ int64_t weight_k() const { return a.H; }
  __device__ __forceinline__ const S* states() const { return static_cast<const S*>(to.du); }
  std::array<const void*, 9> arrays() const {
    return {a.h, to.dh, a.gate, a.pre, a.dgate, to.du, to.q, a.saved, a.dc};
  }

  __device__ __forceinline__ bool has_h0() const { return false; }
  __device__ __forceinline__ int entry(int64_t) const { return -1; }
  template <typename Units, int kCount>
  __device__ __forceinline__ void add_h0(const Units&, int64_t, int, int, bool, int,
                                         acc_t<S> (&)[kCount]) const {}
  template <typename Units, int kCount>
  __device__ __forceinline__ void keep(const Units& units, int64_t at,
                                       const acc_t<S> (&sum)[kCount]) const {
    if (to.q) units.store(static_cast<S*>(to.q) + at, sum);
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
    if (to.du) units.store(static_cast<S*>(to.du) + at, v);
  }
};

// Calls f with 0 .. kCount - 1 as constants.
template <typename F, int... kIndices>
__device__ __forceinline__ void for_each(std::integer_sequence<int, kIndices...>, const F& f) {
  (f(std::integral_constant<int, kIndices>{}), ...);
}
template <typename T, int kCount>
__device__ __forceinline__ void add(T (&v)[kCount], const T (&w)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] += w[i];
}
template <typename Cell>
using BlocksOf = std::make_integer_sequence<int, Cell::kBlocks>;

// v: on the way into `finish` kValues, of which those from kFirstResult on are the product; on the
// way out the state, forward h in v[0], backward da in the order of a bias. first: element of
// (B, N, D, H) where a node's row starts.
template <typename S, typename Gated>
struct CellForward : Forward<S> {
  using Cell = Gated;
  using T = acc_t<S>;
  using V = cell_t<S>;
  using Forward<S>::a;
  static constexpr int kValues = Cell::kBlocks, kFirstResult = Cell::kBlocks - Cell::kGates;
  T* kept = nullptr;  // (B, N, D, H): what is carried, where storage rounds it

  __device__ __forceinline__ const T* carried() const {
    if constexpr (!std::is_same_v<S, T>) return kept;
    return static_cast<const T*>(Cell::kCarry == Carry::kState ? a.h : a.c);
  }
  __device__ __forceinline__ const void* first_carried() const {
    return Cell::kCarry == Carry::kState ? a.h0 : a.c0;
  }

  // Blocks of H of what a node reads, and of v which is the k-th block of its state.
  static constexpr int kInputs = Cell::kGates;
  __host__ __device__ static constexpr int state(int) { return 0; }
  __host__ __device__ const S* inputs() const { return static_cast<const S*>(a.x); }

  // v from blocks of u, of the bias and of the product: each puts its k-th into an array.
  template <int kCount, typename Input, typename Bias, typename Product>
  __device__ __forceinline__ void assemble(const Input& input, const Bias& bias,
                                           const Product& product, T (&v)[kValues][kCount]) const {
    for_each(BlocksOf<Cell>{}, [&](auto block) {
      constexpr int b = decltype(block)::value, kOfBias = Cell::kBiasGate[b];
      bias(kOfBias, v[b]);
      T more[kCount];
      if constexpr (b < Cell::kGates) {
        constexpr int kOfInput = Cell::kInputGate[b];
        input(kOfInput, more);
        add(v[b], more);
      }
      if constexpr (b >= kFirstResult) {
        product(b - kFirstResult, more);
        add(v[b], more);
      }
    });
  }

  // From pre-activations and the reduced m to the state and what is carried on, in m.
  template <typename Units, int kCount>
  __device__ __forceinline__ void finish(const Units& units, int64_t first, int64_t j, bool is_off,
                                         T (&v)[kValues][kCount], T (&m)[kCount]) const {
    const int64_t H = a.H, at = first + j;
    T saved[Cell::kSaved][kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      V pre[Cell::kBlocks], values[Cell::kSaved];
#pragma unroll
      for (int b = 0; b < Cell::kBlocks; ++b) pre[b] = v[b][i];
      const CellState<V> y = Cell::forward(pre, V(m[i]));
      Cell::save(pre, V(m[i]), values);
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) saved[k][i] = T(values[k]);
      v[0][i] = is_off ? T(0) : T(y.h);
      m[i] = is_off ? T(0) : T(Cell::kCarry == Carry::kState ? y.h : y.c);
    }
    if (a.saved && !is_off)
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k)
        units.store(static_cast<S*>(a.saved) + first * Cell::kSaved + j + k * H, saved[k]);
    if (a.h) units.store(static_cast<S*>(a.h) + at, v[0]);
    if (Cell::kCarry == Carry::kCell && a.c) units.store(static_cast<S*>(a.c) + at, m);
    if (!std::is_same_v<S, T> && kept) units.store(kept + at, m);
  }
};

template <typename S, typename Gated>
struct CellBackward : Backward<S> {
  using Cell = Gated;
  using T = acc_t<S>;
  using V = cell_t<S>;
  using Backward<S>::a;
  using Backward<S>::to;
  // What was saved, and t.
  static constexpr int kValues = Cell::kSaved + 1, kFirstResult = Cell::kSaved;

  __device__ __forceinline__ const T* carried() const { return static_cast<const T*>(to.dm); }

  static constexpr int kInputs = Cell::kSaved;
  __host__ __device__ static constexpr int state(int k) {
    return state_column(k, 1, Cell::kGates, Cell::kBlocks);
  }
  __host__ __device__ const S* inputs() const { return static_cast<const S*>(a.saved); }

  // v from blocks of what was saved and from t.
  template <int kCount, typename Input, typename Bias, typename Product>
  __device__ __forceinline__ void assemble(const Input& input, const Bias&, const Product& product,
                                           T (&v)[kValues][kCount]) const {
#pragma unroll
    for (int k = 0; k < kInputs; ++k) input(k, v[k]);
    product(0, v[kFirstResult]);
  }

  // From what was saved, t, and the gradient of what was carried on from there to da and dm, in m.
  template <typename Units, int kCount>
  __device__ __forceinline__ void finish(const Units& units, int64_t first, int64_t j, bool is_off,
                                         T (&v)[kValues][kCount], T (&m)[kCount]) const {
    static_assert(Cell::kBlocks <= kValues);
    if (Cell::kCarry == Carry::kCell && a.dc) {
      T dc[kCount];
      units.load(static_cast<const S*>(a.dc) + first + j, dc);
      add(m, dc);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      V saved[Cell::kSaved];
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) saved[k] = v[k][i];
      constexpr bool kIsState = Cell::kCarry == Carry::kState;
      const T dh = v[kFirstResult][i] + (kIsState ? m[i] : T(0));
      const auto gradient = Cell::backward(saved, V{}, V(dh), V(kIsState ? T(0) : m[i]));
      for_each(BlocksOf<Cell>{}, [&](auto block) {
        constexpr int b = decltype(block)::value, kOfBias = Cell::kBiasGate[b];
        v[kOfBias][i] =
            is_off ? T(0) : T(gradient.a[b]);  // by choice, as what was saved may be NaN
      });
      m[i] = is_off ? T(0) : T(gradient.m);
    }
    if (to.du)
#pragma unroll
      for (int b = 0; b < Cell::kBlocks; ++b)
        units.store(static_cast<S*>(to.du) + first * Cell::kBlocks + b * a.H + j, v[b]);
    if (to.dm) units.store(static_cast<T*>(to.dm) + first + j, m);
  }
};

// Calls f with the pass of the arguments' cell.
template <typename S, typename F>
void with_pass(const SweepForward& a, const ForwardStates& states, const F& f) {
  with_gates(a.cell, [&](auto cell) {
    using Cell = decltype(cell);
    if constexpr (Cell::kBlocks == 1)
      f(Forward<S>{a});
    else
      f(CellForward<S, Cell>{{a}, static_cast<acc_t<S>*>(states.kept)});
  });
}
template <typename S, typename F>
void with_pass(const SweepBackward& a, const BackwardStates& states, const F& f) {
  with_gates(a.cell, [&](auto cell) {
    using Cell = decltype(cell);
    if constexpr (Cell::kBlocks == 1)
      f(Backward<S>{a, states});
    else
      f(CellBackward<S, Cell>{{a, states}});
  });
}

// Launches the kernel of a plan with args.pass; the names are for errors.
template <typename Kernel, typename Args>
void launch_sweep(const char* forward, const char* backward, Kernel kernel, const Plan& plan,
                  void* stream, const Args& args, int cluster = 1) {
  const dim3 grid(static_cast<unsigned>(plan.ctas), static_cast<unsigned>(args.pass.a.D));
  launch(std::decay_t<decltype(args.pass)>::kIsBackward ? backward : forward, kernel, grid,
         plan.threads, plan.shared_bytes, stream, args, cluster);
}

// Instances of a family's sweep, for sweep.cu.
#define STRNN_BOTH_PASSES(sweep)                                                             \
  template void sweep(const SweepForward&, const ForwardStates&, Dtype, const Plan&, void*); \
  template void sweep(const SweepBackward&, const BackwardStates&, Dtype, const Plan&, void*)

}  // namespace strnn::cuda
