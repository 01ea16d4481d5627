// The tensor core's instructions of csrc/cuda/ptx.cuh: which lane holds what of a matrix, after the
// PTX ISA. Products are added in double and rounded once, as no hardware does; kernels must not
// depend on it. Compiled without -fsanitize=thread.
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace emu {
namespace {

constexpr unsigned kAllLanes = ~0u;

float value(Operands operands, uint32_t word, int half) {
  const auto bits = static_cast<unsigned short>(word >> 16 * half);
  if (operands == Operands::kBFloat16)
    return __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{bits}));
  if (operands == Operands::kHalf) return __half2float(__half(__half_raw{bits}));
  float x;
  word &= ~0x1fffu;  // the hardware does not look at what is below a tf32
  std::memcpy(&x, &word, sizeof x);
  return x;
}

struct Mine {
  uint32_t a[4], b[2];
};

}  // namespace

void mma(Operands operands, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         const float (&c)[4]) {
  Mine mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  Exchanged all;
  exchange("mma", kAllLanes, &mine, sizeof mine, all);
  const bool is_16_bit = operands != Operands::kTf32;
  const unsigned g = lane() / 4, q = lane() % 4;
  double sum[4] = {c[0], c[1], c[2], c[3]};
  for (unsigned p = 0; p < 4; ++p)  // the lanes of a row of a, and of a column of b
    for (unsigned s = 0; s < 2; ++s)
      for (int e = 0; e < (is_16_bit ? 2 : 1); ++e) {
        Mine row, column[2];
        std::memcpy(&row, all.of[4 * g + p], sizeof row);
        for (unsigned i = 0; i < 2; ++i)
          std::memcpy(&column[i], all.of[4 * (2 * q + i) + p], sizeof row);
        for (int i = 0; i < 4; ++i)
          sum[i] += static_cast<double>(value(operands, row.a[i / 2 + 2 * s], e)) *
                    value(operands, column[i % 2].b[s], e);
      }
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(sum[i]);
}

uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return 0x7fffffffu;
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;
  return bits & ~0x1fffu;
}

// As far off as the instruction may be.
float tanh_approx(float x) { return std::tanh(x) * (1 - 0x1p-11f); }

uint32_t transpose_8x8(uint32_t x) {
  Exchanged all;
  exchange("movmatrix", kAllLanes, &x, sizeof x, all);
  const unsigned g = lane() / 4, q = lane() % 4;
  uint32_t y = 0;
  for (unsigned e = 0; e < 2; ++e) {
    uint32_t row;
    std::memcpy(&row, all.of[4 * (2 * q + e) + g / 2], sizeof row);
    y |= (row >> 16 * (g % 2) & 0xffffu) << 16 * e;
  }
  return y;
}

void load_transposed(uint32_t (&r)[4], const void* address, const uint32_t (&row)[4]) {
  if (reinterpret_cast<uintptr_t>(address) % 16) fail("ALIGN: ldmatrix");
  Exchanged all;
  exchange("ldmatrix", kAllLanes, row, sizeof row, all);
  const unsigned g = lane() / 4, q = lane() % 4;
  for (unsigned m = 0; m < 4; ++m) {
    r[m] = 0;
    for (unsigned e = 0; e < 2; ++e) {
      uint32_t words[4];
      std::memcpy(words, all.of[8 * m + 2 * q + e], sizeof words);
      r[m] |= (words[g / 2] >> 16 * (g % 2) & 0xffffu) << 16 * e;
    }
  }
}

}  // namespace emu
