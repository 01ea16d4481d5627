// Executes CUDA kernel sources on the CPU: g++ -x c++ -include cuda_host.h kernel.cu. Every CUDA
// thread is a fiber; one thread of the operating system runs them all, a few blocks or clusters at
// a time. What is not declared here (atomics, grid barriers, static shared memory) does not
// compile: the package's kernels use none of it.
#pragma once
#define STRNN_CUDA_HOST 1

#include <cuda_bf16.h>  // the toolkit's headers have host code for conversions and arithmetic
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

namespace emu {

struct Launch {
  dim3 grid, block;
  size_t smem;
  unsigned cluster = 1;  // blocks of a cluster, neighbours along x
};

// Runs the grid; returns the number of findings (see emu_report).
int launch_raw(const Launch&, void (*kernel)(const void*), const void* context);
template <typename F>
int launch(const Launch& l, const F& f) {
  return launch_raw(l, [](const void* p) { (*static_cast<const F*>(p))(); }, &f);
}

// Constant for the life of a fiber.
dim3 thread_idx() __attribute__((const));
dim3 block_idx() __attribute__((const));
dim3 block_dim() __attribute__((const));
dim3 grid_dim() __attribute__((const));

unsigned char* dyn_smem();
void* carve(size_t bytes);  // the next array of shared memory, rounded up to 128 bytes, with a
                            // forbidden gap behind it
void block_sync(int line);
void warp_sync(unsigned mask);
void cp_async(void* to, const void* from, int bytes, int source_bytes);
void cp_commit();
void cp_wait(int pending);

constexpr int kMaxExchange = 48;
struct Exchanged {
  unsigned char of[32][kMaxExchange];
};
// Hands `bytes` of every lane of the mask to all of them: of[l] is lane l's.
void exchange(const char* what, unsigned mask, const void* mine, size_t bytes, Exchanged& all);
unsigned lane();

// The tensor core's instructions of ptx.cuh (tensor_core.cpp); all 32 lanes take part.
enum class Operands { kBFloat16, kHalf, kTf32 };
void mma(Operands, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         const float (&c)[4]);
uint32_t to_tf32(float);
float tanh_approx(float);
uint32_t transpose_8x8(uint32_t);
void load_transposed(uint32_t (&r)[4], const void* address, const uint32_t (&row)[4]);

// Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.
void ldmatrix_x4(uint32_t (&to)[4], const void* row);

unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive();
void cluster_wait();
// The place in the shared memory of block `rank` of the cluster that corresponds to p in one's own.
void* cluster_map(const void* p, unsigned rank);

}  // namespace emu

extern "C" {
const char* emu_report();
// 0: round robin; 1: the thread woken last first; even: one random warp as far as it gets; odd: a
// random thread every time.
void emu_seed(unsigned seed);
// A buffer in global memory that kernels may use: 1 read, 2 write, 3 both.
void emu_register(const void* p, size_t bytes, const char* name, int flags);
void emu_unregister_all();
}

#define threadIdx (emu::thread_idx())
#define blockIdx (emu::block_idx())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())

inline void __syncthreads(int line = __builtin_LINE()) { emu::block_sync(line); }
inline void __syncwarp(unsigned mask = ~0u) { emu::warp_sync(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  emu::Exchanged all;
  emu::exchange("__shfl_sync", mask, &value, sizeof value, all);
  T result;
  std::memcpy(&result, all.of[from & 31], sizeof result);
  return result;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  emu::Exchanged all;
  emu::exchange("__ballot_sync", mask, &predicate, sizeof predicate, all);
  unsigned ballot = 0;
  for (int l = 0; l < 32; ++l) {
    int set = 0;
    if (mask >> l & 1) std::memcpy(&set, all.of[l], sizeof set);
    ballot |= static_cast<unsigned>(set != 0) << l;
  }
  return ballot;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
