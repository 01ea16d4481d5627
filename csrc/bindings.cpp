// The CPU backend's ops, registered with torch; see bindings.h.
#include "bindings.h"

#include <atomic>
#include <exception>

#include "cpu/capability.h"

namespace strnn::cpu {
namespace {

void run_in_parallel(int64_t num_workers, void (*body)(int64_t, void*), void* context) {
  if (num_workers <= 1)
    return body(0, context);  // opening a parallel region costs more than small work
  // What a worker throws (std::bad_alloc) has to reach the caller as what it is.
  std::exception_ptr error;
  std::atomic_flag has_error = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, num_workers, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t worker = begin; worker < end; ++worker) body(worker, context);
    } catch (...) {
      if (!has_error.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

struct Backend {
  static constexpr const char* kName = "strnn_cpu";
  static constexpr bool kTakesLists = true;
  static constexpr bool kGivesLast = true;

  class Chain {
   public:
    Program program(const Tensor&, int64_t N, int64_t D, bool is_reversed) {
      table_ = chain_table(N, D, is_reversed);
      return Program::over(table_.data(), table_.size(), N, D, N, 1);
    }

   private:
    std::vector<int32_t> table_;
  };

  static bool owns(const Tensor& t, const Tensor&) { return t.is_cpu(); }
  static bool is_valid(const Program& program) { return program.is_valid(); }
  static void sweep(const SweepForward& a, Dtype dtype, const Tensor&) {
    capability().sweep(a, dtype, num_threads(), run_in_parallel);
  }
  static void sweep_backward(const SweepBackward& a, Dtype dtype, const Tensor&) {
    capability().sweep_backward(a, dtype, num_threads(), run_in_parallel);
  }
  static void sparse_projection(const SparseProjection& a, Dtype dtype, const Tensor&) {
    capability().sparse_projection(a, dtype, num_threads(), run_in_parallel);
  }
  static void sparse_projection_backward(const SparseProjectionBackward& a, Dtype dtype,
                                         const Tensor&) {
    capability().sparse_projection_backward(a, dtype, num_threads(), run_in_parallel);
  }
};

}  // namespace
}  // namespace strnn::cpu

// For strnn_kernels.info, which finds them by name: the instruction set in use, or why there is
// none; and all that were compiled.
extern "C" __attribute__((visibility("default"))) const char* strnn_cpu_capability() {
  static std::string answer;
  try {
    answer = strnn::cpu::capability().name;
  } catch (const std::exception& error) {
    answer = error.what();
  }
  return answer.c_str();
}

extern "C" __attribute__((visibility("default"))) const char* strnn_cpu_capabilities() {
  static const std::string answer = strnn::cpu::capabilities();
  return answer.c_str();
}

STRNN_REGISTER_OPS(strnn_cpu, CPU, strnn::cpu::Backend)
