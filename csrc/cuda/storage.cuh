// Storage types on the device and their conversion to the type that is computed in; see
// common/dtype.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/dtype.h"

namespace strnn::cuda {

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }

template <typename S>
__device__ __forceinline__ S from_acc(acc_t<S> x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_acc<__half>(float x) {
  return __float2half_rn(x);
}

// Four values that travel together through shared memory.
template <typename T>
struct alignas(16) Quad {
  T v[4];
};

// Calls f(S{}) with the storage type of dtype.
template <typename F>
void with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(__nv_bfloat16{});
    case Dtype::kFloat16:
      return f(__half{});
  }
}

// The same of a 16-bit dtype.
template <typename F>
void with_16_bits(Dtype dtype, const F& f) {
  if (dtype == Dtype::kBFloat16)
    f(__nv_bfloat16{});
  else
    f(__half{});
}

}  // namespace strnn::cuda
