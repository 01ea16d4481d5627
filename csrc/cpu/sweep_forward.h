// Forward sweep; see sweep_kernel.h for the plan. Also the gated sweep, which is the same with a
// gate for act.

// Factors are what its products with weights are of: values of acc_t, or pairs of bfloat16. Those
// of x may be pairs where states are not: what is stored in bfloat16 is not rounded by them.
template <typename S, typename Factor = acc_t<S>, typename InputFactor = Factor>
class SweepForwardKernel {
  using T = acc_t<S>;
  static constexpr bool kHasPairs = std::is_same_v<Factor, Pair>;
  static constexpr bool kIsOneKind = std::is_same_v<Factor, InputFactor>;

 public:
  static void run(const SweepForward& a, int num_threads, ParallelFor parallel_for) {
    SweepForwardKernel kernel(a, num_threads);
    Scratch::with(call_block(), [&](Scratch& scratch) {
      kernel.prepare(scratch);
      if (scratch.is_counting()) return;
      parallel_for(
          kernel.tiling_.num_workers,
          [](int64_t worker, void* self) { static_cast<SweepForwardKernel*>(self)->work(worker); },
          &kernel);
    });
  }

 private:
  SweepForwardKernel(const SweepForward& a, int num_threads)
      : a_(a),
        cell_(CellWidths::of(a.cell)),
        width_(round_up<T>(a.H)),
        ld_(leading_dimension<T>(a.H)),
        ldc_(leading_dimension<InputFactor>(terms_of<InputFactor>(a.C))),
        pitch_(leading_dimension<T>(cell_.blocks * width_)),
        slot_pitch_(leading_dimension<T>((cell_.has_cell() ? 2 : 1) * width_)) {
    const double flops = 2.0 * a.B * a.N * a.D * a.H * (cell_.gates * (a.C + a.H) + a.K);
    tiling_ = Tiling::choose(a, a.program, flops, slot_pitch_ * sizeof(T),
                             (pitch_ + slot_pitch_ + ldc_) * sizeof(T),
                             a.N * (a.C ? a.C : a.H) * sizeof(T), num_threads);
    num_chunks_ = (a.N + tiling_.chunk - 1) / tiling_.chunk;
    // In the pass of the recurrent product where both add to the same blocks and its rows are
    // enough for x U^T too.
    input_apart_ = a.C && (!kIsOneKind || cell_.blocks != cell_.gates ||
                           tiling_.rows * a.N < kGoodRows / 2 * a.program.G);
    const bool by_visits = tiling_.has_products_of_visits;
    activates_in_products_ = by_visits && kCanEnd<T, Factor> && a.cell == kRelu && !a.gate;
    reads_in_place_ =
        by_visits && std::is_same_v<S, Factor> && a.C && a.C * sizeof(S) <= 64 && !input_apart_;
    by_visits_ = activates_in_products_ || reads_in_place_;
    has_initial_ = a.h0 || a.c0;
    has_last_ = a.h_n || a.c_n;
    streams_ = kCanStream && std::is_same_v<S, T> &&
               a.B * a.N * a.D * a.H * sizeof(S) >= kStreamBytes && a.H * sizeof(S) % 64 == 0 &&
               ((uintptr_t)a.h | (uintptr_t)a.c | (uintptr_t)a.saved) % 64 == 0;
  }

  // What all workers share: packed weights, the order of the rows, the non-zeros of the projection.
  void prepare(Scratch& scratch) {
    const int64_t D = a_.D, H = a_.H, C = a_.C, K = a_.K, N = a_.N;
    const int64_t columns = cell_.gates * width_;
    const int64_t size_w = packed_size<Factor>(terms_of<Factor>(H), columns);
    const int64_t size_u = packed_size<InputFactor>(terms_of<InputFactor>(C), columns);
    Factor* w = scratch.take<Factor>(D * size_w);
    InputFactor* u = scratch.take<InputFactor>(D * size_u);
    T* bias = scratch.take<T>(D * cell_.blocks * width_);
    int64_t* row_of = scratch.take<int64_t>(a_.B);
    T* projection = scratch.take<T>(D * K * N);
    auto* nonzeros = scratch.take<NonZero<T>>(D * K * N);
    int64_t* nonzero_ptr = scratch.take<int64_t>(K ? D * num_chunks_ * K + 1 : 0);
    if (!w) return;
    packed_w_ = w, packed_u_ = u, bias_ = bias, row_of_ = row_of, projection_ = projection,
    nonzeros_ = nonzeros, nonzero_ptr_ = nonzero_ptr;

    for (int64_t d = 0; d < D; ++d) {
      pack_columns(static_cast<const S*>(a_.w_hh.of(d)), H, H, cell_.gates, cell_.state_gate,
                   width_, w + d * size_w);
      if (C == 0) continue;
      pack_columns(static_cast<const S*>(a_.w_ih.of(d)), C, H, cell_.gates, cell_.input_gate,
                   width_, u + d * size_u);
      load_bias(d, bias + d * cell_.blocks * width_);
    }
    order_rows(a_, row_of);
    if (K == 0) return;
    for (int64_t dk = 0; dk < D * K; ++dk)
      for (int64_t i = 0; i < N; ++i)
        projection[dk * N + i] =
            to_acc(static_cast<const S*>(a_.projection)[dk * N + a_.program.node[dk / K * N + i]]);
    // Without a zero the projection is a product with all weights: gemm makes more of its loads
    // than a list of non-zeros can. A zero is not read, so a state behind it may be infinite.
    is_dense_ = std::find(projection, projection + D * K * N, T(0)) == projection + D * K * N;
    if (is_dense_) return;
    int64_t count = 0, run = 0;
    for (int64_t d = 0; d < D; ++d)
      for (int64_t c = 0; c < num_chunks_; ++c)
        for (int64_t k = 0; k < K; ++k) {
          nonzero_ptr[run++] = count;
          const T* row = projection + (d * K + k) * N;
          for (int64_t i = c * tiling_.chunk; i < std::min(N, (c + 1) * tiling_.chunk); ++i)
            if (row[i] != 0) nonzeros[count++] = {(int32_t)(i - c * tiling_.chunk), row[i]};
        }
    nonzero_ptr[run] = count;
  }

  // The bias of each block of pre-activations.
  void load_bias(int64_t d, T* row) {
    const int64_t H = a_.H;
    std::fill(row, row + cell_.blocks * width_, T(0));
    if (!a_.bias) return;
    const S *bias = static_cast<const S*>(a_.bias.of(d)),
            *bias_hh = a_.bias_hh ? static_cast<const S*>(a_.bias_hh.of(d)) : nullptr;
    for (int b = 0; b < cell_.blocks; ++b, row += width_) {
      if (!bias_hh) load_row<S, T>(bias + cell_.bias_gate[b] * H, H, row);
      if (!bias_hh) continue;
      if (b < cell_.gates) load_row<S, T>(bias + cell_.input_gate[b] * H, H, row);
      if (b < cell_.first_state_block()) continue;
      const S* more = bias_hh + cell_.state_gate[b - cell_.first_state_block()] * H;
      for (int64_t j = 0; j < H; ++j) row[j] += to_acc(more[j]);
    }
  }

  struct Buffers {
    T *slots, *pre, *sum, *initial, *states, *s;
    InputFactor* x;
    Factor* pairs;
    bool* mask;
    int32_t *active, *last;
    Buffers(const SweepForwardKernel& kernel, Scratch& scratch) {
      const SweepForward& a = kernel.a_;
      const int64_t rows = kernel.tiling_.rows, chunk_rows = rows * kernel.tiling_.chunk;
      slots = scratch.take<T>(a.program.S * rows * kernel.slot_pitch_);
      x = scratch.take<InputFactor>(a.C ? (chunk_rows + kMoreRows) * kernel.ldc_ : 0);
      pairs = scratch.take<Factor>(kHasPairs ? (chunk_rows + kMoreRows) * kernel.slot_pitch_ : 0);
      pre = scratch.take<T>(chunk_rows * kernel.pitch_);
      sum = scratch.take<T>(chunk_rows * kernel.slot_pitch_);
      initial = scratch.take<T>(kernel.has_initial_ ? rows * kernel.slot_pitch_ : 0);
      // A row of one block is overwritten by its state.
      states = kernel.cell_.blocks == 1 ? pre : scratch.take<T>(a.K ? chunk_rows * kernel.ld_ : 0);
      s = scratch.take<T>(a.K * rows * kernel.ld_);
      mask = scratch.take<bool>(a.mask ? a.N * rows : 0);
      active = scratch.take<int32_t>(a.mask ? a.N : 0);
      last = scratch.take<int32_t>(kernel.has_last_ ? rows : 0);
    }
  };

  void work(int64_t worker) {
    [[maybe_unused]] const Tiles tiles;
    Scratch::with(worker_block(), [&](Scratch& scratch) {
      Buffers buffers(*this, scratch);
      if (!buffers.slots) return;
      const int64_t units = tiling_.num_tiles * a_.D;
      // In turn, not in runs: with a mask the first tiles have more to do than the last.
      for (int64_t unit = worker; unit < units; unit += tiling_.num_workers)
        sweep(unit / a_.D, unit % a_.D, buffers);
    });
    if (streams_) stream_end();
  }

  void sweep(int64_t tile_index, int64_t d, const Buffers& buffers) {
    const int64_t first = tile_index * tiling_.rows;
    const int64_t rows = std::min(tiling_.rows, a_.B - first), H = a_.H, N = a_.N;
    const Tile<S> tile{a_,
                       a_.program,
                       d,
                       rows,
                       slot_pitch_,
                       row_of_ + first,
                       a_.mask ? buffers.mask : nullptr,
                       a_.mask ? buffers.active : nullptr,
                       has_last_ ? buffers.last : nullptr,
                       buffers.slots};
    if (a_.mask) load_mask(a_, tile.b_of, rows, buffers.mask, buffers.active);
    if (has_initial_) load_initial(tile, buffers.initial);
    if (has_last_) {
      find_last(tile, false, buffers.last);
      hand_out_initial(tile);
    }
    std::fill(buffers.s, buffers.s + a_.K * rows * ld_, T(0));

    int64_t g = 0;
    for (int64_t c = 0; c < num_chunks_; ++c) {
      const int64_t begin = c * tiling_.chunk, end = std::min(N, begin + tiling_.chunk);
      const int64_t m = tile.active_rows(begin, end);
      skip(tile, begin, end, m);
      if (m == 0) continue;
      load_input(tile, begin, end, m, buffers);
      for (int64_t i = begin; i < end;) {
        while (tile.group(g + 1) <= i) ++g;
        const int64_t stop = std::min<int64_t>(end, tile.group(g + 1));
        const int64_t row = (i - begin) * m;
        const T* sum = add_recurrent(tile, i, stop, m, row, buffers);
        if (a_.gate)
          finish<GatedCell>(tile, i, stop, m, row, sum, buffers);
        else
          with_cell(a_.cell, [&](auto cell) {
            finish<decltype(cell)>(tile, i, stop, m, row, sum, buffers);
          });
        i = stop;
      }
      if (a_.K) project(d, c, m, rows, buffers);
    }
    for (int64_t k = 0; k < a_.K; ++k)
      for (int64_t r = 0; r < rows; ++r)
        store_row<S, T>(buffers.s + (k * rows + r) * ld_, H,
                        static_cast<S*>(a_.s) + ((tile.b_of[r] * a_.D + d) * a_.K + k) * H);
  }

  // h0 and c0 of the tile, as a slot holds them.
  void load_initial(const Tile<S>& tile, T* to) const {
    const int64_t H = a_.H;
    std::fill(to, to + tile.rows * slot_pitch_, T(0));
    for (int64_t r = 0; r < tile.rows; ++r, to += slot_pitch_) {
      const int64_t at = (tile.b_of[r] * a_.D + tile.d) * H;
      if (a_.h0) load_row<S, T>(static_cast<const S*>(a_.h0) + at, H, to);
      if (a_.c0 && cell_.has_cell())
        load_row<S, T>(static_cast<const S*>(a_.c0) + at, H, to + width_);
    }
  }

  // The states of visit i, in their rows of pre, to the rows of which it is the last.
  void hand_out(const Tile<S>& tile, int64_t i, int64_t m, const T* pre) const {
    for (int64_t r = 0; r < m; ++r, pre += pitch_) {
      if (tile.last[r] != i) continue;
      const int64_t at = (tile.d * a_.B + tile.b_of[r]) * a_.H;
      if (a_.h_n) store_row<S, T>(pre, a_.H, static_cast<S*>(a_.h_n) + at);
      if (a_.c_n) store_row<S, T>(pre + width_, a_.H, static_cast<S*>(a_.c_n) + at);
    }
  }

  // The last state of rows without a visit.
  void hand_out_initial(const Tile<S>& tile) const {
    const auto hand_out = [&](const void* initial, void* last, int64_t r) {
      if (!last) return;
      const int64_t H = a_.H, b = tile.b_of[r];
      S* to = static_cast<S*>(last) + (tile.d * a_.B + b) * H;
      const S* from = static_cast<const S*>(initial) + (b * a_.D + tile.d) * H;
      initial ? (void)std::copy(from, from + H, to) : std::fill(to, to + H, S{});
    };
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (tile.last[r] >= 0) continue;
      hand_out(a_.h0, a_.h_n, r);
      hand_out(a_.c0, a_.c_n, r);
    }
  }

  // The rows from m on, which the chunk masks: zeros to the slots and the outputs.
  void skip(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m) {
    tile.clear_slots(begin, end, m);
    for (void* output : {a_.h, a_.c})
      for (int64_t i = begin; output && i < end; ++i)
        for (int64_t r = m; r < tile.rows; ++r) {
          S* to = static_cast<S*>(output) +
                  ((tile.b_of[r] * a_.N + tile.node(i)) * a_.D + tile.d) * a_.H;
          std::fill(to, to + a_.H, S{});
        }
  }

  // The chunk's x, or its u; the pre-activations as far as x makes them, if it makes them apart.
  void load_input(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m,
                  const Buffers& buffers) {
    const int64_t N = a_.N, H = a_.H, C = a_.C, columns = cell_.gates * width_;
    const int64_t size_h = a_.D * H, size = C ? C : size_h;  // of a node
    InputFactor* to_x = buffers.x;
    T* to_pre = buffers.pre;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = tile.node(i), ahead = (tile.node_ahead(i, m) - n) * size;
      const S* x = static_cast<const S*>(a_.x) + n * size + (C ? 0 : tile.d * H);
      for (int64_t r = 0; C == 0 && r < m; ++r, to_pre += pitch_)
        load_row_ahead(x + tile.b_of[r] * N * size, H, ahead, to_pre);
      for (int64_t r = 0; C != 0 && !reads_in_place_ && r < m; ++r, to_x += ldc_)
        load_row_ahead(x + tile.b_of[r] * N * size, C, ahead, to_x);
      for (int64_t r = 0; reads_in_place_ && r < m; ++r)
        prefetch_to_read(x + tile.b_of[r] * N * size + ahead, C);
      for (int64_t r = 0; a_.h && !streams_ && r < m; ++r)
        prefetch_to_write(
            static_cast<const S*>(a_.h) + (tile.b_of[r] * N + n) * size_h + tile.d * H, H);
    }
    if (!input_apart_) return;
    const T* bias = bias_ + tile.d * cell_.blocks * width_;
    const int64_t rows = (end - begin) * m;
    gemm(rows, columns,
         Gemm<T, InputFactor>{input_product(tile.d, 0, buffers), bias, 0, buffers.pre, pitch_});
    for (int64_t row = 0; row < rows; ++row)
      std::copy(bias + columns, bias + cell_.blocks * width_, buffers.pre + row * pitch_ + columns);
  }

  // x U^T, from a row of the chunk on.
  Product<InputFactor> input_product(int64_t d, int64_t row, const Buffers& buffers) const {
    return product(a_.C, buffers.x + row * ldc_, ldc_, packed_u_, d);
  }
  template <typename E>
  Product<E> product(int64_t values, const E* rows, int64_t pitch, const E* packed,
                     int64_t d) const {
    const int64_t terms = terms_of<E>(values);
    return {terms,
            rows,
            pitch,
            1,
            packed + d * packed_size<E>(terms, cell_.gates * width_),
            kPanel<E>,
            terms * kPanel<E>};
  }
  // q W^T of some rows of q.
  Product<Factor> recurrent_product(int64_t d, const T* q, int64_t count,
                                    const Buffers& buffers) const {
    return product(a_.H, along_rows(q, count, a_.H, slot_pitch_, buffers.pairs), slot_pitch_,
                   packed_w_, d);
  }

  // pre += q W^T for the visits begin..end, which do not depend on each other; they start at a row
  // of the chunk. Returns q, and what is carried, of those rows: the only predecessor's slot, or a
  // buffer.
  const T* add_recurrent(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, int64_t row,
                         const Buffers& buffers) {
    const int64_t C = a_.C, rows = tile.product_rows(begin, end, m);
    const T* sum = buffers.sum;
    bool some = has_initial_;
    const T* only = nullptr;
    if (end - begin == 1 && tile.num_predecessors(begin) == 1 && !(has_initial_ && a_.entry))
      only = begin > 0 && is_handed_on(tile, begin - 1) ? buffers.pre + (row - m) * pitch_
                                                        : tile.predecessor(begin, 0);
    // A product that stores its states must not read them from the same place.
    if (only && !(activates_in_products_ && only == slot(tile, begin))) {
      sum = only;
      some = true;
    } else {
      for (int64_t i = begin; i < end; ++i)
        some |= gather(tile, i, m, buffers, buffers.sum + (i - begin) * m * slot_pitch_);
    }
    if (!some && (C == 0 || input_apart_) && !activates_in_products_) return sum;
    T* pre = buffers.pre + row * pitch_;
    const bool takes_input = C && !input_apart_;
    Product<Factor> input{};
    if constexpr (kIsOneKind)
      if (takes_input) input = input_product(tile.d, row, buffers);
    T* to = pre + cell_.first_state_block() * width_;
    Gemm<T, Factor> g{some ? recurrent_product(tile.d, sum, rows, buffers) : Product<Factor>{},
                      takes_input ? bias_ + tile.d * cell_.blocks * width_ : to,
                      takes_input ? 0 : pitch_, to, pitch_, input,
                      // There and back, so that the next visit finds the last panels in the cache.
                      begin % 2 != 0, activates_in_products_ ? End::kRelu : End::kSum};
    if (!by_visits_) gemm(rows, cell_.gates * width_, g);
    for (int64_t i = begin; by_visits_ && i < end; ++i, g.skip(m)) {
      if (activates_in_products_) g.also = slot(tile, i);
      if constexpr (std::is_same_v<S, Factor>)
        if (reads_in_place_) {
          g.second.a = static_cast<const S*>(a_.x) + (tile.b_of[0] * a_.N + tile.node(i)) * C;
          g.second.row_step = a_.N * C;
        }
      gemm(m, cell_.gates * width_, g);
    }
    return sum;
  }

  // Whether the state of visit i is read by the next visit alone, which finds it in the chunk.
  bool is_handed_on(const Tile<S>& tile, int64_t i) const {
    const Program& p = a_.program;
    return activates_in_products_ && p.G == p.N && i + 1 < p.N && (i + 1) % tiling_.chunk != 0 &&
           tile.num_successors(i) == 1 && tile.num_predecessors(i + 1) == 1 &&
           tile.predecessor_node(i + 1, 0) == tile.node(i) && !(has_initial_ && a_.entry);
  }
  T* slot(const Tile<S>& tile, int64_t i) const {
    return is_handed_on(tile, i) ? nullptr : tile.slot(i);
  }

  // to[m][slot_pitch]: the reduced states of the predecessors of visit i, with what enters there.
  // False, and zeros, if there are no predecessors.
  bool gather(const Tile<S>& tile, int64_t i, int64_t m, const Buffers& buffers, T* to) const {
    const int64_t count = tile.num_predecessors(i);
    tile.gather(i, m, to);
    if (a_.mean && count > 1)
      for (int64_t j = 0; j < m * slot_pitch_; j += kLanes<T>)
        store(to + j, load(to + j) * (T(1) / count));
    if (has_initial_)
      for (int64_t r = 0; r < m; ++r)
        if (tile.is_entry(tile.node(i), count == 0, r))
          for (int64_t j = r * slot_pitch_; j < (r + 1) * slot_pitch_; j += kLanes<T>)
            store(to + j, load(to + j) + load(buffers.initial + j));
    return count != 0;
  }

  // h, c = mask * cell(pre, m): to the slots, and to the outputs.
  template <typename Cell>
  void finish(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, int64_t row, const T* sum,
              const Buffers& buffers) {
    constexpr bool kIsGated = std::is_same_v<Cell, GatedCell>;
    const int64_t H = a_.H;
    T* pre = buffers.pre + row * pitch_;
    if constexpr (Cell::kSaved == 0) return activate<Cell>(tile, begin, end, m, pre);
    T* state = a_.K && Cell::kBlocks > 1 ? buffers.states + row * ld_ : nullptr;
    const T* carried = sum + (Cell::kCarry == Carry::kCell ? width_ : 0);
    const auto row_of = [](void* output, int64_t at) {
      return output ? static_cast<S*>(output) + at : nullptr;
    };
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = tile.node(i);
      T* slot = tile.slot(i);
      for (int64_t r = 0; r < m; ++r, pre += pitch_, carried += slot_pitch_) {
        const int64_t at = ((tile.b_of[r] * a_.N + n) * a_.D + tile.d) * H;
        const bool is_masked = tile.is_masked(n, r);
        S *h = row_of(a_.h, at), *c = row_of(a_.c, at);
        S* saved = is_masked ? nullptr : row_of(a_.saved, at * Cell::kSaved);
        if (kIsGated && a_.pre) store_row<S, T>(pre, H, static_cast<S*>(a_.pre) + at);
        for (int64_t j = 0; j < H; j += kLanes<T>) {
          const int64_t lanes = std::min<int64_t>(kLanes<T>, H - j);
          CellState<Vec<T>> y{};
          if (!is_masked) {
            Vec<T> a[Cell::kBlocks], carry{};
            for (int b = 0; b < Cell::kBlocks; ++b) a[b] = load(pre + b * width_ + j);
            if constexpr (kIsGated)
              carry = load_partial<S, T>(static_cast<const S*>(a_.gate) + at + j, lanes);
            if constexpr (Cell::kCarry != Carry::kNothing) carry = load(carried + j);
            y = Cell::forward(a, carry);
            if constexpr (Cell::kSaved && !kIsGated)
              if (saved) {
                Vec<T> values[Cell::kSaved];
                Cell::save(a, carry, values);
                for (int k = 0; k < Cell::kSaved; ++k) put(saved + k * H + j, lanes, values[k]);
              }
          }
          store(pre + j, y.h);  // in place, for what follows
          if (state) store(state + j, y.h);
          if (slot) store(slot + j, y.h);
          if (h) put(h + j, lanes, y.h);
          if constexpr (Cell::kCarry == Carry::kCell) {
            if (slot) store(slot + width_ + j, y.c);
            if (c) put(c + j, lanes, y.c);
            store(pre + width_ + j, y.c);
          }
        }
        if (slot) slot += slot_pitch_;
        if (state) state += ld_;
      }
      if (tile.last) hand_out(tile, i, m, pre - m * pitch_);
    }
  }

  // The same of a cell that is an activation, whose rows of pre and of slots lie alike: register
  // after register without a question.
  template <typename Cell>
  void activate(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, T* pre) {
    const int64_t count = pitch_ == width_ ? 1 : m;  // rows without gaps are one
    const int64_t size = pitch_ == width_ ? m * width_ : width_;
    for (int64_t i = begin; i < end; ++i, pre += m * pitch_) {
      const int64_t n = tile.node(i);
      T* slot = tile.slot(i);
      for (int64_t row = 0; !activates_in_products_ && row < count * pitch_; row += pitch_)
        for (int64_t j = row; j < row + size; j += kLanes<T>) {
          const Vec<T> a = load(pre + j), h = Cell::forward(&a, a).h;
          store(pre + j, h);  // in place, for what follows
          if (slot) store(slot + j, h);
        }
      for (int64_t r = 0; r < m; ++r) {
        T* state = pre + r * pitch_;
        if (tile.is_masked(n, r)) {
          std::fill(state, state + width_, T(0));
          if (slot) std::fill(slot + r * pitch_, slot + r * pitch_ + width_, T(0));
        }
        const int64_t at = ((tile.b_of[r] * a_.N + n) * a_.D + tile.d) * a_.H;
        if (a_.h) put_row(state, static_cast<S*>(a_.h) + at);
      }
      if (tile.last) hand_out(tile, i, m, pre);
    }
  }

  // A state to an output,
  STRNN_INLINE void put_row(const T* state, S* to) const {
    if (!streams_) return store_row<S, T>(state, a_.H, to);
    for (int64_t j = 0; j < a_.H; j += kLanes<T>) put(to + j, kLanes<T>, load(state + j));
  }
  // or the first lanes of a register of it.
  STRNN_INLINE void put(S* to, int64_t lanes, Vec<T> v) const {
    if constexpr (std::is_same_v<S, T>)
      if (streams_) return stream(to, v);
    store_lanes<S, T>(to, lanes, v);
  }

  // s[k] += sum over the chunk's nodes of G[k, n] h[n], for each k.
  void project(int64_t d, int64_t c, int64_t m, int64_t rows, const Buffers& buffers) {
    if (is_dense_) {
      const int64_t begin = c * tiling_.chunk, count = std::min(tiling_.chunk, a_.N - begin);
      gemm(a_.K, m * ld_,
           Gemm<T>{{count, projection_ + d * a_.K * a_.N + begin, a_.N, 1, buffers.states, m * ld_,
                    kPanel<T>},
                   buffers.s,
                   rows * ld_,
                   buffers.s,
                   rows * ld_});
      return;
    }
    const int64_t* ptr = nonzero_ptr_ + (d * num_chunks_ + c) * a_.K;
    for (int64_t k = 0; k < a_.K; ++k)
      add_scaled(nonzeros_ + ptr[k], nonzeros_ + ptr[k + 1], m * ld_, buffers.states, m * ld_,
                 false, buffers.s + k * rows * ld_);
  }

  const SweepForward& a_;
  CellWidths cell_;
  int64_t width_, ld_, ldc_, pitch_, slot_pitch_;  // of a block; of rows of h, x, pre and slots
  int64_t num_chunks_;
  bool input_apart_;            // x U^T is a product of its own
  bool by_visits_;              // each visit has a product of its own,
  bool activates_in_products_;  // which ends with the relu,
  bool reads_in_place_;         // and takes short rows of x from where they lie
  bool has_initial_, has_last_;
  bool streams_;  // outputs go past the caches
  Tiling tiling_;
  Factor* packed_w_ = nullptr;
  InputFactor* packed_u_ = nullptr;
  T* bias_ = nullptr;
  int64_t* row_of_ = nullptr;
  bool is_dense_ = false;    // the projection
  T* projection_ = nullptr;  // (D, K, N) in visiting order
  NonZero<T>* nonzeros_ = nullptr;
  int64_t* nonzero_ptr_ = nullptr;
};
