// gemm of pairs on registers of tiles: 16 rows of 16 sums += 16 rows of 16 pairs x 16 pairs of 16
// columns. Factors lie as for other registers, but that terms come in sixteens, zero where a row
// has no more, and that up to fifteen rows of A are read beyond its last. A long sum is one sum
// here: what that loses to rounding is nothing beside the rounding of its factors.

// f(0), f(1), ... of constants.
template <typename F, int... I>
STRNN_INLINE void for_each(std::integer_sequence<int, I...>, const F& f) {
  (f(std::integral_constant<int, I>{}), ...);
}

// C of kM x kN tiles, of which the rows before `rows` are kept: sums in registers 0 to 3, A in 4
// and 5, B in 6 and 7.
template <int kM, int kN>
STRNN_NOINLINE void gemm_tiles(const Gemm<float, Pair>& g, int64_t m, int64_t rows, int64_t panel) {
  constexpr int64_t kRows = Tiles::kRows;
  constexpr auto sums = std::make_integer_sequence<int, kM * kN>{};
  constexpr auto columns = std::make_integer_sequence<int, kN>{};
  const auto rows_of = [&](int i) { return std::min<int64_t>(rows - i / kN * kRows, kRows); };
  const auto offset = [&](int i, int64_t row_step) {
    return (m + i / kN * kRows) * row_step + panel * kPanel<float> + i % kN * kLanes<float>;
  };
  for_each(sums, [&](auto i) {
    if (rows_of(i) == kRows)
      Tiles::load<i>(g.init + offset(i, g.init_step), g.init_step);
    else
      Tiles::clear<i>();
  });
  for (const Product<Pair>& p : {g.product, g.second}) {
    const Pair *a = p.a + m * p.row_step, *b = p.b + panel * p.panel_step;
    for (int64_t k = 0; k < p.K; k += Tiles::kTerms) {
      Tiles::load<4>(a, p.row_step);
      if constexpr (kM == 2) Tiles::load<5>(a + kRows * p.row_step, p.row_step);
      for_each(columns, [&](auto v) {
        Tiles::load<6 + v % 2>(b + p.offset(v), p.ldb);
        Tiles::add_product<v, 4, 6 + v % 2>();
        if constexpr (kM == 2) Tiles::add_product<kN + v, 5, 6 + v % 2>();
      });
      a += Tiles::kTerms, b += Tiles::kTerms * p.ldb;
    }
  }
  for_each(sums, [&](auto i) {
    float* c = g.c + offset(i, g.ldc);
    if (rows_of(i) == kRows) return Tiles::store<i>(c, g.ldc);
    alignas(64) float part[kRows * kLanes<float>];
    Tiles::store<i>(part, kLanes<float>);
    const float* init = g.init + offset(i, g.init_step);
    for (int r = 0; r < rows_of(i); ++r)
      store(c + r * g.ldc, load(init + r * g.init_step) + load(part + r * kLanes<float>));
  });
}

// Of `width` columns; four tiles at a time, and what is left.
template <int kM>
STRNN_INLINE void gemm_tile_rows(const Gemm<float, Pair>& g, int64_t m, int64_t rows,
                                 int64_t width) {
  constexpr int kN = 4 / kM;
  const int64_t tiles = (width + kLanes<float> - 1) / kLanes<float>;
  int64_t v = 0;
  for (; v + kN <= tiles; v += kN) gemm_tiles<kM, kN>(g, m, rows, v / kPanelVecs);
  if (kM == 1 && tiles - v >= 2) gemm_tiles<kM, 2>(g, m, rows, v / kPanelVecs), v += 2;
  if (v < tiles) gemm_tiles<kM, 1>(g, m, rows, v / kPanelVecs);
}

STRNN_INLINE void gemm(int64_t M, int64_t width, const Gemm<float, Pair>& g) {
  constexpr int64_t kRows = Tiles::kRows;
  for (int64_t m = 0; m < M; m += 2 * kRows)
    if (M - m > kRows)
      gemm_tile_rows<2>(g, m, M - m, width);
    else
      gemm_tile_rows<1>(g, m, M - m, width);
}
