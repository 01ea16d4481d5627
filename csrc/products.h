// The CUDA backend's products and sums (cuda/products.h) by torch, on its current stream. By the
// variants that write to a given tensor, which autocast leaves alone. What products of float32 are
// made of (TF32 or not) is torch's choice, as for every product that surrounds the sweep.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>

#include "cuda/products.h"

namespace strnn::cuda {

class TorchProducts : public Products {
 public:
  explicit TorchProducts(const torch::stable::Device& device) : device_(device) {}

  void multiply(Dtype dtype, int64_t Z, int64_t M, int64_t N, int64_t K, const Matrices& a,
                const Matrices& b, const Matrices& out) override {
    const auto matrices = [&](const Matrices& m, int64_t rows, int64_t columns) {
      return tensor(dtype, m.data, std::array{Z, rows, columns},
                    std::array{m.batch, m.row, m.column});
    };
    std::array<StableIValue, 3> stack{torch::stable::detail::from(matrices(a, M, K)),
                                      torch::stable::detail::from(matrices(b, K, N)),
                                      torch::stable::detail::from(matrices(out, M, N))};
    TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
    (void)torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
  }

  void sum(Dtype dtype, int64_t count, int64_t parts, const void* from, void* to) override {
    const auto rows =
        tensor(dtype, from, std::array{parts, count}, std::array<int64_t, 2>{count, 1});
    auto total = tensor(dtype, to, std::array{count}, std::array<int64_t, 1>{1});
    const int64_t dim = 0;
    torch::stable::sum_out(total, rows, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1));
  }

 private:
  template <size_t kDims>
  torch::stable::Tensor tensor(Dtype dtype, const void* data,
                               const std::array<int64_t, kDims>& sizes,
                               const std::array<int64_t, kDims>& strides) const {
    using torch::headeronly::ScalarType;
    constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16,
                                     ScalarType::Half};
    return torch::stable::from_blob(const_cast<void*>(data), {sizes.data(), kDims},
                                    {strides.data(), kDims}, device_,
                                    kTypes[static_cast<int>(dtype)]);
  }

  torch::stable::Device device_;
};

}  // namespace strnn::cuda
