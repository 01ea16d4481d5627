// The one place where a kernel is launched: shared memory beyond the default is asked for, and
// whatever the driver refuses becomes an exception that names the kernel and the limit.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

namespace strnn::cuda {

constexpr int64_t kDefaultShared = 48 * 1024;  // what a kernel may use without asking
constexpr int kPortableCluster = 8;            // and the blocks of a cluster

inline void check_launch(cudaError_t error, const char* kernel, dim3 grid, int threads,
                         int64_t shared_bytes, int cluster) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch of anyone would report it again
  throw std::runtime_error(
      std::string("strnn_cuda: kernel ") + kernel + " with " + std::to_string(grid.x) + " x " +
      std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks of " +
      std::to_string(threads) + " threads and " + std::to_string(shared_bytes) +
      " bytes of shared memory" +
      (cluster > 1 ? " in clusters of " + std::to_string(cluster) : std::string()) + ": " +
      cudaGetErrorString(error));
}

// What the runtime wants to know of a launch in clusters of so many blocks along x.
struct ClusterLaunch {
  cudaLaunchAttribute dimension{};
  cudaLaunchConfig_t config{};

  ClusterLaunch(dim3 grid, int threads, int64_t shared_bytes, int cluster) {
    dimension.id = cudaLaunchAttributeClusterDimension;
    dimension.val.clusterDim.x = cluster, dimension.val.clusterDim.y = 1,
    dimension.val.clusterDim.z = 1;
    config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = shared_bytes;
    config.attrs = &dimension, config.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // config points into it
};

// cluster: blocks along x that form one, or 1.
template <typename Kernel, typename Args>
void launch(const char* name, Kernel kernel, dim3 grid, int threads, int64_t shared_bytes,
            void* stream, const Args& args, int cluster = 1) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto check = [&](cudaError_t error) {
    check_launch(error, name, grid, threads, shared_bytes, cluster);
  };
  if (shared_bytes > kDefaultShared) {
    // All that the device has, not shared_bytes: it is the kernel's for all threads and graphs, and
    // a smaller call must not take it from a larger one.
    int current = 0, most = 0;
    check(cudaGetDevice(&current));
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, current));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  }
  if (cluster == 1) {
    kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args);
    return check(cudaGetLastError());
  }
  if (cluster > kPortableCluster)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  ClusterLaunch cluster_launch(grid, threads, shared_bytes, cluster);
  cluster_launch.config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&cluster_launch.config, kernel, args));
}

}  // namespace strnn::cuda
