// gemm: C = init + A B on small matrices that are hot in cache; the only matrix product of the CPU
// backend.
//
//   C[m, n] = init[m, n] + sum_k A[m, k] * B[k, n],   m < M, k < K, n < num_vecs * kLanes
//
// A is read one scalar at a time, at a[m * row_step + k * k_step], so a transposed A costs nothing.
// B is read in whole registers, at b[panel * panel_step + k * ldb + n % kPanel], so that a packed B
// (panels of kPanel columns, ldb = kPanel) and a plain row-major buffer (panel_step = kPanel) are
// the same code. init_step = 0 adds the same row (a bias) to every row of C; init = c accumulates.
// The sum over k starts at zero and meets init at the end, so that a long accumulation (a weight
// gradient over many chunks) is a sum of short ones and loses little to rounding.
//
// One micro-kernel keeps a tile of MR x NV registers: on AVX-512, 14 x 2 accumulators + 2 of B + 1
// of A of 32; on 16-register machines 6 x 2 + 2 + 1. Rows are divided evenly over the tiles, so no
// tile is small.

#if STRNN_VEC_BYTES == 64
constexpr int kMaxTileRows = 14;
#else
constexpr int kMaxTileRows = 6;
#endif
constexpr int kPanelVecs = 2;
// Terms of a sum that are added one after the other; longer sums are sums of such sums, which round
// less.
constexpr int64_t kMaxTerms = 256;
template <typename T>
constexpr int kPanel = kPanelVecs * kLanes<T>;

template <typename T>
struct Gemm {
  int64_t K;
  const T* a;
  int64_t row_step, k_step;
  const T* b;
  int64_t ldb, panel_step;
  const T* init;
  int64_t init_step;
  T* c;
  int64_t ldc;
};

template <typename T, int MR, int NV>
STRNN_INLINE void gemm_tile(int64_t K, const T* a, int64_t row_step, int64_t k_step, const T* b,
                            int64_t ldb, const T* init, int64_t init_step, T* c, int64_t ldc) {
  Vec<T> acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = Vec<T>{};
  // Three rows per base pointer: x86 addresses base, base + step and base + 2 * step without
  // arithmetic, so 14 rows need five moving pointers instead of fourteen.
  const T* base[(MR + 2) / 3];
#pragma GCC unroll 8
  for (int g = 0; g < (MR + 2) / 3; ++g) {
    base[g] = a + 3 * g * row_step;
    asm("" : "+r"(base[g]));
  }
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> bv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) bv[v] = load<T>(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const Vec<T> am = splat<T>(base[m / 3][(m % 3) * row_step]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[m][v] += am * bv[v];
    }
    b += ldb;
#pragma GCC unroll 8
    for (int g = 0; g < (MR + 2) / 3; ++g) base[g] += k_step;
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v)
      store<T>(c + m * ldc + v * kLanes<T>,
               load<T>(init + m * init_step + v * kLanes<T>) + acc[m][v]);
}

template <typename T, int MR>
STRNN_NOINLINE void gemm_rows(const Gemm<T>& g, int64_t m, int64_t num_vecs) {
  const T* a = g.a + m * g.row_step;
  const T* init = g.init + m * g.init_step;
  T* c = g.c + m * g.ldc;
  const T* b = g.b;
  for (; num_vecs >= kPanelVecs; num_vecs -= kPanelVecs) {
    gemm_tile<T, MR, kPanelVecs>(g.K, a, g.row_step, g.k_step, b, g.ldb, init, g.init_step, c,
                                 g.ldc);
    b += g.panel_step;
    init += kPanel<T>;
    c += kPanel<T>;
  }
  if (num_vecs)
    gemm_tile<T, MR, 1>(g.K, a, g.row_step, g.k_step, b, g.ldb, init, g.init_step, c, g.ldc);
}

template <typename T, int... I>
STRNN_INLINE void gemm_rows_any(int rows, const Gemm<T>& g, int64_t m, int64_t num_vecs,
                                std::integer_sequence<int, I...>) {
  using Fn = void (*)(const Gemm<T>&, int64_t, int64_t);
  static constexpr Fn table[] = {gemm_rows<T, I + 1>...};
  table[rows - 1](g, m, num_vecs);
}

template <typename T>
STRNN_INLINE void gemm_terms(int64_t M, int64_t num_vecs, const Gemm<T>& g) {
  const int64_t tiles = (M + kMaxTileRows - 1) / kMaxTileRows;
  int64_t m = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t rows = (M - m) / (tiles - t);
    gemm_rows_any<T>((int)rows, g, m, num_vecs, std::make_integer_sequence<int, kMaxTileRows>{});
    m += rows;
  }
}

template <typename T>
STRNN_INLINE void gemm(int64_t M, int64_t num_vecs, const Gemm<T>& g) {
  if (M == 0) return;
  Gemm<T> part = g;
  for (int64_t k = 0;;) {
    part.K = std::min(kMaxTerms, g.K - k);
    gemm_terms(M, num_vecs, part);
    if ((k += part.K) >= g.K) return;
    part.a = g.a + k * g.k_step, part.b = g.b + k * g.ldb;
    part.init = g.c, part.init_step = g.ldc;
  }
}
