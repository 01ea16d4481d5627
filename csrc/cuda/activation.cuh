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
