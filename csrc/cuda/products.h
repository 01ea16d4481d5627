// Products and sums outside the serial chain, which the caller of the ops makes: torch's own
// (csrc/products.h). All gradients of weights, dx and dh0, u of many inputs, and the gradient of a
// projection are such.
#pragma once
#include <cstdint>

#include "../common/dtype.h"

namespace strnn::cuda {

// Element (i, k) of matrix z at data[z * batch + i * row + k * column].
struct Matrices {
  const void* data;
  int64_t batch, row, column;
};

class Products {
 public:
  virtual ~Products() = default;
  // out[z] = a[z] b[z], Z products of M x K by K x N matrices; zeros with K = 0. out may be
  // written to.
  virtual void multiply(Dtype, int64_t Z, int64_t M, int64_t N, int64_t K, const Matrices& a,
                        const Matrices& b, const Matrices& out) = 0;
  // to[i] = sum over parts of from[part * count + i].
  virtual void sum(Dtype, int64_t count, int64_t parts, const void* from, void* to) = 0;
};

}  // namespace strnn::cuda
