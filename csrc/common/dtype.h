// Storage types of the kernels and their conversion to the type that they compute in (acc_t):
// float32, bfloat16 and float16 are computed in float, float64 in double.
#pragma once
#include <cstdint>
#include <cstring>

// The compiler's own half, where it is there and converts by instructions or by a routine that
// comes with it; elsewhere the conversion is integer arithmetic. clang has a _Float16 on x86-64
// from 15 on, but leaves the routine to whatever libgcc there is.
#if defined(__aarch64__)
#define STRNN_HALF __fp16
#elif defined(__FLT16_MAX__) && defined(__GNUC__) && !defined(__clang__)
#define STRNN_HALF _Float16
#endif

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

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float to_acc(Half x) {
#ifdef STRNN_HALF
  STRNN_HALF y;
  std::memcpy(&y, &x, sizeof y);
  return static_cast<float>(y);
#else
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  if (magnitude >= 0x1fu << 23) return from_bits(sign | magnitude | 0x7f800000);  // infinity, NaN
  if (magnitude >= 1u << 23) return from_bits(sign | (magnitude + (112u << 23)));
  // Subnormal: as a fraction of 2^-14, from which the leading one is taken off again.
  const float y = from_bits(magnitude + (113u << 23)) - from_bits(113u << 23);
  return sign ? -y : y;
#endif
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
  const uint32_t bits = to_bits(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {
      static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
template <>
inline Half from_acc<Half>(float x) {
#ifdef STRNN_HALF
  const STRNN_HALF y = static_cast<STRNN_HALF>(x);
  Half h;
  std::memcpy(&h, &y, sizeof h);
  return h;
#else
  const uint32_t bits = to_bits(x), magnitude = bits & 0x7fffffff;
  const auto half = [&](uint32_t m) {
    return Half{static_cast<uint16_t>((bits >> 16 & 0x8000) | m)};
  };
  if (magnitude > 0x7f800000) return half(0x7e00 | (magnitude >> 13 & 0x1ff));  // NaN, made quiet
  if (magnitude >= 143u << 23) return half(0x7c00);
  // Subnormal: the sum's last bit is worth 2^-24, so that the addition rounds.
  if (magnitude < 113u << 23)
    return half(to_bits(from_bits(magnitude) + from_bits(126u << 23)) - (126u << 23));
  return half((magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
#endif
}

}  // namespace strnn
