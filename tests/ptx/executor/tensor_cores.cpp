// Products of matrices: which lane holds which element, after the tables of the PTX ISA. Sums are
// made in double and rounded once; how a tensor core rounds is not documented.
#include "machine.h"

namespace ptx {
namespace {

void all_lanes(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  if (lanes != ~0u) m.fail("divergent: not all lanes take part", w, i, 0);
}

using ptx::value_of;
struct Tf32 {  // stored as a float, of which 19 bits count
  u32 bits;
};
double value_of(Tf32 x) { return as<f32>(x.bits & ~0x1fffu); }

// Elements of a fragment of `kRegisters` registers, two to a register in 16 bits: f(row, column,
// lane, value), the column along the sum. Of A: rows are the lane's group and that plus 8, by bit 0
// of the register's number; of B: the group only.
template <class T, bool kIsA, class F>
void for_elements(Warp& w, const s32* from, int registers, const F& f) {
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, t = l % 4;
    for (int r = 0; r < registers; ++r) {
      const int row = kIsA ? group + r % 2 * 8 : group, part = kIsA ? r / 2 : r;
      if constexpr (sizeof(T) == 2) {
        const u32 word = get<u32>(w.reg(from[r]), l);
        for (int e = 0; e < 2; ++e)
          f(row, 8 * part + 2 * t + e, value_of(T{static_cast<u16>(word >> 16 * e)}));
      } else {
        f(row, 4 * part + t, value_of(get<T>(w.reg(from[r]), l)));
      }
    }
  }
}

// D = A B + C of 16 x K and K x N; C and D by four elements a lane for each 8 columns.
struct Tile {
  double a[16][16], b[256][16];
};
template <class Sum>
void accumulate(Warp& w, const Tile& t, int K, int N, int rows, const s32* c, const s32* d,
                u32 keeps) {
  const int of_lane = rows / 4;  // elements for each 8 columns
  for (int l = 0; l < 32; ++l)
    for (int n = 0; n < N / 8; ++n)
      for (int e = 0; e < of_lane; ++e) {
        const double *a = t.a[l / 4 + e / 2 * 8], *b = t.b[8 * n + l % 4 * 2 + e % 2];
        const int at = of_lane * n + e;
        double sum = keeps >> l & 1 ? get<Sum>(w.reg(c[at]), l) : 0;
        for (int k = 0; k < K; ++k) sum += a[k] * b[k];
        put<Sum>(w.reg(d[at]), l, static_cast<Sum>(sum));
      }
}

// mma.sync of kRows x 8 x K; s: A, B, C.
template <class T, int kRows, int K>
void mma(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  all_lanes(m, w, i, lanes);
  constexpr int kElements = sizeof(T) == 2 ? 2 : 1, kA = kRows * K / 32 / kElements,
                kB = 8 * K / 32 / kElements;
  Tile t;
  for_elements<T, (kRows > 8)>(w, i.s, kA, [&](int r, int k, double x) { t.a[r][k] = x; });
  for_elements<T, false>(w, i.s + kA, kB, [&](int n, int k, double x) { t.b[n][k] = x; });
  using Sum = std::conditional_t<std::is_same_v<T, f64>, f64, f32>;
  accumulate<Sum>(w, t, K, 8, kRows, i.s + kA + kB, i.d, ~0u);
}

// Byte of element k of row or column `mn` in the matrix that a descriptor of wgmma names.
u32 described(u64 desc, int mn, int k, int size, bool is_mn_major) {
  const auto field = [&](int at) { return static_cast<u32>(desc >> at & 0x3fff) << 4; };
  const u32 start = field(0), leading = field(16), stride = field(32), mode = desc >> 62;
  const u32 row = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 16, per = row / size;
  u32 at = start;
  if (is_mn_major) {
    const u32 blocks_mn = mn / per, blocks_k = k / 8;
    at += mn % per * size + k % 8 * row;
    at += mode ? blocks_mn * leading + blocks_k * stride : blocks_mn * stride + blocks_k * leading;
  } else {
    at += mn % 8 * row + mn / 8 * stride;
    at += mode ? k * size : k % per * size + k / per * leading;
  }
  return mode ? at ^ (at >> 7 & (row / 16 - 1)) << 4 : at;
}
// A warp has 16 of its warpgroup's 64 rows. Done when it is issued. s: A (4 registers or a
// descriptor), descriptor of B, whether D is added to; imm: columns; width: 1 A transposed, 2 B
// transposed, 4 A in registers.
template <class T>
void wgmma(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  all_lanes(m, w, i, lanes);
  constexpr int K = sizeof(T) == 2 ? 16 : 8;
  const bool in_registers = i.width & 4;
  const s32* after_a = i.s + (in_registers ? 4 : 1);
  const auto element = [&](s32 descriptor, int mn, int k, bool is_transposed) {
    const u32 at = described(get<u64>(w.reg(descriptor), 0), mn, k, sizeof(T), is_transposed);
    T x;
    memcpy(&x, resolve(m, w, i, 0, kShared, at, sizeof(T), false), sizeof(T));
    return value_of(x);
  };
  Tile t;
  if (in_registers)
    for_elements<T, true>(w, i.s, 4, [&](int r, int k, double x) { t.a[r][k] = x; });
  for (int k = 0; k < K; ++k) {
    for (int r = 0; r < 16 && !in_registers; ++r)
      t.a[r][k] = element(i.s[0], 16 * (w.id % 4) + r, k, i.width & 1);
    for (int n = 0; n < i.imm; ++n) t.b[n][k] = element(after_a[0], n, k, i.width & 2);
  }
  accumulate<f32>(w, t, K, i.imm, 16, i.d, i.d, w.pred(after_a[1]));
}

// 8 x 8 matrices of 16-bit elements; lane l has two neighbours of row l / 4.
struct Matrix {
  u16 of[8][8];
  template <bool kIsTransposed>
  u16& at(int lane, int e) {
    const int row = lane / 4, column = lane % 4 * 2 + e;
    return kIsTransposed ? of[column][row] : of[row][column];
  }
  template <bool kIsTransposed = false>
  void take(int lane, u32 word) {
    at<kIsTransposed>(lane, 0) = word, at<kIsTransposed>(lane, 1) = word >> 16;
  }
  template <bool kIsTransposed>
  u32 give(int lane) {
    return at<kIsTransposed>(lane, 0) | static_cast<u32>(at<kIsTransposed>(lane, 1)) << 16;
  }
};
template <bool kIsTransposed>
void ldmatrix(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  all_lanes(m, w, i, lanes);
  u64 from[32];
  addresses(w, i, 0, i.imm, from);
  for (int n = 0; n < i.dests; ++n) {
    Matrix x;
    for (int r = 0, l = 8 * n; r < 8; ++r, ++l)
      memcpy(x.of[r], resolve(m, w, i, l, kShared, from[l], 16, false), 16);
    for (int l = 0; l < 32; ++l) put<u32>(w.reg(i.d[n]), l, x.give<kIsTransposed>(l));
  }
}
template <bool kIsTransposed>
void stmatrix(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  all_lanes(m, w, i, lanes);
  u64 to[32];
  addresses(w, i, 0, i.imm, to);
  for (int n = 0; n + 1 < i.sources; ++n) {
    Matrix x;
    for (int l = 0; l < 32; ++l) x.take<kIsTransposed>(l, get<u32>(w.reg(i.s[1 + n]), l));
    for (int r = 0, l = 8 * n; r < 8; ++r, ++l) {
      m.stored = reinterpret_cast<const u8*>(x.of[r]);
      memcpy(resolve(m, w, i, l, kShared, to[l], 16, true), x.of[r], 16);
      m.stored = nullptr;
    }
  }
}
void movmatrix(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  all_lanes(m, w, i, lanes);
  Matrix x;
  for (int l = 0; l < 32; ++l) x.take(l, get<u32>(w.reg(i.s[0]), l));
  for (int l = 0; l < 32; ++l) put<u32>(w.reg(i.d[0]), l, x.give<true>(l));
}

}  // namespace

void define_tensor_cores() {
  define("mma.m16n8k16.bf16", mma<bf16, 16, 16>), define("mma.m16n8k16.f16", mma<f16, 16, 16>);
  define("mma.m16n8k8.bf16", mma<bf16, 16, 8>), define("mma.m16n8k8.f16", mma<f16, 16, 8>);
  define("mma.m16n8k8.tf32", mma<Tf32, 16, 8>), define("mma.m16n8k4.tf32", mma<Tf32, 16, 4>);
  define("mma.m8n8k4.f64", mma<f64, 8, 4>), define("mma.m16n8k4.f64", mma<f64, 16, 4>);
  define("mma.m16n8k8.f64", mma<f64, 16, 8>), define("mma.m16n8k16.f64", mma<f64, 16, 16>);
  define("wgmma.bf16", wgmma<bf16>), define("wgmma.f16", wgmma<f16>);
  define("wgmma.tf32", wgmma<Tf32>);
  define("ldmatrix", ldmatrix<false>), define("ldmatrix.trans", ldmatrix<true>);
  define("stmatrix", stmatrix<false>), define("stmatrix.trans", stmatrix<true>);
  define("movmatrix.trans", movmatrix);
}

}  // namespace ptx
