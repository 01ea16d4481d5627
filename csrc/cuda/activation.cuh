// Activations, and their derivatives from the output: act'(u) = derivative(act(u)). The branch on
// the kind is uniform in a grid. NaN goes through all of them. sigmoid(x) = (1 + tanh(x / 2)) / 2
// needs no division, whose slow path is a call that costs registers.
#pragma once
#include <type_traits>

#include "../common/dtype.h"
#include "../common/sweep.h"
#include "ptx.cuh"

namespace strnn::cuda {

// As exact as a result of 16 bits needs it: one instruction for bfloat16 (relative error 2^-11),
// five for float16 (absolute error 2^-22).
__device__ __forceinline__ float tanh_of(float x, __nv_bfloat16) { return tanh_approx(x); }
__device__ __forceinline__ float tanh_of(float x, __half) {
  return 1.f - __fdividef(2.f, 1.f + __expf(2.f * x));
}

__device__ __forceinline__ float tanh_of(float x, float) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x, double) { return tanh(x); }

// Of several in place, with one branch for all, to be stored as S.
template <typename S, int kCount>
__device__ __forceinline__ void activate(int activation, acc_t<S> (&u)[kCount], S) {
  using T = acc_t<S>;
  if (activation == kTanh) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) u[i] = tanh_of(u[i], S{});
  } else if (activation == kSigmoid) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) u[i] = T(0.5) + T(0.5) * tanh_of(T(0.5) * u[i], S{});
  } else if (activation == kRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) u[i] = u[i] < 0 ? T(0) : u[i];
  }
}

// A value of a cell whose storage has 16 bits: activations of absolute error 2^-22 at a third of
// the instructions, for what is carried is a long sum.
struct Brief {
  float x;
  Brief() = default;
  __device__ __forceinline__ Brief(float value) : x(value) {}
  __device__ __forceinline__ explicit operator float() const { return x; }
  friend __device__ __forceinline__ Brief operator+(Brief a, Brief b) { return a.x + b.x; }
  friend __device__ __forceinline__ Brief operator-(Brief a, Brief b) { return a.x - b.x; }
  friend __device__ __forceinline__ Brief operator*(Brief a, Brief b) { return a.x * b.x; }
};
// What the values of a cell are computed in.
template <typename S>
using cell_t = std::conditional_t<std::is_same_v<S, acc_t<S>>, S, Brief>;

// What common/cell.h asks for.
template <typename T>
__device__ __forceinline__ T tanh_of(T x) {
  return tanh_of(x, T{});
}
__device__ __forceinline__ Brief tanh_of(Brief x) { return tanh_of(x.x, __half{}); }
template <typename T>
__device__ __forceinline__ T sigmoid_of(T x) {
  return T(0.5) + T(0.5) * tanh_of(T(0.5) * x);
}
__device__ __forceinline__ Brief sigmoid_of(Brief x) { return __fdividef(1.f, 1.f + __expf(-x.x)); }
template <typename T>
__device__ __forceinline__ T tanh_factor(T x) {
  return tanh_of(x);
}
template <typename T>
__device__ __forceinline__ T sigmoid_factor(T x) {
  return sigmoid_of(x);
}
template <typename T>
__device__ __forceinline__ T value_of(T x) {
  return x;
}

#define STRNN_CELL_INLINE __device__ __forceinline__
#include "../common/cell.h"

// From several outputs of an activation its derivatives, in place, with one branch for all.
template <typename T, int kCount>
__device__ __forceinline__ void derive(int activation, T (&h)[kCount]) {
  const auto each = [&](auto cell) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      h[i] = decltype(cell)::template backward<T>(nullptr, h[i], T(1), T(0)).a[0];
  };
  if (activation == kTanh)
    each(ElmanCell<kTanh>{});
  else if (activation == kRelu)
    each(ElmanCell<kRelu>{});
  else if (activation == kSigmoid)
    each(ElmanCell<kSigmoid>{});
  else
    each(ElmanCell<kIdentity>{});
}

// An Elman cell whose activation is known when it runs.
struct AnyElman {
  static constexpr int kGates = 1, kBlocks = 1;
};

// Calls f with the cell of a kind.
template <typename F>
void with_gates(int kind, const F& f) {
  kind == kGru ? f(GruCell{}) : kind == kLstm ? f(LstmCell{}) : f(AnyElman{});
}

}  // namespace strnn::cuda
