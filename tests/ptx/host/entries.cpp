// The kernels' host entries (csrc/cuda/kernels.h) in C, for cuda.py. `sizes`, `in` and `out`
// keep the order of the structs' fields. With workspace null an entry only returns the bytes of
// scratch that it wants; -1: an error, see host_error. Products are made by the backend's own code,
// of tensors on the CPU.
#include <cstdint>
#include <exception>
#include <string>

#include "csrc/cuda/kernels.h"
#include "csrc/products.h"

using namespace strnn;
using namespace strnn::cuda;

namespace {

std::string error;
void (*wrote)(uint64_t at, uint64_t size);  // tells the machine

struct HostProducts : TorchProducts {
  HostProducts() : TorchProducts(torch::stable::Device(torch::headeronly::DeviceType::CPU)) {}

  void multiply(Dtype dtype, int64_t Z, int64_t M, int64_t N, int64_t K, const Matrices& a,
                const Matrices& b, const Matrices& out) override {
    TorchProducts::multiply(dtype, Z, M, N, K, a, b, out);
    for (int64_t row = 0; row < Z * M; ++row)
      tell(dtype, out.data, row / M * out.batch + row % M * out.row, N);
  }
  void sum(Dtype dtype, int64_t count, int64_t parts, const void* from, void* to) override {
    TorchProducts::sum(dtype, count, parts, from, to);
    tell(dtype, to, 0, count);
  }

 private:
  static void tell(Dtype dtype, const void* to, int64_t first, int64_t count) {
    const int64_t size = storage_bytes(dtype);
    wrote(reinterpret_cast<uint64_t>(to) + first * size, count * size);
  }
} products;

template <typename F>
int64_t guarded(const F& f) {
  try {
    return f();
  } catch (const std::exception& e) {
    error = e.what();
    return -1;
  }
}

Device device_of(const int64_t* d) { return {d[0], d[1], d[2], d[3], d[4], d[5]}; }

// sizes: B N D C H K cell mean groups slots numel
void fill(Sweep& a, Program& program, const int64_t* n, const void* const* in) {
  a.B = n[0], a.N = n[1], a.D = n[2], a.C = n[3], a.H = n[4], a.K = n[5];
  a.cell = static_cast<int>(n[6]), a.mean = n[7] != 0;
  a.x = in[0], a.w_ih = {in[1], 0}, a.bias = {in[2], 0}, a.w_hh = {in[3], 0},
  a.mask = static_cast<const uint8_t*>(in[4]), a.h0 = in[5], a.c0 = in[6];
  a.entry = static_cast<const int32_t*>(in[7]), a.projection = in[8];
  program = Program::over(static_cast<const int32_t*>(in[9]), n[10], a.N, a.D, n[8], n[9]);
}

}  // namespace

extern "C" {
const char* host_error() { return error.c_str(); }
void host_tells(void (*f)(uint64_t at, uint64_t size)) { wrote = f; }

// in: x w_ih bias w_hh mask h0 c0 entry projection table gate; out: h pre s c saved
int64_t host_sweep(const int64_t* n, const void* const* in, void* const* out, int dtype,
                   const int64_t* device, void* workspace) {
  return guarded([&]() -> int64_t {
    SweepForward a{};
    fill(a, a.program, n, in);
    a.gate = in[10], a.h = out[0], a.pre = out[1], a.s = out[2], a.c = out[3], a.saved = out[4];
    if (!workspace) return sweep_workspace(a, static_cast<Dtype>(dtype), device_of(device));
    sweep(a, static_cast<Dtype>(dtype), device_of(device), workspace, products, nullptr);
    return 0;
  });
}

// in: the first ten of host_sweep, h dh ds gate pre saved dc; out: dgate dx dw_ih dbias dw_hh dh0
// dc0 dprojection
int64_t host_sweep_backward(const int64_t* n, const void* const* in, void* const* out, int dtype,
                            const int64_t* device, void* workspace) {
  return guarded([&]() -> int64_t {
    SweepBackward a{};
    fill(a, a.program, n, in);
    a.h = in[10], a.dh = in[11], a.ds = in[12], a.gate = in[13], a.pre = in[14], a.saved = in[15],
    a.dc = in[16];
    a.dgate = out[0], a.dx = out[1], a.dw_ih = out[2], a.dbias = out[3], a.dw_hh = out[4],
    a.dh0 = out[5], a.dc0 = out[6], a.dprojection = out[7];
    if (!workspace)
      return sweep_backward_workspace(a, static_cast<Dtype>(dtype), device_of(device));
    sweep_backward(a, static_cast<Dtype>(dtype), device_of(device), workspace, products, nullptr);
    return 0;
  });
}

// sizes: B N D H K; in: h weight; out: s
int64_t host_sparse_projection(const int64_t* n, const void* const* in, void* const* out, int dtype,
                               const int64_t*, void* workspace) {
  return guarded([&]() -> int64_t {
    if (workspace)
      sparse_projection({n[0], n[1], n[2], n[3], n[4], in[0], in[1], out[0]},
                        static_cast<Dtype>(dtype), nullptr);
    return 0;
  });
}

// in: ds h weight; out: dh dweight
int64_t host_sparse_projection_backward(const int64_t* n, const void* const* in, void* const* out,
                                        int dtype, const int64_t* device, void* workspace) {
  return guarded([&]() -> int64_t {
    const SparseProjectionBackward a{n[0],  n[1],  n[2],  n[3],   n[4],
                                     in[0], in[1], in[2], out[0], out[1]};
    const Dtype type = static_cast<Dtype>(dtype);
    if (!workspace) return sparse_projection_parts(a, device_of(device)) * storage_bytes(type);
    sparse_projection_backward(a, nullptr, type, device_of(device), workspace, products, nullptr);
    return 0;
  });
}
}
