// Activations, and their derivatives from the output: act'(u) = derivative(act(u)). The branch on
// the kind is uniform in a grid. NaN goes through all of them. sigmoid(x) = (1 + tanh(x / 2)) / 2
// needs no division, whose slow path is a call that costs registers.
#pragma once
#include "../common/sweep.h"

namespace strnn::cuda {

__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }

template <typename T>
__device__ __forceinline__ T activate(int activation, T u) {
  switch (activation) {
    case kRelu:
      return u < 0 ? T(0) : u;
    case kTanh:
      return tanh_of(u);
    case kSigmoid:
      return T(0.5) + T(0.5) * tanh_of(T(0.5) * u);
    default:
      return u;
  }
}

// The same of several, with one piece of code for the two that need tanh.
template <typename T, int kCount>
__device__ __forceinline__ void activate(int activation, T (&u)[kCount]) {
  if (activation == kTanh || activation == kSigmoid) {
    const T scale = activation == kTanh ? T(1) : T(0.5), shift = T(1) - scale;
#pragma unroll
    for (int i = 0; i < kCount; ++i) u[i] = shift + scale * tanh_of(scale * u[i]);
  } else if (activation == kRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) u[i] = u[i] < 0 ? T(0) : u[i];
  }
}

template <typename T>
__device__ __forceinline__ T derivative(int activation, T h) {
  switch (activation) {
    case kRelu:
      return h > 0 ? T(1) : T(0);
    case kTanh:
      return T(1) - h * h;
    case kSigmoid:
      return h * (T(1) - h);
    default:
      return T(1);
  }
}

}  // namespace strnn::cuda
