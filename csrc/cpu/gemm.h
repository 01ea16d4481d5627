// gemm: C = init + A B (+ A' B') on small matrices that are hot in cache; the only matrix product
// of the CPU backend.
//
//   C[m, n] = init[m, n] + sum_k A[m, k] * B[k, n] (+ the same of a second pair),
//   m < M, k < K, n < width, rounded up to halves of a register
//
// A is read one scalar at a time, at a[m * row_step + k * k_step], so a transposed A costs nothing.
// B is read in whole registers, at b[panel * panel_step + k * ldb + n % kPanel], so that a packed B
// (panels of kPanel columns, ldb = kPanel) and a plain row-major buffer (panel_step = kPanel) are
// the same code. init_step = 0 adds the same row (a bias) to every row of C; init = c accumulates.
// The sum over k starts at zero and meets init at the end, so that a long accumulation (a weight
// gradient over many chunks) is a sum of short ones and loses little to rounding.
//
// A and B may be pairs of terms (E = Pair); sums are of T.
//
// One micro-kernel keeps a tile of MR x NV registers: on AVX-512, 14 x 2 accumulators + 2 of B + 1
// of A of 32; on NEON 8 x 2 + 2 + 8 of A, whose lanes are factors of a product; on 16-register
// machines 6 x 2 + 2 + 1. Rows are divided evenly over the tiles, so no tile is small; one or two
// rows, which are too few sums for a panel, take several panels at a time. A processor that splits
// wide registers in two does half a register in half the time.

#if STRNN_VEC_BYTES == 64
constexpr int kMaxTileRows = 14;
#elif defined(__aarch64__)
constexpr int kMaxTileRows = 8;
#else
constexpr int kMaxTileRows = 6;
#endif
constexpr int kPanelVecs = 2;
// Sums that a processor needs at a time: two additions in a cycle, done four cycles later.
constexpr int kMinSums = 8;
// Terms of a sum that are added one after the other; longer sums are sums of such sums, which round
// less.
constexpr int64_t kMaxTerms = 256;
template <typename T>
constexpr int kPanel = kPanelVecs * kLanes<T>;

template <typename E>
struct Product {
  int64_t K = 0;
  const E* a = nullptr;
  int64_t row_step = 0, k_step = 0;
  const E* b = nullptr;
  int64_t ldb = 0, panel_step = 0;

  // Where register v of a term of B lies, of the panels from this one on.
  int64_t offset(int64_t v) const {
    return v / kPanelVecs * panel_step + v % kPanelVecs * kLanes<E>;
  }
  // Its terms from `first` on, at most `count`.
  Product terms(int64_t first, int64_t count) const {
    Product part = *this;
    part.K = std::min(count, K - first);
    part.a += first * k_step;
    part.b += first * ldb;
    return part;
  }
};

// What C is of all that: itself, its relu, or its product with the derivative of a relu whose
// results are h.
enum class End { kSum, kRelu, kReluGradient };
// What ends with a relu: double would add a tenth to the size of the library, and tiles are stored
// as they are.
template <typename T, typename E>
constexpr bool kCanEnd = std::is_same_v<T, float> && (std::is_same_v<E, T> || Tiles::kRows == 1);

template <typename T, typename E = T>
struct Gemm {
  Product<E> product;
  const T* init;
  int64_t init_step;
  T* c;
  int64_t ldc;
  Product<E> second = {};
  bool from_the_end = false;  // panels of B in falling order
  End end = End::kSum;
  const T* h = nullptr;  // where the relu's results lie, and
  T* also = nullptr;     // where C is stored too, but if it is the sum alone: at C's distances

  // On to rows further down.
  void skip(int64_t rows) {
    product.a += rows * product.row_step, second.a += rows * second.row_step;
    init += rows * init_step, c += rows * ldc, h += rows * ldc;
  }
};

#if defined(__aarch64__)
// acc + a[kLane] * b.
template <int kLane>
STRNN_INLINE Vec<float> add_lane(Vec<float> acc, Vec<float> a, Vec<float> b) {
  return vfmaq_laneq_f32(acc, b, a, kLane);
}
template <int kLane>
STRNN_INLINE Vec<double> add_lane(Vec<double> acc, Vec<double> a, Vec<double> b) {
  return vfmaq_laneq_f64(acc, b, a, kLane);
}

#if defined(STRNN_PAIRS)
template <int kLane>
STRNN_INLINE Vec<float> add_lane(Vec<float> acc, Vec<Pair> a, Vec<Pair> b) {
  asm("bfdot %0.4s, %1.8h, %2.2h[%3]" : "+w"(acc) : "w"(b), "w"(a), "i"(kLane));
  return acc;
}
#endif

// acc[i] += a[i][kLane] * b for each row.
template <int kLane, typename E, typename V, int MR, int NV>
STRNN_INLINE void add_lanes(const Product<E>& p, const E* b, const Vec<E> (&a)[MR],
                            V (&acc)[MR][NV]) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const Vec<E> bv = load(b + p.offset(v));
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) acc[i][v] = add_lane<kLane>(acc[i][v], a[i], bv);
  }
}

// The terms of acc += A B that fill registers of A, whose rows lie in one piece: a load of A serves
// as many terms as it has lanes. Returns their number.
template <typename E, typename V, int MR, int NV>
STRNN_INLINE int64_t add_product_by_lanes(const Product<E>& p, int64_t m, int64_t panel,
                                          V (&acc)[MR][NV]) {
  const E *a = p.a + m * p.row_step, *b = p.b + panel * p.panel_step;
  const int64_t row_step = p.row_step, ldb = p.ldb;
  int64_t k = 0;
  for (; k + kLanes<E> <= p.K; k += kLanes<E>, b += kLanes<E> * ldb) {
    Vec<E> terms[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) terms[i] = load(a + i * row_step + k);
    add_lanes<0>(p, b, terms, acc);
    add_lanes<1>(p, b + ldb, terms, acc);
    if constexpr (kLanes<E> == 4) {
      add_lanes<2>(p, b + 2 * ldb, terms, acc);
      add_lanes<3>(p, b + 3 * ldb, terms, acc);
    }
  }
  return k;
}
#endif

// acc += A B for a tile.
template <typename E, typename V, int MR, int NV>
STRNN_INLINE void add_product(const Product<E>& p, int64_t m, int64_t panel, V (&acc)[MR][NV]) {
  using F = std::conditional_t<sizeof(V) == kVecBytes, Vec<E>, HalfVec<E>>;
  int64_t first = 0;
#if defined(__aarch64__)
  if constexpr (sizeof(V) == kVecBytes)
    if (p.k_step == 1) first = add_product_by_lanes(p, m, panel, acc);
#endif
  // Three rows per base pointer: x86 addresses base, base + step and base + 2 * step without
  // arithmetic, so 14 rows need five moving pointers instead of fourteen.
  const E* base[(MR + 2) / 3];
#pragma GCC unroll 8
  for (int g = 0; g < (MR + 2) / 3; ++g) {
    base[g] = p.a + (m + 3 * g) * p.row_step + first * p.k_step;
    asm("" : "+r"(base[g]));
  }
  const E* b = p.b + panel * p.panel_step + first * p.ldb;
  const int64_t row_step = p.row_step, k_step = p.k_step, ldb = p.ldb;
  if constexpr (MR * NV * 2 <= kMinSums) {
    // Too few sums to hide the latency of an addition: each in parts, of every kParts-th term.
    constexpr int kParts = kMinSums / (MR * NV);
    V part[kParts][MR][NV] = {};
    for (; first + kParts <= p.K; first += kParts) {
#pragma GCC unroll 8
      for (int q = 0; q < kParts; ++q, b += ldb)
#pragma GCC unroll 4
        for (int i = 0; i < MR; ++i) {
          const F am = splat<E, F>(base[i / 3][q * k_step + (i % 3) * row_step]);
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v)
            part[q][i][v] = add_term(part[q][i][v], am, load<E, F>(b + p.offset(v)));
        }
#pragma GCC unroll 8
      for (int g = 0; g < (MR + 2) / 3; ++g) base[g] += kParts * k_step;
    }
#pragma GCC unroll 8
    for (int q = 0; q < kParts; ++q)
#pragma GCC unroll 4
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) acc[i][v] += part[q][i][v];
  }
  for (int64_t k = first; k < p.K; ++k) {
    F bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = load<E, F>(b + p.offset(v));
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const F am = splat<E, F>(base[i / 3][(i % 3) * row_step]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[i][v] = add_term(acc[i][v], am, bv[v]);
    }
    b += ldb;
#pragma GCC unroll 8
    for (int g = 0; g < (MR + 2) / 3; ++g) base[g] += k_step;
  }
}

// C = f(init + sums, where they lie in C), and the same to `also`.
template <typename V, int MR, int NV, typename T, typename E, typename F>
STRNN_INLINE void store_tile(const Gemm<T, E>& g, int64_t m, int64_t panel, const V (&acc)[MR][NV],
                             T* also, const F& f) {
  const T* init = g.init + m * g.init_step + panel * kPanel<T>;
  const int64_t first = m * g.ldc + panel * kPanel<T>;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const int64_t at = first + i * g.ldc + v * kLanes<T>;
      const V y = f(load<T, V>(init + i * g.init_step + v * kLanes<T>) + acc[i][v], at);
      store(g.c + at, y);
      if (also) store(also + at, y);
    }
}

template <typename V, int MR, int NV, typename T, typename E>
STRNN_INLINE void gemm_tile(const Gemm<T, E>& g, int64_t m, int64_t panel) {
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[i][v] = V{};
  add_product(g.product, m, panel, acc);
  if (g.second.K) add_product(g.second, m, panel, acc);
  if constexpr (kCanEnd<T, E>) {
    if (g.end == End::kRelu)
      return store_tile(g, m, panel, acc, g.also,
                        [](V y, int64_t) { return ElmanCell<kRelu>::forward(&y, y).h; });
    if (g.end == End::kReluGradient)
      return store_tile(g, m, panel, acc, g.also, [&](V y, int64_t at) {
        return ElmanCell<kRelu>::backward(&y, load<T, V>(g.h + at), y, y).a[0];
      });
  }
  store_tile(g, m, panel, acc, (T*)nullptr, [](V y, int64_t) { return y; });
}

template <typename T, typename E, int MR>
STRNN_NOINLINE void gemm_rows(const Gemm<T, E>& g, int64_t m, int64_t width) {
  const int64_t panels = (width + kLanes<T> - 1) / kPanel<T>;
  constexpr int kAtOnce = std::max(1, kMinSums / (MR * kPanelVecs));
  int64_t i = 0;
  for (; i + kAtOnce <= panels; i += kAtOnce)
    gemm_tile<Vec<T>, MR, kAtOnce * kPanelVecs>(g, m, g.from_the_end ? panels - kAtOnce - i : i);
  if constexpr (kAtOnce > 1)
    for (; i < panels; ++i)
      gemm_tile<Vec<T>, MR, kPanelVecs>(g, m, g.from_the_end ? panels - 1 - i : i);
  width -= panels * kPanel<T>;
  if (width > kLanes<T> / 2)
    gemm_tile<Vec<T>, MR, 1>(g, m, panels);
  else if (width > 0)
    gemm_tile<HalfVec<T>, MR, 1>(g, m, panels);
}

template <typename T, typename E, int... I>
STRNN_INLINE void gemm_rows_any(int rows, const Gemm<T, E>& g, int64_t m, int64_t width,
                                std::integer_sequence<int, I...>) {
  using Fn = void (*)(const Gemm<T, E>&, int64_t, int64_t);
  static constexpr Fn table[] = {gemm_rows<T, E, I + 1>...};
  table[rows - 1](g, m, width);
}

template <typename T, typename E>
STRNN_INLINE void gemm_terms(int64_t M, int64_t width, const Gemm<T, E>& g) {
  const int64_t tiles = (M + kMaxTileRows - 1) / kMaxTileRows;
  int64_t m = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t rows = (M - m) / (tiles - t);
    gemm_rows_any((int)rows, g, m, width, std::make_integer_sequence<int, kMaxTileRows>{});
    m += rows;
  }
}

template <typename T, typename E>
STRNN_INLINE void gemm(int64_t M, int64_t width, const Gemm<T, E>& g) {
  if (M == 0) return;
  if (g.product.K + g.second.K <= kMaxTerms) return gemm_terms(M, width, g);
  Gemm<T, E> part = g;
  part.second = {};
  int64_t left = g.product.K + g.second.K;
  for (const Product<E>& product : {g.product, g.second})
    for (int64_t k = 0; k < product.K; k += kMaxTerms) {
      part.product = product.terms(k, kMaxTerms);
      left -= part.product.K;
      part.end = left == 0 ? g.end : End::kSum;
      gemm_terms(M, width, part);
      part.init = g.c, part.init_step = g.ldc;
    }
}
