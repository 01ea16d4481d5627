// A CUDA runtime for the backend's own host code: it keeps attributes, checks the limits of the
// device that it pretends to be, and hands each launch to Python (cuda.py).
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

namespace {

struct Attributes {
  std::string name;
  int shared = 48 * 1024;
  bool is_non_portable = false;
};
struct {
  int arch, multiprocessors, shared_of_block, shared_of_multiprocessor, most_in_cluster;
} device;
struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
} pushed;
using Launch = int (*)(const char* name, const unsigned* grid, const unsigned* block,
                       uint64_t shared, int cluster, void** args);
Launch launcher;
cudaError_t last = cudaSuccess;
std::string problem;

// Filled before main by the objects that nvcc made.
std::map<const void*, Attributes>& kernels() {
  static std::map<const void*, Attributes> all;
  return all;
}

cudaError_t fail(cudaError_t error, const std::string& why) {
  problem = why;
  return last = error;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                   unsigned cluster) {
  const Attributes& k = kernels().at(function);
  const auto refuse = [&](const std::string& why) {
    return fail(cudaErrorInvalidConfiguration, k.name + ": " + why);
  };
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u)
    return refuse("grid");
  if (!block.x || block.x * block.y * block.z > 1024) return refuse("threads of a block");
  if (shared > static_cast<size_t>(k.shared))
    return refuse(std::to_string(shared) + " bytes of shared memory, its attribute allows " +
                  std::to_string(k.shared));
  if (cluster > 1) {
    if (grid.x % cluster) return refuse("the grid is no multiple of the cluster");
    if (cluster > static_cast<unsigned>(device.most_in_cluster)) return refuse("cluster too large");
    if (cluster > 8 && !k.is_non_portable) return refuse("cluster above 8, attribute not set");
  }
  const unsigned g[] = {grid.x, grid.y, grid.z}, b[] = {block.x, block.y, block.z};
  if (launcher(k.name.c_str(), g, b, shared, static_cast<int>(cluster), args))
    return fail(cudaErrorLaunchFailure, k.name + ": see the report");
  return cudaSuccess;
}

}  // namespace

extern "C" {
void runtime_device(const int64_t* d, Launch f) {
  device = {int(d[0]), int(d[1]), int(d[2]), int(d[3]), int(d[4])};
  launcher = f, last = cudaSuccess;
  for (auto& [function, k] : kernels()) k.shared = 48 * 1024, k.is_non_portable = false;
}

// What nvcc's host code calls.
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  kernels()[host].name = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
  *static_cast<void**>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,
                               size_t shared, cudaStream_t) {
  return launch(kernel, grid, block, args, shared, 1);
}

// What the backend calls.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** args) {
  unsigned cluster = 1;
  for (unsigned n = 0; n < c->numAttrs; ++n) {
    const auto& value = c->attrs[n].val.clusterDim;
    if (c->attrs[n].id != cudaLaunchAttributeClusterDimension || value.y != 1 || value.z != 1)
      return fail(cudaErrorInvalidValue, "launch attribute that is not modelled");
    cluster = value.x;
  }
  return launch(function, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, cluster);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  Attributes& k = kernels().at(function);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    k.is_non_portable = value != 0;
  } else if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > device.shared_of_block) return fail(cudaErrorInvalidValue, "shared memory");
    k.shared = value;
  } else {
    return fail(cudaErrorInvalidValue, "function attribute that is not modelled");
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  *a = {};
  a->ptxVersion = a->binaryVersion = device.arch;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void*,
                                           const cudaLaunchConfig_t* config) {
  *count = device.multiprocessors / static_cast<int>(config->attrs[0].val.clusterDim.x);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxPotentialClusterSize(int* size, const void*,
                                                 const cudaLaunchConfig_t*) {
  *size = device.most_in_cluster;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t) { return problem.c_str(); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_of_block;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_of_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.arch / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.arch % 10;
      return cudaSuccess;
    default:
      return fail(cudaErrorInvalidValue, "device attribute that is not modelled");
  }
}
}
