// The ops as torch calls them: arguments are checked and made contiguous, outputs allocated, and
// then a backend's kernels run, which know nothing of torch. Through torch's stable ABI: one binary
// serves every torch from 2.10 on and every Python.
//
// The schemas are defined in Python (strnn_kernels/schema.py), which also checks arguments for the
// user's sake; what is checked again here is what would corrupt memory. Ops<Backend> is the same
// for every compiled backend. A Backend has
//   kName                what its messages begin with
//   owns(tensor, like)   whether the kernels of a call with `like` can read the tensor
//   is_valid(program)    whether the tables stay inside the sizes, as far as the host can tell
//   kTakesLists          whether weights may be a tensor for each direction
//   kGivesLast           whether it has h_n and c_n, and takes their gradients
//   Chain                makes the tables of a chain where a call brings none, and keeps them for
//   it:
//                        program(like, N, D, is_reversed)
//   sweep, sweep_backward, sparse_projection, sparse_projection_backward: (arguments, dtype, a
//   tensor on the device of the call)
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/dtype.h"
#include "common/sparse_projection.h"
#include "common/sweep.h"

namespace strnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// At most four sizes, without an allocation: a call makes a dozen of them.
struct Shape {
  int64_t size[4] = {};
  int64_t num_dims = 0;
  Shape(std::initializer_list<int64_t> sizes) {
    for (const int64_t s : sizes) size[num_dims++] = s;
  }
  bool operator==(const Shape& other) const {
    return num_dims == other.num_dims && std::equal(size, size + num_dims, other.size);
  }
};

inline Shape shape_of(const Tensor& t) {
  Shape shape{};
  STD_TORCH_CHECK(t.dim() <= 4, "strnn_kernels: a tensor has ", t.dim(), " dimensions");
  for (; shape.num_dims < t.dim(); ++shape.num_dims)
    shape.size[shape.num_dims] = t.size(shape.num_dims);
  return shape;
}

// a * b. Sizes may come from anywhere, and their product must not wrap round.
inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  STD_TORCH_CHECK(!__builtin_mul_overflow(a, b, &product), "strnn_kernels: ", a, " times ", b,
                  " elements of a result are too many");
  return product;
}

// An uninitialised contiguous tensor on like's device and of its dtype. Not stable::new_empty,
// whose way through the dispatcher costs a microsecond.
inline Tensor new_tensor(const Tensor& like, const Shape& shape) {
  int64_t strides[4], next = 1;
  for (int64_t i = shape.num_dims - 1; i >= 0; --i) {
    strides[i] = next;
    next = times(next, std::max<int64_t>(1, shape.size[i]));
  }
  int32_t dtype, device_type, device_index;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(shape.num_dims, shape.size, strides, dtype,
                                                  device_type, device_index, &handle));
  return Tensor(handle);
}

template <typename Backend>
Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, Backend::kName,
                      ": dtype must be float32, float64, bfloat16 or float16");
  }
}

// Whether the storage reaches to the last element. It need not: untyped_storage().resize_ frees or
// cuts it under its tensors (FSDP does).
inline bool has_memory(const Tensor& t) {
  if (t.numel() == 0) return true;
  int64_t *sizes, *strides, last, bytes;
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(t.get(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(t.get(), &strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t.get(), &last));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  for (int64_t i = 0; i < t.dim(); ++i) last += (sizes[i] - 1) * strides[i];
  return last < bytes / static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
}

template <typename Backend>
void check_memory(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(has_memory(t), Backend::kName, ": the storage of ", name,
                  " was freed or is too short for its elements");
}

// The size along an axis of a tensor that must have so many dimensions.
template <typename Backend>
int64_t size_of(const char* name, const Tensor& t, int64_t num_dims, int64_t axis) {
  STD_TORCH_CHECK(t.dim() == num_dims, Backend::kName, ": ", name, " must have ", num_dims,
                  " dimensions, got ", t.dim());
  return t.size(axis);
}

// A contiguous argument of a known shape and dtype; keeps it alive while the kernels read its
// memory.
template <typename Backend>
class Argument {
 public:
  Argument(const char* name, const OptionalTensor& t, const Tensor& like, ScalarType dtype,
           const Shape& shape) {
    if (!t) return;
    STD_TORCH_CHECK(Backend::owns(*t, like) && t->scalar_type() == dtype && shape_of(*t) == shape,
                    Backend::kName, ": ", name,
                    " has another device, dtype or shape than the other arguments call for");
    check_memory<Backend>(name, *t);
    kept_ = t->is_contiguous() ? *t : torch::stable::contiguous(*t);
  }
  template <typename T = void>
  const T* data() const {
    return kept_ ? static_cast<const T*>(kept_->const_data_ptr()) : nullptr;
  }

 private:
  OptionalTensor kept_;
};

// Weights of every direction: one tensor (D, ...), or D <= 2 tensors (...), as modules hold them.
template <typename Backend>
class WeightsArgument {
 public:
  // `every` of the tensors belong to one direction in turn, of which this is number `which`.
  WeightsArgument(const char* name, const std::vector<Tensor>& list, const Tensor& like, int64_t D,
                  const Shape& shape, size_t which = 0, size_t every = 1) {
    if (list.empty()) return;
    const bool is_stacked = list.size() == 1 && list[0].dim() == shape.num_dims + 1;
    STD_TORCH_CHECK(is_stacked || (Backend::kTakesLists && D <= 2 && list.size() == D * every),
                    Backend::kName, ": ", name, " must be one tensor for all directions",
                    Backend::kTakesLists ? " or, for at most two, one for each" : "", ", got ",
                    list.size(), " for ", D);
    Shape whole{D};
    for (int64_t i = 0; i < shape.num_dims; ++i) whole.size[whole.num_dims++] = shape.size[i];
    kept_[0].emplace(name, list[which], like, like.scalar_type(), is_stacked ? whole : shape);
    int64_t count = 1;
    for (int64_t i = 0; i < shape.num_dims; ++i) count = times(count, shape.size[i]);
    directions_ = {kept_[0]->data(), count * static_cast<int64_t>(like.element_size())};
    if (is_stacked || D == 1) return;
    kept_[1].emplace(name, list[every + which], like, like.scalar_type(), shape);
    directions_.step =
        reinterpret_cast<intptr_t>(kept_[1]->data()) - reinterpret_cast<intptr_t>(kept_[0]->data());
  }
  Directions directions() const { return directions_; }

 private:
  std::optional<Argument<Backend>> kept_[2];
  Directions directions_{};
};

// What both passes of the sweep share: sizes and inputs, with the tensors kept alive.
template <typename Backend>
struct SweepInputs {
  using Weights = std::vector<Tensor>;
  int64_t cell, D, H, G, B, N, C, K;
  ScalarType dtype;
  Argument<Backend> x, mask, h0, c0, entry, projection;
  WeightsArgument<Backend> w_ih, w_hh, bias, bias_hh;

  SweepInputs(int64_t cell_, const Tensor& x_, const Weights& w_ih_, const Weights& bias_,
              const Weights& w_hh_, const OptionalTensor& mask_, const OptionalTensor& h0_,
              const OptionalTensor& c0_, const OptionalTensor& entry_,
              const OptionalTensor& projection_)
      : cell(checked_cell(cell_, w_ih_)),
        D(directions_of(w_hh_)),
        H(w_hh_[0].size(w_hh_[0].dim() - 1)),
        G(gates_of(static_cast<int>(cell))),
        B(size_of<Backend>("x", x_, w_ih_.empty() ? 4 : 3, 0)),
        N(x_.size(1)),
        C(w_ih_.empty() ? 0 : last_size("w_ih", w_ih_)),
        K(projection_ ? size_of<Backend>("projection", *projection_, 3, 1) : 0),
        dtype(x_.scalar_type()),
        x("x", x_, x_, dtype, w_ih_.empty() ? Shape{B, N, D, H} : Shape{B, N, C}),
        mask("mask", mask_, x_, ScalarType::Bool, {B, N}),
        h0("h0", h0_, x_, dtype, {B, D, H}),
        c0("c0", c0_, x_, dtype, {B, D, H}),
        entry("entry", entry_, x_, ScalarType::Int, {B, D}),
        projection("projection", projection_, x_, dtype, {D, K, N}),
        w_ih("w_ih", w_ih_, x_, D, {times(G, H), C}),
        w_hh("w_hh", w_hh_, x_, D, {times(G, H), H}),
        bias("bias", bias_, x_, D, {times(has_two_biases(bias_) ? G : bias_rows(), H)}, 0,
             has_two_biases(bias_) ? 2 : 1),
        bias_hh("bias", has_two_biases(bias_) ? bias_ : Weights{}, x_, D, {G * H}, 1, 2) {
    // To a kernel C = 0 says that x holds u itself.
    STD_TORCH_CHECK(w_ih_.empty() || C > 0, Backend::kName, ": w_ih must have a column, got C = 0");
    STD_TORCH_CHECK(!w_ih_.empty() || bias_.empty(), Backend::kName,
                    ": bias needs w_ih: without it x is u itself");
    STD_TORCH_CHECK(!c0_ || cell_ == kLstm, Backend::kName, ": c0 is what an lstm carries");
  }

  Shape states() const { return {B, N, D, H}; }
  Shape saved() const { return {B, N, D, times(saved_of(static_cast<int>(cell)), H)}; }
  int64_t bias_rows() const { return bias_rows_of(static_cast<int>(cell)); }

  void fill(Sweep& a, bool mean) const {
    a.B = B, a.N = N, a.D = D, a.C = C, a.H = H, a.K = K;
    a.x = x.data(), a.w_ih = w_ih.directions(), a.bias = bias.directions(),
    a.bias_hh = bias_hh.directions(), a.w_hh = w_hh.directions();
    a.mask = mask.template data<uint8_t>(), a.h0 = h0.data(), a.c0 = c0.data(),
    a.entry = entry.template data<int32_t>(), a.projection = projection.data();
    a.cell = static_cast<int>(cell);
    a.mean = mean;
  }

 private:
  static int64_t checked_cell(int64_t cell, const Weights& w_ih) {
    STD_TORCH_CHECK(cell >= 0 && cell < kNumCells, Backend::kName, ": unknown cell ", cell);
    STD_TORCH_CHECK(cell < kNumActivations || !w_ih.empty(), Backend::kName,
                    ": gru and lstm need w_ih");
    return cell;
  }
  // D, from the recurrent weights: (D, G H, H), or D of (G H, H).
  static int64_t directions_of(const Weights& w_hh) {
    STD_TORCH_CHECK(!w_hh.empty(), Backend::kName, ": w_hh is empty");
    last_size("w_hh", w_hh);
    return w_hh.size() == 1 && w_hh[0].dim() == 3 ? w_hh[0].size(0) : w_hh.size();
  }
  static int64_t last_size(const char* name, const Weights& weights) {
    const int64_t dims = weights[0].dim();
    STD_TORCH_CHECK(dims == 2 || dims == 3, Backend::kName, ": ", name,
                    " must be (D, rows, columns), or (rows, columns) for each direction, got ",
                    dims, " dimensions");
    return weights[0].size(dims - 1);
  }
  static bool has_two_biases(const Weights& bias) { return !bias.empty() && bias[0].dim() == 1; }
};

template <typename Backend>
struct Ops {
  static Program program_of(const Tensor& table, const Tensor& like, int64_t N, int64_t D,
                            const std::vector<int64_t>& sizes, int64_t first) {
    STD_TORCH_CHECK(sizes.size() == 4, Backend::kName,
                    ": program_sizes must be (groups, slots, reversed groups, reversed slots)");
    STD_TORCH_CHECK(
        Backend::owns(table, like) && table.is_contiguous() &&
            table.scalar_type() == ScalarType::Int,
        Backend::kName,
        ": program must be a contiguous int32 tensor on the device of the other arguments");
    check_memory<Backend>("program", table);
    const Program program = Program::over(static_cast<const int32_t*>(table.const_data_ptr()),
                                          table.numel(), N, D, sizes[first], sizes[first + 1]);
    STD_TORCH_CHECK(Backend::is_valid(program), Backend::kName,
                    ": program is not a sweep program of ", N, " nodes and ", D, " directions");
    return program;
  }

  static void check_last(bool is_asked) {
    STD_TORCH_CHECK(Backend::kGivesLast || !is_asked, Backend::kName,
                    ": h_n and c_n are taken from h and c, the op gives none");
  }

  // The program of a call; without a table the chain of N steps, whose tables `chain` keeps.
  static Program program_of(const OptionalTensor& table, const Tensor& like, int64_t N, int64_t D,
                            const std::vector<int64_t>& sizes, int64_t first,
                            typename Backend::Chain& chain) {
    if (table) return program_of(*table, like, N, D, sizes, first);
    STD_TORCH_CHECK(N >= 1 && (D == 1 || D == 2) && N <= kMaxChain, Backend::kName,
                    ": without a program the topology is a chain of 1 to ", kMaxChain,
                    " steps in one or two directions, got ", N, " and ", D);
    return chain.program(like, N, D, first != 0);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sweep_fwd(
      const Tensor& x, std::vector<Tensor> w_ih, std::vector<Tensor> bias, std::vector<Tensor> w_hh,
      OptionalTensor mask, OptionalTensor h0, OptionalTensor c0, OptionalTensor entry,
      OptionalTensor projection, OptionalTensor program, OptionalTensor reversed_program,
      std::vector<int64_t> program_sizes, int64_t cell, bool mean, bool keep_h, bool keep_c,
      bool keep_last, bool save, bool /*allow_tf32*/) {
    const SweepInputs<Backend> in(cell, x, w_ih, bias, w_hh, mask, h0, c0, entry, projection);
    check_last(keep_last);
    const bool carries = cell == kLstm;
    Tensor h = new_tensor(x, keep_h ? in.states() : Shape{0});
    Tensor s = new_tensor(x, projection ? Shape{in.B, in.D, in.K, in.H} : Shape{0});
    Tensor c = new_tensor(x, keep_c && carries ? in.states() : Shape{0});
    Tensor h_n = new_tensor(x, keep_last ? Shape{in.D, in.B, in.H} : Shape{0});
    Tensor c_n = new_tensor(x, keep_last && carries ? Shape{in.D, in.B, in.H} : Shape{0});
    Tensor saved = new_tensor(x, save ? in.saved() : Shape{0});
    typename Backend::Chain chain;
    SweepForward a{};
    in.fill(a, mean);
    a.program = program_of(program, x, in.N, in.D, program_sizes, 0, chain);
    a.h = keep_h ? h.mutable_data_ptr() : nullptr;
    a.s = projection ? s.mutable_data_ptr() : nullptr;
    a.c = keep_c && carries ? c.mutable_data_ptr() : nullptr;
    a.h_n = keep_last ? h_n.mutable_data_ptr() : nullptr;
    a.c_n = keep_last && carries ? c_n.mutable_data_ptr() : nullptr;
    a.saved = save && saved_of(a.cell) ? saved.mutable_data_ptr() : nullptr;
    a.has_backward = save;
    if (in.B && in.H) Backend::sweep(a, dtype_of<Backend>(x), x);
    return {h, s, c, h_n, c_n, saved};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sweep_bwd(
      OptionalTensor dh, OptionalTensor ds, OptionalTensor dc, OptionalTensor dh_n,
      OptionalTensor dc_n, const Tensor& x, const Tensor& h, const Tensor& saved,
      std::vector<Tensor> w_ih, std::vector<Tensor> bias, std::vector<Tensor> w_hh,
      OptionalTensor mask, OptionalTensor h0, OptionalTensor c0, OptionalTensor entry,
      OptionalTensor projection, OptionalTensor reversed_program,
      std::vector<int64_t> program_sizes, int64_t cell, bool mean, bool need_dx,
      bool /*allow_tf32*/) {
    const SweepInputs<Backend> in(cell, x, w_ih, bias, w_hh, mask, h0, c0, entry, projection);
    check_last(dh_n || dc_n);
    const Shape last{in.D, in.B, in.H};
    const bool carries = cell == kLstm;
    const Argument<Backend> h_in("h", h, x, in.dtype, in.states()),
        dh_in("dh", dh, x, in.dtype, in.states()),
        ds_in("ds", ds, x, in.dtype, {in.B, in.D, in.K, in.H}),
        dc_in("dc", carries ? dc : OptionalTensor{}, x, in.dtype, in.states()),
        dh_n_in("dh_n", dh_n, x, in.dtype, last),
        dc_n_in("dc_n", carries ? dc_n : OptionalTensor{}, x, in.dtype, last),
        saved_in("saved", saved_of(cell) ? OptionalTensor(saved) : OptionalTensor{}, x, in.dtype,
                 in.saved());
    const auto output = [&](bool is_wanted, const Shape& shape) {
      return new_tensor(x, is_wanted ? shape : Shape{0});
    };
    const bool has_bias = !bias.empty();
    Tensor dx = output(need_dx, shape_of(x));
    Tensor dw_ih = output(!w_ih.empty(), {in.D, in.G * in.H, in.C});
    Tensor dbias = output(has_bias, {in.D, in.bias_rows() * in.H});
    Tensor dw_hh = output(true, {in.D, in.G * in.H, in.H});
    Tensor dh0 = output(h0.has_value(), {in.B, in.D, in.H});
    Tensor dc0 = output(c0.has_value(), {in.B, in.D, in.H});
    Tensor dprojection = output(projection.has_value(), {in.D, in.K, in.N});
    typename Backend::Chain chain;
    SweepBackward a{};
    in.fill(a, mean);
    a.program = program_of(reversed_program, x, in.N, in.D, program_sizes, 2, chain);
    a.h = h_in.data(), a.saved = saved_in.data(), a.dh = dh_in.data(),
    a.ds = projection ? ds_in.data() : nullptr, a.dc = dc_in.data(), a.dh_n = dh_n_in.data(),
    a.dc_n = dc_n_in.data();
    a.dx = need_dx ? dx.mutable_data_ptr() : nullptr;
    a.dw_ih = w_ih.empty() ? nullptr : dw_ih.mutable_data_ptr();
    a.dbias = has_bias ? dbias.mutable_data_ptr() : nullptr;
    a.dw_hh = dw_hh.mutable_data_ptr();
    a.dh0 = h0 ? dh0.mutable_data_ptr() : nullptr;
    a.dc0 = c0 ? dc0.mutable_data_ptr() : nullptr;
    a.dprojection = projection ? dprojection.mutable_data_ptr() : nullptr;
    if (in.H)
      Backend::sweep_backward(a, dtype_of<Backend>(x), x);
    else
      torch::stable::zero_(dprojection);  // the only one that is not empty
    return {dx, dw_ih, dbias, dw_hh, dh0, dc0, dprojection};
  }

  static Tensor gated_sweep_fwd(const Tensor& g, const Tensor& gate, const Tensor& w,
                                const Tensor& program, const Tensor& reversed_program,
                                std::vector<int64_t> program_sizes, bool /*allow_tf32*/) {
    const SweepInputs<Backend> in(kIdentity, g, {}, {}, {w}, {}, {}, {}, {}, {});
    const Argument<Backend> gate_in("gate", gate, g, in.dtype, in.states());
    Tensor y = new_tensor(g, in.states());
    SweepForward a{};
    in.fill(a, false);
    a.program = program_of(program, g, in.N, in.D, program_sizes, 0);
    a.gate = gate_in.data();
    a.h = y.mutable_data_ptr();
    if (in.B && in.H) Backend::sweep(a, dtype_of<Backend>(g), g);
    return y;
  }

  // The gate's own derivative needs what the gate was applied to, so the forward runs once more to
  // write it.
  static std::tuple<Tensor, Tensor, Tensor> gated_sweep_bwd(const Tensor& dy, const Tensor& y,
                                                            const Tensor& g, const Tensor& gate,
                                                            const Tensor& w, const Tensor& program,
                                                            const Tensor& reversed_program,
                                                            std::vector<int64_t> program_sizes,
                                                            bool /*allow_tf32*/) {
    const SweepInputs<Backend> in(kIdentity, g, {}, {}, {w}, {}, {}, {}, {}, {});
    const Argument<Backend> gate_in("gate", gate, g, in.dtype, in.states()),
        dy_in("dy", dy, g, in.dtype, in.states()), y_in("y", y, g, in.dtype, in.states());
    Tensor pre = new_tensor(g, in.states()), dg = new_tensor(g, in.states()),
           dgate = new_tensor(g, in.states()), dw = new_tensor(g, {in.D, in.H, in.H});
    SweepForward again{};
    in.fill(again, false);
    again.program = program_of(program, g, in.N, in.D, program_sizes, 0);
    again.gate = gate_in.data();
    again.pre = pre.mutable_data_ptr();
    SweepBackward a{};
    in.fill(a, false);
    a.program = program_of(reversed_program, g, in.N, in.D, program_sizes, 2);
    a.h = y_in.data(), a.dh = dy_in.data(), a.gate = gate_in.data(), a.pre = pre.const_data_ptr();
    a.dx = dg.mutable_data_ptr(), a.dgate = dgate.mutable_data_ptr(),
    a.dw_hh = dw.mutable_data_ptr();
    if (in.B && in.H) Backend::sweep(again, dtype_of<Backend>(g), g);
    if (in.H) Backend::sweep_backward(a, dtype_of<Backend>(g), g);
    return {dg, dgate, dw};
  }

  static Tensor sparse_projection_fwd(const Tensor& h, const Tensor& weight) {
    const int64_t B = size_of<Backend>("h", h, 4, 0), N = h.size(1), D = h.size(2), H = h.size(3),
                  K = size_of<Backend>("weight", weight, 3, 1);
    const Argument<Backend> h_in("h", h, h, h.scalar_type(), {B, N, D, H}),
        weight_in("weight", weight, h, h.scalar_type(), {D, K, N});
    Tensor s = new_tensor(h, {B, D, K, H});
    const SparseProjection a{B, N, D, H, K, h_in.data(), weight_in.data(), s.mutable_data_ptr()};
    if (s.numel()) Backend::sparse_projection(a, dtype_of<Backend>(h), h);
    return s;
  }

  static std::tuple<Tensor, Tensor> sparse_projection_bwd(const Tensor& ds, const Tensor& h,
                                                          const Tensor& weight) {
    const int64_t B = size_of<Backend>("h", h, 4, 0), N = h.size(1), D = h.size(2), H = h.size(3),
                  K = size_of<Backend>("weight", weight, 3, 1);
    const Argument<Backend> h_in("h", h, h, h.scalar_type(), {B, N, D, H}),
        weight_in("weight", weight, h, h.scalar_type(), {D, K, N}),
        ds_in("ds", ds, h, h.scalar_type(), {B, D, K, H});
    Tensor dh = new_tensor(h, {B, N, D, H}), dweight = new_tensor(h, {D, K, N});
    const SparseProjectionBackward a{B,
                                     N,
                                     D,
                                     H,
                                     K,
                                     ds_in.data(),
                                     h_in.data(),
                                     weight_in.data(),
                                     dh.mutable_data_ptr(),
                                     dweight.mutable_data_ptr()};
    if (H)
      Backend::sparse_projection_backward(a, dtype_of<Backend>(h), h);
    else
      torch::stable::zero_(dweight);
    return {dh, dweight};
  }
};

}  // namespace strnn

// Registers Ops<Backend> in a dispatcher namespace under a key.
#define STRNN_REGISTER_OPS(name, key, Backend)                                               \
  STABLE_TORCH_LIBRARY_IMPL(name, key, m) {                                                  \
    m.impl("sweep_fwd", TORCH_BOX(&strnn::Ops<Backend>::sweep_fwd));                         \
    m.impl("sweep_bwd", TORCH_BOX(&strnn::Ops<Backend>::sweep_bwd));                         \
    m.impl("gated_sweep_fwd", TORCH_BOX(&strnn::Ops<Backend>::gated_sweep_fwd));             \
    m.impl("gated_sweep_bwd", TORCH_BOX(&strnn::Ops<Backend>::gated_sweep_bwd));             \
    m.impl("sparse_projection_fwd", TORCH_BOX(&strnn::Ops<Backend>::sparse_projection_fwd)); \
    m.impl("sparse_projection_bwd", TORCH_BOX(&strnn::Ops<Backend>::sparse_projection_bwd)); \
  }
