// All inline PTX of the package.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// Kernels of clusters are compiled for every architecture, empty where there are none.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define STRNN_HAS_CLUSTERS 1
#else
#define STRNN_HAS_CLUSTERS 0
#endif

namespace strnn::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

#define STRNN_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// The array that starts at a place of shared memory.
template <typename T>
__device__ __forceinline__ T* array_at(unsigned char* raw, int64_t place) {
  return reinterpret_cast<T*>(raw + place);
}

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

// d = a b + c for a warp's tiles of 16 x 8 outputs; c may be d, and costs nothing where it is zero.
// With g = lane / 4 and q = lane % 4 a lane holds
//   d[2i + e]  and c: row g + 8i, column 2q + e
//   a[i + 2s]  row g + 8i, columns 2q and 2q + 1 of the s-th 8 columns      (16 x 16)
//   b[s]       rows 2q and 2q + 1 of the s-th 8 rows, column g              (16 x 8)
#define STRNN_MMA(S, kind)                                                                  \
  __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,   \
                                      uint32_t b1, const float (&c)[4], S) {                \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." kind "." kind                     \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"           \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), \
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));                                        \
  }
STRNN_MMA(__nv_bfloat16, "bf16")
STRNN_MMA(__half, "f16")
#undef STRNN_MMA

// tanh, relative error 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The transpose of a warp's 8 x 8 matrix of 16-bit elements; a lane holds columns 2q and 2q + 1 of
// row g.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Four 8 x 8 matrices of 16-bit elements, row i of matrix m from lane 8m + i's address (aligned to
// 16 bytes) in shared memory, each transposed: a lane holds rows 2q and 2q + 1 of column g.
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same without the transpose: a lane holds columns 2q and 2q + 1 of row g.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// Clusters of CTAs; for kernels of STRNN_HAS_CLUSTERS alone.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// All threads of the cluster; what they wrote before is seen.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// An mbarrier: a phase ends when a thread of the CTA has said how many bytes it brings, and they
// are there, in whatever order. The barrier of the cluster shows it to the others.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Waits for the end of the phase of that parity, and sees its bytes: by a fence of shared memory
// alone, where the compiler has one. A wait that acquires empties the cache of global memory.
#if CUDART_VERSION >= 12080
#define STRNN_WAIT ".relaxed.cluster"
#define STRNN_SEE "fence.acquire.sync_restrict::shared::cluster.cluster;"
#else
#define STRNN_WAIT ".acquire.cluster"
#define STRNN_SEE ""
#endif
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, int parity) {
  uint32_t is_over;
  do
    asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity" STRNN_WAIT
                 ".shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(is_over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  while (!is_over);
  asm volatile(STRNN_SEE ::: "memory");
}
// Sends 8 bytes to the place in the shared memory of CTA `rank` of a cluster of several that
// corresponds to `to` in one's own, for the phase of its `barrier`.
__device__ __forceinline__ void send(void* to, uint64_t* barrier, unsigned rank, uint2 value) {
  asm volatile(
      "{\n\t.reg .b32 at, of;\n\tmapa.shared::cluster.u32 at, %0, %2;\n\t"
      "mapa.shared::cluster.u32 of, %1, %2;\n\t"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [at], {%3, %4}, "
      "[of];\n\t}" ::"r"(shared_address(to)),
      "r"(shared_address(barrier)), "r"(rank), "r"(value.x), "r"(value.y)
      : "memory");
}

// x, kept in registers: the compiler does not see how it was made, so that it cannot make it again
// inside of a loop.
template <typename T>
__device__ __forceinline__ T keep(T x) {
  if constexpr (sizeof(T) == 8)
    asm volatile("" : "+l"(x));
  else
    asm volatile("" : "+r"(x));
  return x;
}

}  // namespace strnn::cuda
