// Storage types of the kernels and their conversion to the type that they compute in (acc_t):
// float32, bfloat16 and float16 are computed in float, float64 in double.
#pragma once
#include <cstdint>
#include <cstring>

namespace strnn {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <typename S>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename S>
using acc_t = typename AccOf<S>::type;

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
inline float to_acc(Half x) {
  _Float16 y;
  std::memcpy(&y, &x, sizeof y);
  return static_cast<float>(y);
}

template <typename S>
S from_acc(acc_t<S> x);
template <>
inline float from_acc<float>(float x) {
  return x;
}
template <>
inline double from_acc<double>(double x) {
  return x;
}
template <>
inline BFloat16 from_acc<BFloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {
      static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
template <>
inline Half from_acc<Half>(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  Half h;
  std::memcpy(&h, &y, sizeof h);
  return h;
}

}  // namespace strnn
