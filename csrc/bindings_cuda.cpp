// The CUDA backend's ops, registered with torch; see bindings.h. A binary of its own, since it
// needs libtorch_cuda and libcudart: loaded second, and left out with a reason where they are
// missing.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <string>

#include "bindings.h"
#include "cuda/kernels.h"
#include "cuda/planner.h"
#include "products.h"

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
      limits[device].clusters = active_clusters(limits[device]);
    }
  });
  return limits[device];
}

// STRNN_CUDA_FAMILY names the one family of kernels that may be chosen, to compare them
// (planner.h).
int64_t forced_family() {
  const char* wanted = std::getenv("STRNN_CUDA_FAMILY");
  if (!wanted || !*wanted) return -1;
  std::string known;
  for (int64_t f = 0; f <= static_cast<int64_t>(Family::kLevel); ++f) {
    const std::string name = family_name(static_cast<Family>(f));
    if (name == wanted) return f;
    known += " " + name;
  }
  STD_TORCH_CHECK(false, "STRNN_CUDA_FAMILY must be one of", known, "; got ", wanted);
}

// The device, its current stream and scratch of a call. The allocator reuses the scratch in the
// order of the stream.
class Call {
 public:
  explicit Call(const Tensor& like)
      : device(limits_of(like.get_device_index())),
        products(like.device()),
        like_(like),
        guard_(like.get_device_index()) {
    device.only = forced_family();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  }
  void* scratch(int64_t bytes) {
    if (bytes == 0) return nullptr;
    scratch_ = torch::stable::new_empty(like_, {bytes}, ScalarType::Byte);
    return scratch_->mutable_data_ptr();
  }

  Device device;
  TorchProducts products;
  void* stream = nullptr;

 private:
  const Tensor& like_;
  torch::stable::accelerator::DeviceGuard guard_;
  OptionalTensor scratch_;
};

// Tables of chains on their devices, the last few: a call that finds its own copies nothing, so
// that it can be captured.
class Chains {
 public:
  Tensor table(const Tensor& like, int64_t N, int64_t D, bool is_reversed) {
    const Key key{like.get_device_index(), N, D, is_reversed};
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < known_.size(); ++i)
      if (known_[i].first == key) {
        std::rotate(known_.begin() + i, known_.begin() + i + 1, known_.end());
        return known_.back().second;
      }
    const std::vector<int32_t> host = chain_table(N, D, is_reversed);
    const int64_t size = host.size();
    Tensor table = torch::stable::new_empty(like, {size}, ScalarType::Int);
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const cudaError_t error = cudaMemcpy(table.mutable_data_ptr(), host.data(),
                                         size * sizeof(int32_t), cudaMemcpyHostToDevice);
    STD_TORCH_CHECK(error == cudaSuccess, "strnn_cuda: the table of a chain of ", N,
                    " steps: ", cudaGetErrorString(error));
    if (known_.size() == kMaxKnown) known_.erase(known_.begin());
    known_.emplace_back(key, table);
    return table;
  }

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, bool>;
  static constexpr size_t kMaxKnown = 64;
  std::mutex mutex_;
  std::vector<std::pair<Key, Tensor>> known_;  // the last used comes last
};

struct Backend {
  static constexpr const char* kName = "strnn_cuda";
  static constexpr bool kTakesLists = false;
  static constexpr bool kGivesLast = false;

  class Chain {
   public:
    Program program(const Tensor& like, int64_t N, int64_t D, bool is_reversed) {
      static Chains chains;
      table_ = chains.table(like, N, D, is_reversed);
      return Program::over(static_cast<const int32_t*>(table_->const_data_ptr()), table_->numel(),
                           N, D, N, 1);
    }

   private:
    OptionalTensor table_;
  };

  static bool owns(const Tensor& t, const Tensor& like) {
    return t.is_cuda() && t.get_device_index() == like.get_device_index();
  }
  static bool is_valid(const Program& program) {
    return program.E >= 0;
  }  // the entries themselves are on the device
  static void sweep(const SweepForward& a, Dtype dtype, const Tensor& like) {
    Call call(like);
    cuda::sweep(a, dtype, call.device, call.scratch(sweep_workspace(a, dtype, call.device)),
                call.products, call.stream);
  }
  static void sweep_backward(const SweepBackward& a, Dtype dtype, const Tensor& like) {
    Call call(like);
    cuda::sweep_backward(a, dtype, call.device,
                         call.scratch(sweep_backward_workspace(a, dtype, call.device)),
                         call.products, call.stream);
  }
  static void sparse_projection(const SparseProjection& a, Dtype dtype, const Tensor& like) {
    const Call call(like);
    cuda::sparse_projection(a, dtype, call.stream);
  }
  static void sparse_projection_backward(const SparseProjectionBackward& a, Dtype dtype,
                                         const Tensor& like) {
    Call call(like);
    void* parts = call.scratch(sparse_projection_parts(a, call.device) * storage_bytes(dtype));
    cuda::sparse_projection_backward(a, nullptr, dtype, call.device, parts, call.products,
                                     call.stream);
  }
};

}  // namespace
}  // namespace strnn::cuda

// For strnn_kernels.info, which finds it by name.
extern "C" __attribute__((visibility("default"))) const char* strnn_cuda_architectures() {
  return STRNN_CUDA_ARCHITECTURES;
}

STRNN_REGISTER_OPS(strnn_cuda, CUDA, strnn::cuda::Backend)
