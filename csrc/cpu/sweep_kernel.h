// The sweep and its derivative on a CPU.
//
// A unit of work is (direction, tile of rows of B). It visits the nodes in the order of the sweep
// program, in chunks that stay in cache; inside a chunk the nodes of a group (a level) do not
// depend on each other, so that (nodes of the group) x (rows of the tile) are the rows of one small
// product with W:
//
//   forward   pre = bias + x U^T      one product for the chunk, or in the same pass as the next
//             q   = sum (or mean) of predecessors' states, from their slots
//             pre += q W^T            one product for each group
//             h, c = mask * cell(pre, m)    to the slot, and to the outputs that are kept
//             s  += G h               one pass for each chunk
//             Where a visit has rows enough, and none is masked, each has a product of its own,
//             which ends with the cell if that is a relu.
//   backward  the same on the reversed program:
//             sum = sum of successors' da and dm, from their slots
//             dh += sum W             one product for each group; dh (+ G^T ds) is what came
//             da, dm = mask * the cell's gradients       to the slot; then
//             dW  += sum^T h          the same total as da^T (sum of predecessors' h)
//             dU  += da^T x, dbias += da, dx += da U, dG += ds h: products of the chunk, while it
//             is hot.
//
// A row of pre-activations has a block of `width` floats for each of the cell's blocks; what the
// cell does with them is written in common/cell.h and known only to `finish`.
//
// With a mask, a chunk has only the rows that some of its nodes do not mask: rows are sorted, so
// that sequences that have ended come last.
//
// Neither pre-activations nor the sums exist outside a chunk. All partial gradients are private to
// a worker and added up in the order of the workers, so a result depends on the number of threads
// but on nothing else.

// Bytes of scratch that should stay in the second-level cache while a unit runs.
constexpr int64_t kCacheBytes = 256 * 1024;
// An output of this many bytes goes past the caches: it is more than a core's share of them, and a
// line that is only written would be read first.
constexpr size_t kStreamBytes = 8 << 20;
// Rows that a product needs to run near its best (see gemm.h).
constexpr int64_t kGoodRows = std::max(kMaxTileRows, Tiles::kRows);
// Rows that a product's factors have room for beyond its last: of A, which it may read, and of B,
// where terms are rounded up.
constexpr int64_t kMoreRows = Tiles::kRows + Tiles::kTerms - 2;
// Rows of a chunk at least, however many bytes they are.
constexpr int64_t kMinChunkRows = 4 * kGoodRows;
// Rows of a node that share what is done once for it.
constexpr int64_t kNodeRows = 12;
// Rows that a loop over the rows of memory asks for ahead of the one it is at.
constexpr int64_t kPrefetchRows = 16;
// Below this many operations for each, a second thread costs more than it brings: opening a
// parallel region takes tens of microseconds, a thread does this much in about 100.
constexpr double kFlopsPerThread = 8.0e6;

template <typename T>
constexpr int64_t round_up(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Distance between rows of a buffer: whole registers, and never a multiple of 512 bytes, which
// would put the rows of a tile into a few sets of the first-level cache.
template <typename T>
constexpr int64_t leading_dimension(int64_t n) {
  const int64_t ld = round_up<T>(n);
  return ld * sizeof(T) % 512 == 0 ? ld + 64 / sizeof(T) : ld;
}

// Size of a B operand of gemm in panels: [panel][k][kPanel], zero beyond n_size.
template <typename T>
constexpr int64_t packed_size(int64_t K, int64_t n_size) {
  return K * ((n_size + kPanel<T> - 1) / kPanel<T>)*kPanel<T>;
}
// What a pass has to know of a cell.
struct CellWidths {
  int gates, blocks, saved;
  Carry carry;
  const int *input_gate, *state_gate, *bias_gate;

  static CellWidths of(int kind) {
    return with_cell(kind, [](auto cell) {
      using Cell = decltype(cell);
      return CellWidths{Cell::kGates,     Cell::kBlocks,    Cell::kSaved,   Cell::kCarry,
                        Cell::kInputGate, Cell::kStateGate, Cell::kBiasGate};
    });
  }
  int first_state_block() const { return blocks - gates; }
  bool has_cell() const { return carry == Carry::kCell; }
};

// The gated sweep, which takes the gate for what is carried: h = gate * a.
struct GatedCell {
  static constexpr int kGates = 1, kBlocks = 1, kSaved = 2;
  static constexpr Carry kCarry = Carry::kNothing;

  template <typename V>
  STRNN_INLINE static CellState<V> forward(const V* a, V gate) {
    return {gate * a[0], V{}};
  }
  template <typename V>
  STRNN_INLINE static void save(const V*, V, V*) {}
  // saved: a, gate.
  template <typename V>
  STRNN_INLINE static CellGradient<V, 1> backward(const V* saved, V, V dh, V) {
    return {{saved[1] * dh}, saved[0] * dh};
  }
};

// Packs w (gates H, K), whose blocks of rows are taken in the order gate_of: transposed, so that
// column gate * width + j of B is a row of w, of values or of pairs,
template <typename S, typename E>
void pack_columns(const S* w, int64_t K, int64_t H, int gates, const int* gate_of, int64_t width,
                  E* to) {
  constexpr int64_t kStep =
      std::is_same_v<E, Pair> ? 2 * kLanes<E> : kLanes<E>;  // values of a register
  const int64_t terms = terms_of<E>(K);
  // Registers of columns, each of one block.
  for (int64_t n = 0; n < (gates * width + kPanel<E> - 1) / kPanel<E> * kPanel<E>; n += kLanes<E>) {
    const int64_t gate = n / width, j = n % width;
    const int64_t count = gate < gates ? std::min<int64_t>(kLanes<E>, H - j) : 0;
    const S* rows = count ? w + (gate_of[gate] * H + j) * K : w;
    E* column = to + n / kPanel<E> * terms * kPanel<E> + n % kPanel<E>;
    for (int64_t k = 0; k < K; k += kStep, column += kLanes<E> * kPanel<E>) {
      const int64_t values = std::min(kStep, K - k), lanes = terms_of<E>(values);
      Vec<E> square[kLanes<E>];  // in registers, so not cleared at once
#pragma GCC unroll 16
      for (int c = 0; c < kLanes<E>; ++c)
        square[c] = c < count ? load_factors<S, E>(rows + c * K + k, values) : Vec<E>{};
      transpose<E>(square, std::make_integer_sequence<int, kLanes<E>>{});
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<E>; ++i)
        if (i < lanes) store(column + i * kPanel<E>, square[i]);
    }
  }
}
// or as it is, so that row gate * width + j of B is; K here is the number of columns.
template <typename S, typename E>
void pack_rows(const S* w, int64_t K, int64_t H, int gates, const int* gate_of, int64_t width,
               E* to) {
  constexpr bool kHasPairs = std::is_same_v<E, Pair>;
  const int64_t terms = terms_of<E>((gates - 1) * width + H);
  for (int64_t n0 = 0; n0 < K; n0 += kPanel<E>)
    for (int64_t term = 0; term < terms; ++term, to += kPanel<E>) {
      const int64_t k = kHasPairs ? 2 * term : term, gate = k / width, j = k % width;
      const int64_t count = gate < gates && j < H ? std::min<int64_t>(kPanel<E>, K - n0) : 0;
      const S* row = count ? w + (gate_of[gate] * H + j) * K + n0 : w;
      for (int64_t n = 0; n < kPanel<E>; ++n) {
        if constexpr (kHasPairs)
          to[n] = n < count ? row[n].bits | (j + 1 < H ? (Pair)row[K + n].bits << 16 : 0) : 0;
        else
          to[n] = n < count ? to_acc(row[n]) : E(0);
      }
    }
}

// Rows of n values as factors of a product, in a buffer of the same pitch if they are to be pairs:
// of neighbours in a row, for sums along rows,
template <typename E, typename T>
const E* along_rows(const T* rows, int64_t count, int64_t n, int64_t pitch, E* to) {
  if constexpr (std::is_same_v<E, T>) {
    return rows;
  } else {
    for (int64_t at = 0; at < count * pitch; at += pitch) {
      int64_t j = 0;
      for (; j + kLanes<T> <= n; j += kLanes<T>)
        store(to + at + j / 2, to_pairs(load(rows + at + j)));
      for (; j < 2 * terms_of<E>(n); j += kLanes<T>)
        store(to + at + j / 2,
              to_pairs(j < n ? load_partial<T, T>(rows + at + j, n - j) : Vec<T>{}));
    }
    return to;
  }
}
// or of two rows, for sums over rows: a register of such pairs,
#if defined(STRNN_PAIRS)
STRNN_INLINE Vec<Pair> join_rows(const float* rows, int64_t count, int64_t pitch, int64_t term) {
  const int64_t r = 2 * term;
  return join(r < count ? load(rows + r * pitch) : Vec<float>{},
              r + 1 < count ? load(rows + (r + 1) * pitch) : Vec<float>{});
}
#endif
// all of them,
template <typename E, typename T>
const E* over_rows(const T* rows, int64_t count, int64_t n, int64_t pitch, E* to) {
  if constexpr (std::is_same_v<E, T>) {
    return rows;
  } else {
    for (int64_t term = 0; term < terms_of<E>(count); ++term)
      for (int64_t j = 0; j < n; j += kLanes<T>)
        store(to + term * pitch + j, join_rows(rows + j, count, pitch, term));
    return to;
  }
}
// The transpose of rows of n values as A of a product: read by columns, but tiles take no steps
// within a row.
template <typename E, typename T>
Product<E> columns_over_rows(const T* rows, int64_t count, int64_t n, int64_t pitch, E* to) {
  const int64_t terms = terms_of<E>(count);
  if constexpr (std::is_same_v<E, T> || Tiles::kTerms == 1) {
    return {terms, over_rows(rows, count, n, pitch, to), 1, pitch};
  } else {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes<E>>{};
    for (int64_t term = 0; term < terms; term += kLanes<E>)
      for (int64_t j = 0; j < n; j += kLanes<E>) {
        Vec<E> square[kLanes<E>];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<E>; ++i) square[i] = join_rows(rows + j, count, pitch, term + i);
        transpose<E>(square, lanes);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<E>; ++i) store(to + (j + i) * terms + term, square[i]);
      }
    return {terms, to, terms, 1};
  }
}

// How the work of one call is cut.
struct Tiling {
  int64_t rows;  // of B in a tile
  int64_t num_tiles;
  int64_t chunk;  // nodes in a chunk
  int64_t num_workers;
  bool has_products_of_visits;  // a visit has rows enough for a product, and none that is masked

  static Tiling choose(const Sweep& a, const Program& program, double flops, int64_t slot_bytes,
                       int64_t bytes_per_chunk_row, int64_t bytes_of_input_row, int num_threads) {
    const int64_t width = std::max<int64_t>(1, a.N / program.G);  // nodes of a group, on average
    // Enough rows for the products of an average group, and no more: what a tile reads and writes
    // should still be in the caches when the next direction comes, and rows of B often lie a power
    // of two apart.
    const auto rows_for = [&](int64_t product_rows) { return (product_rows + width - 1) / width; };
    // Where a tile's inputs fit, enough rows of each node too.
    const int64_t most =
        std::max(rows_for(2 * kGoodRows), std::min(kNodeRows, kCacheBytes / bytes_of_input_row));
    const int64_t rows =
        std::clamp(kCacheBytes / 2 / (program.S * slot_bytes), rows_for(kGoodRows), most);
    Tiling t;
    t.num_workers = std::clamp<int64_t>((int64_t)(flops / kFlopsPerThread), 1, num_threads);
    int64_t tiles = std::max<int64_t>(1, (a.B + rows - 1) / rows);
    while (tiles * a.D % t.num_workers != 0 && tiles < a.B) ++tiles;  // whole rounds of the workers
    t.rows = std::max<int64_t>(1, (a.B + tiles - 1) / tiles);
    t.num_tiles = (a.B + t.rows - 1) / t.rows;
    t.has_products_of_visits = !a.mask && t.rows >= kGoodRows / 2;
    const int64_t chunk_rows = std::max<int64_t>(kCacheBytes / bytes_per_chunk_row, kMinChunkRows);
    t.chunk = std::clamp<int64_t>(chunk_rows / t.rows, 1, a.N);
    t.num_workers = std::clamp<int64_t>(t.num_tiles * a.D, 1, t.num_workers);
    return t;
  }
};

// Rows of B in the order that tiles take them: by the number of unmasked nodes, so that a tile of
// short sequences can skip what all of its rows mask, and the rows that a chunk masks come last.
inline void order_rows(const Sweep& a, int64_t* row_of) {
  for (int64_t b = 0; b < a.B; ++b) row_of[b] = b;
  if (!a.mask) return;
  std::unique_ptr<int64_t[]> count(new int64_t[a.B]);
  for (int64_t b = 0; b < a.B; ++b)
    count[b] = a.N - std::count(a.mask + b * a.N, a.mask + (b + 1) * a.N, 0);
  std::stable_sort(row_of, row_of + a.B, [&](int64_t i, int64_t j) { return count[i] > count[j]; });
}

// Non-zero entries of a projection row or column, in visiting order.
template <typename T>
struct NonZero {
  int32_t index;  // position (forward) or k (backward)
  T value;
};

// to[0 .. size) = init + sum over the non-zeros of value * from[index * stride ..]; init: zero, or
// what is there. size in whole registers, of which kVecs are summed at a time: eight hide the
// latency of the additions; what is left is halved.
template <typename T, int kVecs = 8>
STRNN_INLINE void add_scaled(const NonZero<T>* begin, const NonZero<T>* end, int64_t size,
                             const T* from, int64_t stride, bool from_zero, T* to) {
  int64_t j = 0;
  for (; j + kVecs * kLanes<T> <= size; j += kVecs * kLanes<T>) {
    Vec<T> acc[kVecs] = {};
    for (const NonZero<T>* e = begin; e != end; ++e) {
      const T* row = from + e->index * stride + j;
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[v] += e->value * load(row + v * kLanes<T>);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      T* at = to + j + v * kLanes<T>;
      store(at, from_zero ? acc[v] : load(at) + acc[v]);
    }
  }
  if constexpr (kVecs > 1)
    if (j < size)
      add_scaled<T, kVecs / 2>(begin, end, size - j, from + j, stride, from_zero, to + j);
}

// The part of a unit that both passes share: rows, mask, slots, and the sum over predecessors.
template <typename S>
struct Tile {
  using T = acc_t<S>;
  const Sweep& a;
  const Program& program;
  int64_t d, rows;
  int64_t pitch;          // of a row of a slot
  const int64_t* b_of;    // [rows]
  const bool* mask;       // [N][rows] of this tile, or null
  const int32_t* active;  // [N]: rows up to the last that is not masked, or null
  const int32_t* last;    // [rows]: the visit of the state that is handed out, or -1; or null
  T* slots;               // [S][rows][pitch]

  int32_t node(int64_t i) const { return program.node[d * program.N + i]; }
  // The node whose rows are kPrefetchRows ahead of visit i in a chunk of m rows, or the last one.
  int32_t node_ahead(int64_t i, int64_t m) const {
    return node(std::min(i + std::max<int64_t>(1, kPrefetchRows / m), program.N - 1));
  }
  int32_t num_successors(int64_t i) const { return program.num_succ[d * program.N + i]; }
  T* slot(int64_t i) const {
    return num_successors(i) ? slots + program.slot[d * program.N + i] * rows * pitch : nullptr;
  }
  int64_t group(int64_t g) const { return program.group_ptr[d * (program.G + 1) + g]; }
  bool is_masked(int64_t n, int64_t r) const { return mask && !mask[n * rows + r]; }
  // Where row r's h0, and c0, enter: at node n, which has no predecessors if is_source.
  bool is_entry(int64_t n, bool is_source, int64_t r) const {
    return (a.h0 || a.c0) && (a.entry ? a.entry[b_of[r] * a.D + d] == n : is_source);
  }

  // Rows from this one on are masked at every visit of begin..end.
  int64_t active_rows(int64_t begin, int64_t end) const {
    if (!active) return rows;
    int32_t count = 0;
    for (int64_t i = begin; i < end; ++i) count = std::max(count, active[node(i)]);
    return count;
  }

  // Rows of the product for the group begin..end of a chunk with `m` rows; they are contiguous.
  int64_t product_rows(int64_t begin, int64_t end, int64_t m) const {
    const int64_t of_group = active_rows(begin, end);
    return end - begin == 1 || of_group == 0 ? of_group : (end - begin) * m;
  }

  int64_t num_predecessors(int64_t i) const {
    const int32_t* range = program.pred_ptr + d * (program.N + 1) + i;
    return range[1] - range[0];
  }
  int32_t predecessor_node(int64_t i, int64_t p) const {
    return program.pred_node[program.pred_ptr[d * (program.N + 1) + i] + p];
  }
  // Slot of predecessor p of visit i.
  const T* predecessor(int64_t i, int64_t p) const {
    const int32_t* pred = program.pred_slot + program.pred_ptr[d * (program.N + 1) + i];
    return slots + pred[p] * rows * pitch;
  }

  // to[m][pitch] = sum of the first m rows of the predecessors of visit i; zeros, if it has none.
  void gather(int64_t i, int64_t m, T* to) const {
    const int64_t count = num_predecessors(i), size = m * pitch;
    if (count == 0) {
      std::fill(to, to + size, T(0));
    } else if (count == 1) {
      std::copy(predecessor(i, 0), predecessor(i, 0) + size, to);
    } else {
      const T *first = predecessor(i, 0), *second = predecessor(i, 1);
      const T* third = count > 2 ? predecessor(i, 2) : nullptr;
      for (int64_t j = 0; j < size; j += kLanes<T>) {
        Vec<T> sum = load(first + j) + load(second + j);
        if (third) sum += load(third + j);
        store(to + j, sum);
      }
      for (int64_t p = 3; p < count; ++p) {
        const T* next = predecessor(i, p);
        for (int64_t j = 0; j < size; j += kLanes<T>) store(to + j, load(to + j) + load(next + j));
      }
    }
  }

  // Zeros to the slots of the visits begin..end, for rows from `m` on.
  void clear_slots(int64_t begin, int64_t end, int64_t m) const {
    if (m == rows) return;
    for (int64_t i = begin; i < end; ++i)
      if (T* to = slot(i)) std::fill(to + m * pitch, to + rows * pitch, T(0));
  }
};

// mask[N][rows] and active[N] of a tile, from the caller's (B, N).
inline void load_mask(const Sweep& a, const int64_t* b_of, int64_t rows, bool* mask,
                      int32_t* active) {
  for (int64_t n = 0; n < a.N; ++n) {
    active[n] = 0;
    for (int64_t r = 0; r < rows; ++r)
      if ((mask[n * rows + r] = a.mask[b_of[r] * a.N + n] != 0)) active[n] = r + 1;
  }
}

// last[rows]: the last visit of the forward sweep that the mask leaves, which is the first of a
// reversed one, or -1.
template <typename S>
void find_last(const Tile<S>& tile, bool is_reversed, int32_t* last) {
  const int32_t N = (int32_t)tile.a.N;
  for (int64_t r = 0; r < tile.rows; ++r) {
    int32_t i = 0;
    const auto visit = [&] { return is_reversed ? i : N - 1 - i; };
    while (i < N && tile.is_masked(tile.node(visit()), r)) ++i;
    last[r] = i < N ? visit() : -1;
  }
}
