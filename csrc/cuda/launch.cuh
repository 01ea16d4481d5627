// The one place where a kernel is launched: shared memory beyond the default is asked for, and
// whatever the driver refuses becomes an exception that names the kernel and the limit.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

namespace strnn::cuda {

constexpr int64_t kDefaultShared = 48 * 1024;  // what a kernel may use without asking

#ifndef STRNN_CUDA_HOST

inline void check_launch(cudaError_t error, const char* kernel, dim3 grid, int threads,
                         int64_t shared_bytes) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("strnn_cuda: kernel ") + kernel + " with " +
                           std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                           std::to_string(grid.z) + " blocks of " + std::to_string(threads) +
                           " threads and " + std::to_string(shared_bytes) +
                           " bytes of shared memory: " + cudaGetErrorString(error));
}

template <typename Kernel, typename Args>
void launch(const char* name, Kernel kernel, dim3 grid, int threads, int64_t shared_bytes,
            void* stream, const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kDefaultShared)
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)),
                 name, grid, threads, shared_bytes);
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args);
  check_launch(cudaGetLastError(), name, grid, threads, shared_bytes);
}

#else

template <typename Kernel, typename Args>
void launch(const char* name, Kernel kernel, dim3 grid, int threads, int64_t shared_bytes, void*,
            const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const int findings = emu::launch(
      emu::Launch{grid, dim3(threads), static_cast<size_t>(shared_bytes)}, [=] { kernel(args); });
  if (findings) throw std::runtime_error(std::string(name) + ": " + emu_report());
}

#endif

}  // namespace strnn::cuda
