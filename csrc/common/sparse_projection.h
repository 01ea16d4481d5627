// Arguments of the sparse projection: s[b,d,k] = sum_n weight[d,k,n] h[b,n,d]. Exact zeros of
// weight cost nothing.
#pragma once
#include <cstdint>

namespace strnn {

struct SparseProjection {
  int64_t B, N, D, H, K;
  const void* h;       // (B, N, D, H)
  const void* weight;  // (D, K, N)
  void* s;             // (B, D, K, H)
};

struct SparseProjectionBackward {
  int64_t B, N, D, H, K;
  const void* ds;      // (B, D, K, H)
  const void* h;       // (B, N, D, H)
  const void* weight;  // (D, K, N)
  void* dh;            // (B, N, D, H) or null
  void* dweight;       // (D, K, N) or null
};

}  // namespace strnn
