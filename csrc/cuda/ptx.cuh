// All inline PTX of the package, and the few other things that differ between a GPU and the CPU
// that executes these sources in tests (tests/cuda_host defines STRNN_CUDA_HOST and force-includes
// its stand-ins). Each function has the same meaning in both branches; the first run on a GPU
// compares them (tests/cuda_host/README.md).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace strnn::cuda {

#ifndef STRNN_CUDA_HOST

#define STRNN_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Asynchronous copy of kBytes (4, 8 or 16, both addresses aligned to it) from global to shared
// memory.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* to, const void* from) {
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from),
                 "n"(kBytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's newest groups of copies are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Divides dynamic shared memory into arrays, each aligned to 128 bytes.
struct Carver {
  unsigned char* at;
  template <typename T>
  __device__ __forceinline__ T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(at);
    at += (count * static_cast<int64_t>(sizeof(T)) + 127) / 128 * 128;
    return taken;
  }
};

#else

#define STRNN_DYNAMIC_SHARED(name) unsigned char* name = emu::dyn_smem()

template <int kBytes>
inline void cp_async(void* to, const void* from) {
  emu::cp_async(to, from, kBytes, kBytes);
}
inline void cp_async_commit() { emu::cp_commit(); }
template <int kPending>
inline void cp_async_wait() {
  emu::cp_wait(kPending);
}

struct Carver {
  unsigned char* at;
  template <typename T>
  T* take(int64_t count) {
    return count ? static_cast<T*>(emu::carve(count * sizeof(T))) : nullptr;
  }
};

#endif

}  // namespace strnn::cuda
