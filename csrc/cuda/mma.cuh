// A state as the tensor core takes it. A unit is 16 columns of a tile of 16 items; lane 4g + q
// holds columns 4q..4q+3 of items g and g + 8, as output and as left operand alike. So an output
// becomes the next product's operand without leaving its lane, and 4 neighbouring columns are one
// piece in memory. mma's own order of columns differs, but a column may have any place as long as
// both operands agree: column 4q + 2t + e of a unit is column 2q + e of its t-th tile of 8 as
// output, and as operand row or column 2q + e of the t-th 8.
#pragma once
#include <cstring>
#include <type_traits>

#include "ptx.cuh"
#include "storage.cuh"

namespace strnn::cuda {

constexpr int kUnit = 16;  // columns of a unit, and items of a tile
constexpr int kPiece = 4;  // columns of a lane

__device__ __forceinline__ uint32_t pack(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, &both, sizeof word);
  return word;
}
__device__ __forceinline__ uint32_t pack(float low, float high, __half) {
  const __half2 both = __floats2half2_rn(low, high);
  uint32_t word;
  memcpy(&word, &both, sizeof word);
  return word;
}
__device__ __forceinline__ float2 unpack(uint32_t word, __nv_bfloat16) {
  const uint32_t low = word << 16, high = word & 0xffff0000u;  // the first halves of floats
  float2 both;
  memcpy(&both.x, &low, sizeof low), memcpy(&both.y, &high, sizeof high);
  return both;
}
__device__ __forceinline__ float2 unpack(uint32_t word, __half) {
  __half2 both;
  memcpy(&both, &word, sizeof word);
  return __half22float2(both);
}
// f of the halves of words, as pairs of the type.
template <typename S, typename F, typename... Words>
__device__ __forceinline__ uint32_t by_pairs(const F& f, const Words&... words) {
  using Pair = std::conditional_t<std::is_same_v<S, __half>, __half2, __nv_bfloat162>;
  const auto pair = [](uint32_t word) {
    Pair x;
    memcpy(&x, &word, sizeof x);
    return x;
  };
  const Pair y = f(pair(words)...);
  uint32_t word;
  memcpy(&word, &y, sizeof word);
  return word;
}
// Sums of both halves, rounded to the type.
template <typename S>
__device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b, S) {
  return by_pairs<S>([](auto x, auto y) { return __hadd2(x, y); }, a, b);
}
// sum + 0 x of both halves: zeros as long as every x was finite.
template <typename S>
__device__ __forceinline__ uint32_t add_none(uint32_t x, uint32_t sum, S) {
  return by_pairs<S>([](auto x, auto none, auto y) { return __hfma2(x, none, y); }, x, 0u, sum);
}
__device__ __forceinline__ float finite_or_zero(float x) { return isfinite(x) ? x : 0.f; }
// The lane's column of an operand's t-th tile of 8, in the order of a unit.
__device__ __forceinline__ int tile_column(int t) {
  const int g = threadIdx.x % 32 / 4;
  return 4 * (g / 2) + 2 * t + g % 2;
}

template <typename S>
struct TensorCore {
  // Columns 4q..4q+3 of one item, as they lie in memory.
  struct alignas(kPiece * sizeof(S)) Piece {
    uint32_t w[2];
  };
  // A unit of 16 items, and 16 x 16 weights.
  struct alignas(16) Operand {
    uint32_t r[4];
  };
  using Weight = Operand;

  // From memory at once.
  static __device__ __forceinline__ Piece load(const S* from) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    return {{v.x, v.y}};
  }
  // The values of a piece, the i-th of several.
  template <int kCount>
  static __device__ __forceinline__ Piece piece(const float (&v)[kCount], int i = 0) {
    const int at = kPiece * i;
    return {{pack(v[at], v[at + 1], S{}), pack(v[at + 2], v[at + 3], S{})}};
  }
  template <int kCount>
  static __device__ __forceinline__ void values(const Piece& p, float (&v)[kCount], int i = 0) {
    const float2 low = unpack(p.w[0], S{}), high = unpack(p.w[1], S{});
    const int at = kPiece * i;
    v[at] = low.x, v[at + 1] = low.y, v[at + 2] = high.x, v[at + 3] = high.y;
  }
  static __device__ __forceinline__ Piece sum(const Piece& a, const Piece& b) {
    return {{add(a.w[0], b.w[0], S{}), add(a.w[1], b.w[1], S{})}};
  }
  // From the pieces of items g and g + 8.
  static __device__ __forceinline__ Operand operand(const Piece& a, const Piece& b) {
    return {{a.w[0], b.w[0], a.w[1], b.w[1]}};
  }
  // The piece of item g + 8 * half.
  static __device__ __forceinline__ Piece part(const Operand& x, int half) {
    return {{x.r[half], x.r[half + 2]}};
  }
  // The same unit with items for columns and columns for items, for a sum over items; the lane's
  // rows are columns tile_column(0) and tile_column(1).
  static __device__ __forceinline__ Operand transposed(const Operand& x) {
    return {{transpose_8x8(x.r[0]), transpose_8x8(x.r[2]), transpose_8x8(x.r[1]),
             transpose_8x8(x.r[3])}};
  }
  // Of a unit column tile_column(t) of item i + 8 * half, and the unit with zeros for what is not
  // finite.
  static __device__ __forceinline__ float value(const Operand& x, int t, int half, int i) {
    const int g = threadIdx.x % 32 / 4;
    const float2 both = unpack(__shfl_sync(kAllLanes, x.r[2 * t + half], 4 * i + g / 2), S{});
    return g % 2 ? both.y : both.x;
  }
  static __device__ __forceinline__ Operand finite(Operand x) {
#pragma unroll
    for (uint32_t& word : x.r) {
      const float2 both = unpack(word, S{});
      word = pack(finite_or_zero(both.x), finite_or_zero(both.y), S{});
    }
    return x;
  }
  // The right operand of a sum over items, from a unit in shared memory, of which item i is row
  // i >> shift, with `ld` elements from row to row; columns in their own order, 8t + 2q + e.
  static __device__ __forceinline__ Weight transposed(const S* x, int64_t ld, int shift = 0) {
    const int lane = threadIdx.x % 32;
    Weight w;
    load_transposed(w.r, x + (lane % 16 >> shift) * ld + lane / 16 * 8);
    return w;
  }
  // 16 x 16 weights of a matrix whose 4 columns from 4q on of row i block(i) gives; each row is a
  // column of the output, or, transposed, a summed one.
  template <typename F>
  static __device__ __forceinline__ Weight weight(const F& block) {
    Weight w;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const Piece p = block(tile_column(t));
      w.r[2 * t] = p.w[0], w.r[2 * t + 1] = p.w[1];
    }
    return w;
  }
  template <typename F>
  static __device__ __forceinline__ Weight weight_transposed(const F& block) {
    Weight w;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Piece p = block(tile_column(s));
      w.r[s] = transpose_8x8(p.w[0]), w.r[2 + s] = transpose_8x8(p.w[1]);
    }
    return w;
  }
  // The left operand of a product over columns in their own order, from a unit in shared memory
  // with `ld` elements from item to item, and the weights that belong to it, from the same as
  // weight().
  static __device__ __forceinline__ Operand input(const S* x, int ld) {
    const int lane = threadIdx.x % 32;
    Operand a;
    ldmatrix_x4(a.r, x + lane % 16 * ld + lane / 16 * 8);
    return a;
  }
  template <typename F>
  static __device__ __forceinline__ Weight input_weight(const F& block) {
    const int lane = threadIdx.x % 32, q = lane % 4;
    const Weight pieces = weight(block);
    Weight w;
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // of the s-th 8 columns, words q: of lane 2s + q / 2's piece
      const int t = i / 2, s = i % 2, from = lane - q + 2 * s + q / 2;
      const uint32_t even = __shfl_sync(kAllLanes, pieces.r[2 * t], from);
      const uint32_t odd = __shfl_sync(kAllLanes, pieces.r[2 * t + 1], from);
      w.r[i] = q % 2 ? odd : even;
    }
    return w;
  }
  // acc = a w + c; acc[t][2i + e] is column 4q + 2t + e of item g + 8i.
  static __device__ __forceinline__ void multiply(float (&acc)[2][4], const Operand& a,
                                                  const Weight& w, const float (&c)[2][4]) {
#pragma unroll
    for (int t = 0; t < 2; ++t) mma(acc[t], a.r, w.r[2 * t], w.r[2 * t + 1], c[t], S{});
  }
  static __device__ __forceinline__ void multiply(float (&acc)[2][4], const Operand& a,
                                                  const Weight& w) {
    multiply(acc, a, w, acc);
  }
};

}  // namespace strnn::cuda
