// The CUDA backend's ops, registered with torch; see bindings.h. A binary of its own, since it
// needs libtorch_cuda and libcudart: loaded second, and left out with a reason where they are
// missing.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <mutex>

#include "bindings.h"
#include "cuda/kernels.h"

namespace strnn::cuda {
namespace {

int64_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  STD_TORCH_CHECK(error == cudaSuccess, "strnn_cuda: the limits of device ", device, ": ",
                  cudaGetErrorString(error));
  return value;
}

// The limits of a device, asked for once.
const Device& limits_of(int device) {
  constexpr int kMaxDevices = 64;
  static std::array<Device, kMaxDevices> limits;
  static std::array<std::once_flag, kMaxDevices> is_known;
  STD_TORCH_CHECK(device >= 0 && device < kMaxDevices, "strnn_cuda: device ", device,
                  " is out of range");
  std::call_once(is_known[device], [&] {
    limits[device] = {attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
                          attribute(cudaDevAttrComputeCapabilityMinor, device),
                      attribute(cudaDevAttrMultiProcessorCount, device),
                      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                      attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device), 0};
    if (limits[device].architecture >= 90) {
      const torch::stable::accelerator::DeviceGuard guard(device);
      limits[device].max_cluster = max_cluster();
    }
  });
  return limits[device];
}

// The device, its current stream and scratch of a call. The allocator reuses the scratch in the
// order of the stream.
class Call {
 public:
  explicit Call(const Tensor& like)
      : device(limits_of(like.get_device_index())), like_(like), guard_(like.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  }
  void* scratch(int64_t bytes) {
    if (bytes == 0) return nullptr;
    scratch_ = torch::stable::new_empty(like_, {bytes}, ScalarType::Byte);
    return scratch_->mutable_data_ptr();
  }

  const Device& device;
  void* stream = nullptr;

 private:
  const Tensor& like_;
  torch::stable::accelerator::DeviceGuard guard_;
  OptionalTensor scratch_;
};

struct Backend {
  static constexpr const char* kName = "strnn_cuda";

  static bool owns(const Tensor& t, const Tensor& like) {
    return t.is_cuda() && t.get_device_index() == like.get_device_index();
  }
  static bool is_valid(const Program& program) {
    return program.E >= 0;
  }  // the entries themselves are on the device
  static void sweep(const SweepForward& a, Dtype dtype, const Tensor& like) {
    Call call(like);
    cuda::sweep(a, dtype, call.device, call.scratch(sweep_workspace(a, dtype, call.device)),
                call.stream);
  }
  static void sweep_backward(const SweepBackward& a, Dtype dtype, const Tensor& like) {
    Call call(like);
    cuda::sweep_backward(a, dtype, call.device,
                         call.scratch(sweep_backward_workspace(a, dtype, call.device)),
                         call.stream);
  }
  static void sparse_projection(const SparseProjection& a, Dtype dtype, const Tensor& like) {
    const Call call(like);
    cuda::sparse_projection(a, dtype, call.stream);
  }
  static void sparse_projection_backward(const SparseProjectionBackward& a, Dtype dtype,
                                         const Tensor& like) {
    Call call(like);
    void* scratch = call.scratch(sparse_projection_backward_workspace(a, dtype, call.device));
    cuda::sparse_projection_backward(a, nullptr, dtype, call.device, scratch, call.stream);
  }
};

}  // namespace
}  // namespace strnn::cuda

// For strnn_kernels.info, which finds it by name.
extern "C" __attribute__((visibility("default"))) const char* strnn_cuda_architectures() {
  return STRNN_CUDA_ARCHITECTURES;
}

STRNN_REGISTER_OPS(strnn_cuda, CUDA, strnn::cuda::Backend)
