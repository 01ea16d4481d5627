// Derivative of the forward sweep; see sweep_kernel.h for the plan. a.program is that of the
// reversed topology, so that a "predecessor" here is a successor of the forward sweep.

// Factors as of the forward sweep.
template <typename S, typename Factor = acc_t<S>>
class SweepBackwardKernel {
  using T = acc_t<S>;
  static constexpr bool kHasPairs = std::is_same_v<Factor, Pair>;

 public:
  static void run(const SweepBackward& a, int num_threads, ParallelFor parallel_for) {
    SweepBackwardKernel kernel(a, num_threads);
    Scratch::with(call_block(), [&](Scratch& scratch) {
      kernel.prepare(scratch);
      if (scratch.is_counting()) return;
      parallel_for(
          kernel.tiling_.num_workers,
          [](int64_t worker, void* self) { static_cast<SweepBackwardKernel*>(self)->work(worker); },
          &kernel);
      kernel.reduce();
    });
  }

 private:
  SweepBackwardKernel(const SweepBackward& a, int num_threads)
      : a_(a),
        cell_(CellWidths::of(a.cell)),
        width_(round_up<T>(a.H)),
        ld_(leading_dimension<T>(a.H)),
        ldc_(leading_dimension<T>(a.C)),
        ldx_(leading_dimension<T>(a.C + 1)),
        pitch_(leading_dimension<T>(cell_.blocks * width_)),
        slot_pitch_(leading_dimension<T>((cell_.gates + (has_carry() ? 1 : 0)) * width_)),
        terms_((cell_.gates - 1) * width_ + a.H) {
    const double flops = 2.0 * a.B * a.N * a.D * a.H * (2 * cell_.gates * (a.C + a.H) + 2 * a.K);
    tiling_ = Tiling::choose(a, a.program, flops, slot_pitch_ * sizeof(T),
                             (ld_ + pitch_ + slot_pitch_ + 2 * ldc_) * sizeof(T),
                             a.N * std::max(a.C, a.H) * sizeof(T), num_threads);
    has_initial_ = a.h0 || a.c0;
    has_last_ = a.dh_n || a.dc_n;
    activates_in_products_ = tiling_.has_products_of_visits && kCanEnd<T, Factor> &&
                             a.cell == kRelu && !a.gate && !a.mean && a.C && !has_initial_ &&
                             !has_last_;
    has_dx_sum_ = a.C && a.dx;
    // Few tiles of unequal work (a mask) do not share out well among the workers; directions do.
    split_directions_ = has_dx_sum_ && tiling_.num_workers > 1 &&
                        tiling_.num_tiles < (a.mask ? 4 : 1) * tiling_.num_workers;
    if (has_dx_sum_ && !split_directions_)
      tiling_.num_workers = std::min(tiling_.num_workers, tiling_.num_tiles);
    // dx is a sum over directions: straight into the output if one worker adds all of them in the
    // output's own type.
    dx_in_place_ = has_dx_sum_ && !split_directions_ && std::is_same_v<S, T>;
  }

  bool has_carry() const { return cell_.carry != Carry::kNothing; }

  // Partial gradients of one direction, private to a worker.
  struct Gradients {
    T* dw;    // [terms][ld]: block by block of the state's side
    T* du_t;  // [C + 1][pitch], dw_ih transposed, then dbias: the bias is the weight of an input
              // that is always one
    T* dprojection;  // [K][N]
  };

  void prepare(Scratch& scratch) {
    const int64_t D = a_.D, H = a_.H, C = a_.C, K = a_.K, N = a_.N;
    const int64_t size_w = packed_size<Factor>(terms_of<Factor>(terms_), H);
    const int64_t size_u = packed_size<Factor>(terms_of<Factor>(terms_), C);
    Factor* w = scratch.take<Factor>(D * size_w);
    Factor* u = scratch.take<Factor>(has_dx_sum_ ? D * size_u : 0);
    int64_t* row_of = scratch.take<int64_t>(a_.B);
    auto* nonzeros = scratch.take<NonZero<T>>(a_.ds ? D * K * N : 0);
    int64_t* nonzero_ptr = scratch.take<int64_t>(a_.ds ? D * N + 1 : 0);
    T* dx = scratch.take<T>(
        has_dx_sum_ && !dx_in_place_ ? (split_directions_ ? D : 1) * a_.B * N * C : 0);
    gradients_size_ = terms_ * ld_ + (C + 1) * pitch_ + (a_.ds ? K * N : 0);
    T* gradients = scratch.take<T>(tiling_.num_workers * D * gradients_size_);
    T* zeros = scratch.take<T>(std::max(ldc_, ld_));
    if (!w) return;
    std::fill(zeros, zeros + std::max(ldc_, ld_), T(0));
    zeros_ = zeros;
    packed_w_ = w, packed_u_ = u, row_of_ = row_of, nonzeros_ = nonzeros,
    nonzero_ptr_ = nonzero_ptr, gradients_ = gradients;
    dx_ = dx_in_place_ ? static_cast<T*>(a_.dx) : dx;

    for (int64_t d = 0; d < D; ++d) {
      pack_rows(static_cast<const S*>(a_.w_hh.of(d)), H, H, cell_.gates, cell_.state_gate, width_,
                w + d * size_w);
      if (has_dx_sum_)
        pack_rows(static_cast<const S*>(a_.w_ih.of(d)), C, H, cell_.gates, cell_.input_gate, width_,
                  u + d * size_u);
    }
    order_rows(a_, row_of);
    if (!a_.ds) return;
    const S* projection = static_cast<const S*>(a_.projection);
    int64_t count = 0, run = 0;
    for (int64_t d = 0; d < D; ++d)
      for (int64_t i = 0; i < N; ++i) {
        nonzero_ptr[run++] = count;
        for (int64_t k = 0; k < K; ++k) {
          const T g = to_acc(projection[(d * K + k) * N + a_.program.node[d * N + i]]);
          if (g != 0) nonzeros[count++] = {(int32_t)k, g};
        }
      }
    nonzero_ptr[run] = count;
  }

  Gradients gradients(int64_t worker, int64_t d) const {
    T* p = gradients_ + (worker * a_.D + d) * gradients_size_;
    return {p, p + terms_ * ld_, p + terms_ * ld_ + (a_.C + 1) * pitch_};
  }

  struct Buffers {
    T *slots, *x, *dx, *h, *dh, *da, *sum, *h0, *dinitial, *ds;
    Factor *a_pairs, *b_pairs;
    bool* mask;
    int32_t *active, *last;
    Buffers(const SweepBackwardKernel& kernel, Scratch& scratch) {
      const SweepBackward& a = kernel.a_;
      const int64_t rows = kernel.tiling_.rows, chunk_rows = rows * kernel.tiling_.chunk,
                    ld = kernel.ld_;
      slots = scratch.take<T>(a.program.S * rows * kernel.slot_pitch_);
      x = scratch.take<T>(a.C ? chunk_rows * kernel.ldx_ : 0);
      dx = scratch.take<T>(kernel.has_dx_sum_ ? chunk_rows * kernel.ldc_ : 0);
      h = scratch.take<T>(chunk_rows * ld);
      da = scratch.take<T>(chunk_rows * kernel.pitch_);
      // A row of one block takes the place of the dh that it came from.
      dh = kernel.cell_.blocks == 1 ? da : scratch.take<T>(chunk_rows * ld);
      sum = scratch.take<T>(chunk_rows * kernel.slot_pitch_);
      h0 = scratch.take<T>(kernel.has_initial_ ? rows * ld : 0);
      dinitial = scratch.take<T>(kernel.has_initial_ ? rows * kernel.slot_pitch_ : 0);
      ds = scratch.take<T>(a.ds ? a.K * rows * ld : 0);
      const int64_t width = std::max({kernel.pitch_, kernel.slot_pitch_, kernel.ldx_, ld});
      const int64_t pairs = kHasPairs ? (chunk_rows + kMoreRows) * width : 0;
      a_pairs = scratch.take<Factor>(pairs);
      b_pairs = scratch.take<Factor>(pairs);
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
      T* mine = gradients(worker, 0).dw;
      std::fill(mine, mine + a_.D * gradients_size_, T(0));
      // Whole tiles, all directions of each, where dx is added up in place; else any (tile,
      // direction).
      const int64_t step = has_dx_sum_ && !split_directions_ ? a_.D : 1;
      for (int64_t first = worker * step; first < tiling_.num_tiles * a_.D;
           first += tiling_.num_workers * step)
        for (int64_t unit = first; unit < first + step; ++unit)
          sweep(worker, unit / a_.D, unit % a_.D, buffers);
    });
  }

  void sweep(int64_t worker, int64_t tile_index, int64_t d, const Buffers& buffers) {
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
    const Gradients mine = gradients(worker, d);
    if (a_.mask) load_mask(a_, tile.b_of, rows, buffers.mask, buffers.active);
    if (has_last_) find_last(tile, true, buffers.last);
    if (has_initial_) {
      std::fill(buffers.h0, buffers.h0 + rows * ld_, T(0));
      for (int64_t r = 0; a_.h0 && r < rows; ++r)
        load_row<S, T>(static_cast<const S*>(a_.h0) + (tile.b_of[r] * a_.D + d) * H, H,
                       buffers.h0 + r * ld_);
      std::fill(buffers.dinitial, buffers.dinitial + rows * slot_pitch_, T(0));
    }
    if (a_.ds)
      for (int64_t k = 0; k < a_.K; ++k)
        for (int64_t r = 0; r < rows; ++r)
          load_row<S, T>(static_cast<const S*>(a_.ds) + ((tile.b_of[r] * a_.D + d) * a_.K + k) * H,
                         H, buffers.ds + (k * rows + r) * ld_);

    int64_t g = 0;
    for (int64_t begin = 0; begin < N; begin += tiling_.chunk) {
      const int64_t end = std::min(N, begin + tiling_.chunk);
      const int64_t m = tile.active_rows(begin, end);
      skip(tile, begin, end, m);
      if (m == 0) continue;
      load_outputs(tile, begin, end, m, buffers);
      for (int64_t i = begin; i < end;) {
        while (tile.group(g + 1) <= i) ++g;
        const int64_t stop = std::min<int64_t>(end, tile.group(g + 1));
        const int64_t row = (i - begin) * m;
        add_recurrent(tile, i, stop, m, row, buffers);
        if (a_.gate)
          finish<GatedCell>(tile, i, stop, m, row, buffers);
        else if (!activates_in_products_)
          with_cell(a_.cell,
                    [&](auto cell) { finish<decltype(cell)>(tile, i, stop, m, row, buffers); });
        i = stop;
      }
      add_gradients(tile, begin, end, m, mine, buffers);
    }
    if (has_initial_) finish_initial(tile, mine, buffers);
  }

  // h, and dh + G^T ds, of the chunk's nodes.
  void load_outputs(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m,
                    const Buffers& buffers) {
    const int64_t H = a_.H, C = a_.C, size = a_.D * H, step = a_.N * size;  // of a node, a row of B
    T *to_h = buffers.h, *to_dh = buffers.dh;
    for (int64_t i = begin; i < end; ++i, to_dh += m * ld_) {
      const int64_t n = tile.node(i), at = n * size + tile.d * H;
      const int64_t ahead = (tile.node_ahead(i, m) - n) * size;
      const auto row = [&](const void* of, int64_t r) {
        return static_cast<const S*>(of) + tile.b_of[r] * step + at;
      };
      for (int64_t r = 0; r < m; ++r, to_h += ld_) load_row_ahead(row(a_.h, r), H, ahead, to_h);
      for (int64_t r = 0; a_.dh && r < m; ++r)
        load_row_ahead(row(a_.dh, r), H, ahead, to_dh + r * ld_);
      for (int64_t r = 0; r < m; ++r) {
        const int64_t x = (tile.b_of[r] * a_.N + n) * C;
        if (C) prefetch_to_read(static_cast<const S*>(a_.x) + x, C);
        if (has_dx_sum_) prefetch_to_write(dx_of(tile.d) + x, C);
        if (C == 0 && a_.dx) prefetch_to_write(row(a_.dx, r), H);
        if (a_.saved) {
          const int64_t next = (tile.b_of[r] * step + at + ahead) * cell_.saved;
          prefetch_to_read(static_cast<const S*>(a_.saved) + next, H * cell_.saved);
        }
      }
      if (a_.ds) {
        const int64_t* range = nonzero_ptr_ + tile.d * a_.N + i;
        add_scaled(nonzeros_ + range[0], nonzeros_ + range[1], m * ld_, buffers.ds, tile.rows * ld_,
                   !a_.dh, to_dh);
      } else if (!a_.dh) {
        std::fill(to_dh, to_dh + m * ld_, T(0));
      }
    }
  }

  // dh += (sum of successors' da) W; the sums stay for dW.
  void add_recurrent(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, int64_t row,
                     const Buffers& buffers) {
    bool some = false;
    for (int64_t i = begin; i < end; ++i) {
      tile.gather(i, m, buffers.sum + (row + (i - begin) * m) * slot_pitch_);
      some |= tile.num_predecessors(i) != 0;
    }
    if (!some && !activates_in_products_) return;
    const int64_t at = row * ld_, rows = tile.product_rows(begin, end, m);
    const T* sum = buffers.sum + row * slot_pitch_;
    Gemm<T, Factor> g{some ? recurrent_product(tile.d, sum, rows, buffers) : Product<Factor>{},
                      buffers.dh + at, ld_, buffers.dh + at, ld_};
    if (!activates_in_products_) return gemm(rows, width_, g);
    g.end = End::kReluGradient;
    g.h = buffers.h + at;
    for (int64_t i = begin; i < end; ++i, g.skip(m)) {
      g.also = tile.slot(i);
      gemm(m, width_, g);
    }
  }

  // Rows of a slot's form, times W.
  Product<Factor> recurrent_product(int64_t d, const T* rows, int64_t count,
                                    const Buffers& buffers) const {
    return product(rows, count, slot_pitch_, packed_w_, a_.H, d, buffers);
  }
  // Rows of da, times weights with n columns.
  Product<Factor> product(const T* rows, int64_t count, int64_t pitch, const Factor* packed,
                          int64_t n, int64_t d, const Buffers& buffers) const {
    const int64_t terms = terms_of<Factor>(terms_);
    return {terms,
            along_rows(rows, count, terms_, pitch, buffers.a_pairs),
            pitch,
            1,
            packed + d * packed_size<Factor>(terms, n),
            kPanel<Factor>,
            terms * kPanel<Factor>};
  }

  // da, dm = mask * the cell's gradients from what reached the state, to the slots too; with a gate
  // dm is the gate's.
  template <typename Cell>
  void finish(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, int64_t row,
              const Buffers& buffers) {
    constexpr bool kIsGated = std::is_same_v<Cell, GatedCell>;
    constexpr int kFirst = Cell::kBlocks - Cell::kGates;
    const int64_t H = a_.H, carried = Cell::kGates * width_;
    const auto row_of = [](const void* input, int64_t at) {
      return input ? static_cast<const S*>(input) + at : nullptr;
    };
    S* output = a_.C ? nullptr : static_cast<S*>(a_.dx);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = tile.node(i);
      T* slot = tile.slot(i);
      // The mean over the predecessors of the forward sweep, which are the successors here.
      const int64_t count = tile.num_successors(i);
      const T factor = a_.mean && count > 1 ? T(1) / count : T(1);
      if (tile.last) add_last(tile, i, m, row, buffers);
      for (int64_t r = 0; r < m; ++r, ++row, slot += slot ? slot_pitch_ : 0) {
        T* da = buffers.da + row * pitch_;
        const int64_t at = ((tile.b_of[r] * a_.N + n) * a_.D + tile.d) * H;
        if (tile.is_masked(n, r)) {
          std::fill(da, da + Cell::kBlocks * width_, T(0));
          if (slot) std::fill(slot, slot + slot_pitch_, T(0));
          if (output) std::fill(output + at, output + at + H, S{});
          continue;
        }
        const T *h = buffers.h + row * ld_, *dh = buffers.dh + row * ld_;
        T* sum = buffers.sum + row * slot_pitch_;
        const S *dc = row_of(a_.dc, at), *saved = row_of(a_.saved, at * Cell::kSaved);
        for (int64_t j = 0; j < H; j += kLanes<T>) {
          const int64_t lanes = std::min<int64_t>(kLanes<T>, H - j);
          Vec<T> values[Cell::kSaved + 1], dh_j = load(dh + j), dc_j{};
          if constexpr (kIsGated) {
            values[0] = load_partial<S, T>(static_cast<const S*>(a_.pre) + at + j, lanes);
            values[1] = load_partial<S, T>(static_cast<const S*>(a_.gate) + at + j, lanes);
          } else {
            for (int k = 0; k < Cell::kSaved; ++k)
              values[k] = load_lanes<S, T>(saved + k * H + j, lanes);
          }
          if constexpr (Cell::kCarry == Carry::kState) dh_j += load(sum + carried + j);
          if constexpr (Cell::kCarry == Carry::kCell) {
            dc_j = load(sum + carried + j);
            if (dc) dc_j += load_lanes<S, T>(dc + j, lanes);
          }
          const auto gradient = Cell::backward(values, load(h + j), dh_j, dc_j);
          for (int b = 0; b < Cell::kBlocks; ++b) store(da + b * width_ + j, gradient.a[b]);
          if constexpr (kIsGated)
            store_lanes<S, T>(static_cast<S*>(a_.dgate) + at + j, lanes, gradient.m);
          if (slot)
            for (int b = 0; b < Cell::kGates; ++b)
              store(slot + b * width_ + j, factor * gradient.a[kFirst + b]);
          if constexpr (Cell::kCarry != Carry::kNothing) {
            store(sum + carried + j, gradient.m);  // in place, for what follows
            if (slot) store(slot + carried + j, factor * gradient.m);
          }
          if (output) store_lanes<S, T>(output + at + j, lanes, gradient.a[0]);
        }
      }
      if (has_initial_) add_initial(tile, i, m, row - m, buffers);
    }
  }

  // What came for the last states, to those of visit i.
  void add_last(const Tile<S>& tile, int64_t i, int64_t m, int64_t row,
                const Buffers& buffers) const {
    const auto add = [&](const void* from, int64_t r, T* to) {
      if (!from) return;
      const S* of_row = static_cast<const S*>(from) + (tile.d * a_.B + tile.b_of[r]) * a_.H;
      for (int64_t j = 0; j < a_.H; ++j) to[j] += to_acc(of_row[j]);
    };
    for (int64_t r = 0; r < m; ++r, ++row) {
      if (tile.last[r] != i) continue;
      add(a_.dh_n, r, buffers.dh + row * ld_);
      add(a_.dc_n, r, buffers.sum + row * slot_pitch_ + cell_.gates * width_);
    }
  }

  // da of the state's side and dm of visit i, to the rows whose h0 and c0 entered there.
  void add_initial(const Tile<S>& tile, int64_t i, int64_t m, int64_t row,
                   const Buffers& buffers) const {
    const int64_t columns = cell_.gates * width_;
    const auto add = [](const T* from, int64_t count, T* to) {
      for (int64_t j = 0; j < count; j += kLanes<T>) store(to + j, load(to + j) + load(from + j));
    };
    for (int64_t r = 0; r < m; ++r, ++row) {
      const int64_t n = tile.node(i);
      if (tile.is_masked(n, r) || !tile.is_entry(n, tile.num_successors(i) == 0, r)) continue;
      T* to = buffers.dinitial + r * slot_pitch_;
      add(buffers.da + row * pitch_ + cell_.first_state_block() * width_, columns, to);
      if (has_carry()) add(buffers.sum + row * slot_pitch_ + columns, width_, to + columns);
    }
  }

  // The rows from m on, which the chunk masks: zeros to the slots and the outputs.
  void skip(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m) {
    tile.clear_slots(begin, end, m);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t r = m; r < tile.rows; ++r) {
        const int64_t at = tile.b_of[r] * a_.N + tile.node(i);
        if (a_.C == 0 && a_.dx) {
          S* dx = static_cast<S*>(a_.dx) + (at * a_.D + tile.d) * a_.H;
          std::fill(dx, dx + a_.H, S{});
        } else if (has_dx_sum_ && is_first_of_dx(tile.d)) {
          T* dx = dx_of(tile.d) + at * a_.C;
          std::fill(dx, dx + a_.C, T(0));
        }
      }
  }

  // The chunk's share of every gradient.
  void add_gradients(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m,
                     const Gradients& mine, const Buffers& buffers) {
    const int64_t R = (end - begin) * m, C = a_.C;
    add_dw(R, buffers.sum, buffers.h, mine, buffers);
    if (a_.ds) add_dprojection(tile, begin, end, m, mine.dprojection, buffers);
    if (C == 0) return;
    T* to = buffers.x;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = tile.node(i);
      const S* x = static_cast<const S*>(a_.x) + n * C;
      for (int64_t r = 0; r < m; ++r, to += ldx_) {
        load_row<S, T>(x + tile.b_of[r] * a_.N * C, C, to);
        // da is zero at a masked node, but zero times what its x may hold need not be.
        if (tile.is_masked(n, r)) std::fill(to, to + C, T(0));
        to[C] = 1;
      }
    }
    const int64_t inputs = C + (a_.dbias ? 1 : 0), columns = cell_.gates * width_;
    const Product<Factor> over_all = product_over_rows(R, buffers.x, inputs, ldx_, buffers.da,
                                                       cell_.blocks * width_, pitch_, buffers);
    gemm(inputs, columns, Gemm<T, Factor>{over_all, mine.du_t, pitch_, mine.du_t, pitch_});
    if (a_.dbias && cell_.blocks > cell_.gates) {
      // What only the bias of the state's side reaches.
      Product<Factor> rest = over_all;
      rest.a += C * rest.row_step;
      rest.b += columns;
      T* of_rest = mine.du_t + C * pitch_ + columns;
      gemm(1, (cell_.blocks - cell_.gates) * width_,
           Gemm<T, Factor>{rest, of_rest, pitch_, of_rest, pitch_});
    }
    if (!has_dx_sum_) return;
    gemm(R, C,
         Gemm<T, Factor>{product(buffers.da, R, pitch_, packed_u_, C, tile.d, buffers), zeros_, 0,
                         buffers.dx, ldc_});
    add_dx(tile, begin, end, m, buffers);
  }

  T* dx_of(int64_t d) const { return dx_ + (split_directions_ ? d * a_.B * a_.N * a_.C : 0); }
  bool is_first_of_dx(int64_t d) const { return split_directions_ || d == 0; }

  // dx of the chunk's nodes: written by the first direction, added by the others, or kept apart for
  // each direction.
  void add_dx(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, const Buffers& buffers) {
    const bool is_first = is_first_of_dx(tile.d);
    const int64_t C = a_.C;
    const T* from = buffers.dx;
    for (int64_t i = begin; i < end; ++i) {
      T* dx = dx_of(tile.d) + tile.node(i) * C;
      for (int64_t r = 0; r < m; ++r, from += ldc_) {
        T* to = dx + tile.b_of[r] * a_.N * C;
        for (int64_t j = 0; j < C; j += kLanes<T>) {
          const int64_t lanes = std::min<int64_t>(kLanes<T>, C - j);
          const Vec<T> y = load(from + j);
          store_partial<T, T>(to + j, lanes, is_first ? y : y + load_partial<T, T>(to + j, lanes));
        }
      }
    }
  }

  // dG[k, n] += sum over the rows of ds[k] . h[n], for blocks of k and of nodes that share their
  // loads. A block at the edge repeats its last k or node.
  void add_dprojection(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, T* dprojection,
                       const Buffers& buffers) {
    constexpr int kRows = 5, kNodes = kMaxTileRows > 6 ? 4 : 2;  // sums that fit the registers
    const int64_t size = tile.rows * ld_;
    for (int64_t i = begin; i < end; i += kNodes)
      for (int64_t k = 0; k < a_.K; k += kRows) {
        const T *h[kNodes], *ds[kRows];
        for (int n = 0; n < kNodes; ++n)
          h[n] = buffers.h + (std::min<int64_t>(i + n, end - 1) - begin) * m * ld_;
        for (int q = 0; q < kRows; ++q)
          ds[q] = buffers.ds + std::min<int64_t>(k + q, a_.K - 1) * size;
        Vec<T> acc[kRows][kNodes];
#pragma GCC unroll 5
        for (int q = 0; q < kRows; ++q)
#pragma GCC unroll 4
          for (int n = 0; n < kNodes; ++n) acc[q][n] = Vec<T>{};
        for (int64_t r = 0; r < m * ld_; r += ld_)
          for (int64_t j = r; j < r + width_; j += kLanes<T>) {
            Vec<T> hv[kNodes];
#pragma GCC unroll 4
            for (int n = 0; n < kNodes; ++n) hv[n] = load(h[n] + j);
#pragma GCC unroll 5
            for (int q = 0; q < kRows; ++q) {
              const Vec<T> dsv = load(ds[q] + j);
#pragma GCC unroll 4
              for (int n = 0; n < kNodes; ++n) acc[q][n] += dsv * hv[n];
            }
          }
        for (int64_t q = 0; q < std::min<int64_t>(kRows, a_.K - k); ++q)
          for (int64_t n = 0; n < std::min<int64_t>(kNodes, end - i); ++n)
            dprojection[(k + q) * a_.N + tile.node(i + n)] += lane_sum(acc[q][n]);
      }
  }

  // dW += sum^T h over R rows.
  void add_dw(int64_t R, const T* sum, const T* h, const Gradients& mine,
              const Buffers& buffers) const {
    gemm(terms_, width_,
         Gemm<T, Factor>{product_over_rows(R, sum, terms_, slot_pitch_, h, width_, ld_, buffers),
                         mine.dw, ld_, mine.dw, ld_});
  }
  // a^T b over R rows, of a_width and b_width values.
  Product<Factor> product_over_rows(int64_t R, const T* a, int64_t a_width, int64_t a_pitch,
                                    const T* b, int64_t b_width, int64_t b_pitch,
                                    const Buffers& buffers) const {
    Product<Factor> p = columns_over_rows(a, R, a_width, a_pitch, buffers.a_pairs);
    p.b = over_rows(b, R, b_width, b_pitch, buffers.b_pairs);
    p.ldb = b_pitch, p.panel_step = kPanel<Factor>;
    return p;
  }

  // h0 and c0 are states of no cell: dh0 = (sum of da where it entered) W, dc0 = the sum of dm, and
  // the share of dW. A row without a visit hands out what came in.
  void finish_initial(const Tile<S>& tile, const Gradients& mine, const Buffers& buffers) {
    const int64_t carried = cell_.gates * width_;
    if (a_.h0) add_dw(tile.rows, buffers.dinitial, buffers.h0, mine, buffers);
    T* result = buffers.h;
    if (a_.dh0) {
      gemm(tile.rows, width_,
           Gemm<T, Factor>{recurrent_product(tile.d, buffers.dinitial, tile.rows, buffers), zeros_,
                           0, result, ld_});
      hand_in(tile, result, ld_,
              cell_.carry == Carry::kState ? buffers.dinitial + carried : nullptr, a_.dh_n, a_.dh0);
    }
    if (a_.dc0) hand_in(tile, buffers.dinitial + carried, slot_pitch_, nullptr, a_.dc_n, a_.dc0);
  }

  // to (B, D, H) = from, + more, + of rows without a visit, what came for their last state.
  void hand_in(const Tile<S>& tile, T* from, int64_t pitch, const T* more, const void* last,
               void* to) const {
    const int64_t H = a_.H;
    for (int64_t r = 0; r < tile.rows; ++r, from += pitch) {
      const int64_t b = tile.b_of[r];
      for (int64_t j = 0; more && j < H; ++j) from[j] += more[r * slot_pitch_ + j];
      if (last && tile.last[r] < 0)
        for (int64_t j = 0; j < H; ++j)
          from[j] += to_acc(static_cast<const S*>(last)[(tile.d * a_.B + b) * H + j]);
      store_row<S, T>(from, H, static_cast<S*>(to) + (b * a_.D + tile.d) * H);
    }
  }

  // Adds up the workers' gradients in their order, and the directions of dx in theirs.
  void reduce() {
    const int64_t H = a_.H, C = a_.C, K = a_.K, N = a_.N;
    for (int64_t d = 0; d < a_.D; ++d) {
      T* total = gradients(0, d).dw;
      for (int64_t w = 1; w < tiling_.num_workers; ++w) {
        const T* part = gradients(w, d).dw;
        for (int64_t j = 0; j < gradients_size_; ++j) total[j] += part[j];
      }
      const Gradients sum = gradients(0, d);
      S* dw_hh = static_cast<S*>(a_.dw_hh) + d * cell_.gates * H * H;
      S* dw_ih = static_cast<S*>(a_.dw_ih) + d * cell_.gates * H * C;
      for (int b = 0; b < cell_.gates; ++b)
        for (int64_t j = 0; j < H; ++j) {
          store_row<S, T>(sum.dw + (b * width_ + j) * ld_, H,
                          dw_hh + (cell_.state_gate[b] * H + j) * H);
          for (int64_t c = 0; c < C; ++c)
            dw_ih[(cell_.input_gate[b] * H + j) * C + c] =
                from_acc<S>(sum.du_t[c * pitch_ + b * width_ + j]);
        }
      for (int b = 0; a_.dbias && b < cell_.blocks; ++b)
        store_row<S, T>(sum.du_t + C * pitch_ + b * width_, H,
                        static_cast<S*>(a_.dbias) + (d * cell_.blocks + cell_.bias_gate[b]) * H);
      if (a_.dprojection) {
        S* to = static_cast<S*>(a_.dprojection) + d * K * N;
        for (int64_t j = 0; j < K * N; ++j) to[j] = a_.ds ? from_acc<S>(sum.dprojection[j]) : S{};
      }
    }
    if (!has_dx_sum_ || dx_in_place_) return;
    const int64_t size = a_.B * N * C;
    for (int64_t j = 0; j < size; j += kLanes<T>) {
      const int64_t lanes = std::min<int64_t>(kLanes<T>, size - j);
      Vec<T> sum = load_lanes<T, T>(dx_ + j, lanes);
      for (int64_t d = 1; d < (split_directions_ ? a_.D : 1); ++d)
        sum += load_lanes<T, T>(dx_ + d * size + j, lanes);
      store_lanes<S, T>(static_cast<S*>(a_.dx) + j, lanes, sum);
    }
  }

  const SweepBackward& a_;
  CellWidths cell_;
  int64_t width_, ld_, ldc_, ldx_, pitch_,
      slot_pitch_;  // of a block; of rows of h, dx, x, da, slots
  int64_t terms_;   // columns of da on either side, with the gaps between the blocks
  int64_t gradients_size_ = 0;
  bool has_initial_, has_last_;
  bool activates_in_products_;  // the product of a visit ends with the relu's derivative
  Tiling tiling_;
  bool has_dx_sum_, split_directions_, dx_in_place_;
  Factor *packed_w_ = nullptr, *packed_u_ = nullptr;
  T *gradients_ = nullptr, *dx_ = nullptr, *zeros_ = nullptr;
  int64_t* row_of_ = nullptr;
  NonZero<T>* nonzeros_ = nullptr;
  int64_t* nonzero_ptr_ = nullptr;
};
