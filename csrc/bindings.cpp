// The CPU backend's ops, registered with torch; see bindings.h.
#include "bindings.h"

#include <atomic>
#include <exception>
#include <memory>

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

// Layers over time, each of which reads the states of the one before, bound to where their weights
// lie: a call that brings no tensors, only addresses, past torch's dispatcher.
struct BoundLayers {
  Dtype dtype;
  int64_t value_bytes, D, H;
  std::vector<SweepForward> layers;

  void run(int64_t B, int64_t N, const char* x, const char* h0, const char* c0, char* h, char* h_n,
           char* c_n) const {
    const std::vector<int32_t> table = chain_table(N, D, false);
    const Program program = Program::over(table.data(), table.size(), N, D, N, 1);
    const int64_t last = B * D * H * value_bytes;  // of one layer
    std::unique_ptr<char[]> before, states;
    for (size_t l = 0; l < layers.size(); ++l, before = std::move(states)) {
      const auto of_layer = [&](auto* p) { return p ? p + l * last : nullptr; };
      SweepForward a = layers[l];
      a.B = B, a.N = N, a.program = program;
      a.x = l ? before.get() : x;
      a.h0 = of_layer(h0), a.c0 = of_layer(c0), a.h_n = of_layer(h_n), a.c_n = of_layer(c_n);
      if (l + 1 < layers.size()) states.reset(new char[N * last]);
      a.h = states ? states.get() : h;
      capability().sweep(a, dtype, num_threads(), run_in_parallel);
    }
  }
};

}  // namespace
}  // namespace strnn::cpu

// For modules, which find them by name (backends/native.py). dtype as in common/dtype.h; weights:
// addresses of w_ih, w_hh and, or null, b_ih, b_hh, for each direction of each layer in turn. Null:
// no memory.
extern "C" __attribute__((visibility("default"))) strnn::cpu::BoundLayers* strnn_cpu_bind(
    int64_t dtype, int64_t L, int64_t D, int64_t C, int64_t H, int64_t cell,
    const void* const* weights) try {
  constexpr int64_t kBytes[] = {4, 8, 2, 2};
  std::vector<strnn::SweepForward> layers(L);
  for (int64_t l = 0; l < L; ++l, weights += 4 * D) {
    const auto directions = [&](int64_t i) {
      const auto at = [&](int64_t d) { return reinterpret_cast<intptr_t>(weights[4 * d + i]); };
      return strnn::Directions{weights[i], at(D - 1) - at(0)};
    };
    strnn::SweepForward& a = layers[l];
    a.D = D, a.C = l ? D * H : C, a.H = H, a.cell = static_cast<int>(cell);
    a.w_ih = directions(0), a.w_hh = directions(1), a.bias = directions(2),
    a.bias_hh = directions(3);
  }
  return new strnn::cpu::BoundLayers{static_cast<strnn::Dtype>(dtype), kBytes[dtype], D, H,
                                     std::move(layers)};
} catch (const std::bad_alloc&) {
  return nullptr;
}

// Whether it ran; the way through torch's dispatcher says what it lacked.
extern "C" __attribute__((visibility("default"))) bool strnn_cpu_run_bound(
    const strnn::cpu::BoundLayers* bound, int64_t B, int64_t N, const char* x, const char* h0,
    const char* c0, char* h, char* h_n, char* c_n) {
  if (!bound || N > strnn::kMaxChain) return false;
  try {
    bound->run(B, N, x, h0, c0, h, h_n, c_n);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

extern "C" __attribute__((visibility("default"))) void strnn_cpu_unbind(
    strnn::cpu::BoundLayers* bound) {
  delete bound;
}

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
