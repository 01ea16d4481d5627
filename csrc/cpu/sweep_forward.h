// Forward sweep; see sweep_kernel.h for the plan. Also the gated sweep, which is the same with a
// gate for act.

template <typename S>
class SweepForwardKernel {
  using T = acc_t<S>;

 public:
  static void run(const SweepForward& a, int num_threads, ParallelFor parallel_for) {
    SweepForwardKernel kernel(a, num_threads);
    static thread_local ThreadBlock block;
    Scratch::with(block, [&](Scratch& scratch) { kernel.prepare(scratch); });
    parallel_for(
        kernel.tiling_.num_workers,
        [](int64_t worker, void* self) { static_cast<SweepForwardKernel*>(self)->work(worker); },
        &kernel);
  }

 private:
  SweepForwardKernel(const SweepForward& a, int num_threads)
      : a_(a),
        ld_(leading_dimension<T>(a.H)),
        ldc_(leading_dimension<T>(a.C)),
        width_(round_up<T>(a.H)) {
    const double flops = 2.0 * a.B * a.N * a.D * a.H * (a.C + a.H + a.K);
    tiling_ = Tiling::choose<T>(a, a.program, flops, (2 * ld_ + ldc_) * sizeof(T), num_threads);
    num_chunks_ = (a.N + tiling_.chunk - 1) / tiling_.chunk;
  }

  // What all workers share: packed weights, the order of the rows, the non-zeros of the projection.
  void prepare(Scratch& scratch) {
    const int64_t D = a_.D, H = a_.H, C = a_.C, K = a_.K, N = a_.N;
    T* w = scratch.take<T>(D * packed_size<T>(H, H));
    T* u = scratch.take<T>(D * packed_size<T>(C, H));
    T* bias = scratch.take<T>(D * width_);
    int64_t* row_of = scratch.take<int64_t>(a_.B);
    T* projection = scratch.take<T>(D * K * N);
    auto* nonzeros = scratch.take<NonZero<T>>(D * K * N);
    int64_t* nonzero_ptr = scratch.take<int64_t>(K ? D * num_chunks_ * K + 1 : 0);
    if (!w) return;
    packed_w_ = w, packed_u_ = u, bias_ = bias, row_of_ = row_of, projection_ = projection,
    nonzeros_ = nonzeros, nonzero_ptr_ = nonzero_ptr;

    for (int64_t d = 0; d < D; ++d) {
      const S* w_hh = static_cast<const S*>(a_.w_hh.of(d));
      pack_panels(H, H, w + d * packed_size<T>(H, H),
                  [&](int64_t k, int64_t n) { return to_acc(w_hh[n * H + k]); });
      if (C == 0) continue;
      const S* w_ih = static_cast<const S*>(a_.w_ih.of(d));
      pack_panels(C, H, u + d * packed_size<T>(C, H),
                  [&](int64_t k, int64_t n) { return to_acc(w_ih[n * C + k]); });
      T* row = bias + d * width_;
      if (a_.bias)
        load_row<S, T>(static_cast<const S*>(a_.bias.of(d)), H, row);
      else
        std::fill(row, row + width_, T(0));
      if (a_.bias_hh)
        for (int64_t j = 0; j < H; ++j) row[j] += to_acc(static_cast<const S*>(a_.bias_hh.of(d))[j]);
    }
    order_rows(a_, row_of);
    if (K == 0) return;
    for (int64_t dk = 0; dk < D * K; ++dk)
      for (int64_t i = 0; i < N; ++i)
        projection[dk * N + i] =
            to_acc(static_cast<const S*>(a_.projection)[dk * N + a_.program.node[dk / K * N + i]]);
    is_dense_ = N * D * K - std::count(projection, projection + D * K * N, T(0)) >=
                kDenseProjection * D * K * N;
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

  struct Buffers {
    T *slots, *x, *pre, *sum, *h0, *s;
    bool* mask;
    int32_t* active;
    Buffers(const SweepForwardKernel& kernel, Scratch& scratch) {
      const SweepForward& a = kernel.a_;
      const int64_t rows = kernel.tiling_.rows, chunk_rows = rows * kernel.tiling_.chunk;
      slots = scratch.take<T>(a.program.S * rows * kernel.ld_);
      x = scratch.take<T>(a.C ? chunk_rows * kernel.ldc_ : 0);
      pre = scratch.take<T>(chunk_rows * kernel.ld_);
      sum = scratch.take<T>(chunk_rows * kernel.ld_);
      h0 = scratch.take<T>(a.h0 ? rows * kernel.ld_ : 0);
      s = scratch.take<T>(a.K * rows * kernel.ld_);
      mask = scratch.take<bool>(a.mask ? a.N * rows : 0);
      active = scratch.take<int32_t>(a.mask ? a.N : 0);
    }
  };

  void work(int64_t worker) {
    static thread_local ThreadBlock block;
    Scratch::with(block, [&](Scratch& scratch) {
      Buffers buffers(*this, scratch);
      if (!buffers.slots) return;
      const int64_t units = tiling_.num_tiles * a_.D;
      // In turn, not in runs: with a mask the first tiles have more to do than the last.
      for (int64_t unit = worker; unit < units; unit += tiling_.num_workers)
        sweep(unit / a_.D, unit % a_.D, buffers);
    });
  }

  void sweep(int64_t tile_index, int64_t d, const Buffers& buffers) {
    const int64_t first = tile_index * tiling_.rows;
    const int64_t rows = std::min(tiling_.rows, a_.B - first), H = a_.H, N = a_.N;
    const Tile<S> tile{a_,
                       a_.program,
                       d,
                       rows,
                       ld_,
                       row_of_ + first,
                       a_.mask ? buffers.mask : nullptr,
                       a_.mask ? buffers.active : nullptr,
                       buffers.slots};
    if (a_.mask) load_mask(a_, tile.b_of, rows, buffers.mask, buffers.active);
    if (a_.h0)
      for (int64_t r = 0; r < rows; ++r)
        load_row<S, T>(static_cast<const S*>(a_.h0) + (tile.b_of[r] * a_.D + d) * H, H,
                       buffers.h0 + r * ld_);
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
        T* pre = buffers.pre + row * ld_;
        add_recurrent(tile, i, stop, m, row, buffers);
        if (a_.gate)
          finish(tile, i, stop, m, pre, [&](Vec<T> u, const S* gate, int64_t n) {
            return u * load_partial<S, T>(gate, n);
          });
        else
          with_activation(a_.cell, [&](auto act) {
            finish(tile, i, stop, m, pre,
                   [](Vec<T> u, const S*, int64_t) { return activate<decltype(act)::value>(u); });
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

  // The rows from m on, which the chunk masks: zeros to the slots and the output.
  void skip(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m) {
    tile.clear_slots(begin, end, m);
    if (!a_.h) return;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t r = m; r < tile.rows; ++r) {
        S* h =
            static_cast<S*>(a_.h) + ((tile.b_of[r] * a_.N + tile.node(i)) * a_.D + tile.d) * a_.H;
        std::fill(h, h + a_.H, S{});
      }
  }

  // u of the chunk's nodes, or their x.
  void load_input(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m,
                  const Buffers& buffers) {
    const S* x = static_cast<const S*>(a_.x);
    const int64_t N = a_.N, D = a_.D, H = a_.H, C = a_.C;
    for (int64_t i = begin, row = 0; i < end; ++i) {
      const int64_t next = tile.node_ahead(i, m);
      for (int64_t r = 0; r < m; ++r, ++row) {
        const int64_t first = tile.b_of[r] * N, at = first + tile.node(i);
        if (C == 0) {
          prefetch_to_read(x + ((first + next) * D + tile.d) * H, H);
          load_row<S, T>(x + (at * D + tile.d) * H, H, buffers.pre + row * ld_);
        } else {
          prefetch_to_read(x + (first + next) * C, C);
          load_row<S, T>(x + at * C, C, buffers.x + row * ldc_);
        }
        if (a_.h) prefetch_to_write(static_cast<const S*>(a_.h) + (at * D + tile.d) * H, H);
      }
    }
  }

  // pre = u + (sum of predecessors) W^T for the visits begin..end, which do not depend on each
  // other; they start at a row of the chunk. u: there already, or bias + x U^T.
  void add_recurrent(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, int64_t row,
                     const Buffers& buffers) {
    const int64_t H = a_.H, C = a_.C;
    bool some = a_.h0 != nullptr;
    for (int64_t i = begin; i < end; ++i) {
      T* sum = buffers.sum + (i - begin) * m * ld_;
      const bool has_predecessors = tile.gather(i, m, sum);
      some |= has_predecessors;
      tile.for_entering_rows(tile.node(i), !has_predecessors, m, [&](int64_t r) {
        for (int64_t j = r * ld_; j < r * ld_ + round_up<T>(H); j += kLanes<T>)
          store(sum + j, load(sum + j) + load(buffers.h0 + j));
      });
    }
    if (!some && C == 0) return;
    T* pre = buffers.pre + row * ld_;
    const T* bias = bias_ + tile.d * width_;
    gemm(tile.product_rows(begin, end, m), width_,
         Gemm<T>{{some ? H : 0, buffers.sum, ld_, 1, packed_w_ + tile.d * packed_size<T>(H, H),
                  kPanel<T>, H * kPanel<T>},
                 C ? bias : pre,
                 C ? 0 : ld_,
                 pre,
                 ld_,
                 {C, buffers.x + row * ldc_, ldc_, 1, packed_u_ + tile.d * packed_size<T>(C, H),
                  kPanel<T>, C * kPanel<T>}});
  }

  // h = mask * act(pre), in place, to the slot, and to the output.
  template <typename Act>
  STRNN_INLINE void finish(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, T* pre,
                           const Act& act) {
    const int64_t H = a_.H;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = tile.node(i);
      T* slot = tile.has_successors(i) ? tile.slot(i) : nullptr;
      for (int64_t r = 0; r < m; ++r, pre += ld_) {
        const int64_t at = ((tile.b_of[r] * a_.N + n) * a_.D + tile.d) * H;
        const S* gate = static_cast<const S*>(a_.gate) + (a_.gate ? at : 0);
        S* h = a_.h ? static_cast<S*>(a_.h) + at : nullptr;
        if (a_.pre) store_row<S, T>(pre, H, static_cast<S*>(a_.pre) + at);
        const bool is_masked = tile.is_masked(n, r);
        for (int64_t j = 0; j < H; j += kLanes<T>) {
          const int64_t lanes = std::min<int64_t>(kLanes<T>, H - j);
          const Vec<T> y = is_masked ? Vec<T>{} : act(load(pre + j), gate + j, lanes);
          store(pre + j, y);
          if (slot) store(slot + r * ld_ + j, y);
          if (!h) continue;
          if (lanes == kLanes<T>)
            store_as<S, T>(h + j, y);
          else
            store_partial<S, T>(h + j, lanes, y);
        }
      }
    }
  }

  // s[k] += sum over the chunk's nodes of G[k, n] h[n], for each k.
  void project(int64_t d, int64_t c, int64_t m, int64_t rows, const Buffers& buffers) {
    if (is_dense_) {
      const int64_t begin = c * tiling_.chunk, count = std::min(tiling_.chunk, a_.N - begin);
      gemm(a_.K, m * ld_,
           Gemm<T>{{count, projection_ + d * a_.K * a_.N + begin, a_.N, 1, buffers.pre, m * ld_,
                    kPanel<T>},
                   buffers.s,
                   rows * ld_,
                   buffers.s,
                   rows * ld_});
      return;
    }
    const int64_t* ptr = nonzero_ptr_ + (d * num_chunks_ + c) * a_.K;
    for (int64_t k = 0; k < a_.K; ++k)
      add_scaled(nonzeros_ + ptr[k], nonzeros_ + ptr[k + 1], m * ld_, buffers.pre, m * ld_, false,
                 buffers.s + k * rows * ld_);
  }

  // From this share of non-zero weights on, the projection is a product with all of them: gemm
  // makes more of its loads than a list of non-zeros can.
  static constexpr double kDenseProjection = 0.7;

  const SweepForward& a_;
  int64_t ld_, ldc_, width_, num_chunks_;
  Tiling tiling_;
  T *packed_w_ = nullptr, *packed_u_ = nullptr, *bias_ = nullptr;
  int64_t* row_of_ = nullptr;
  bool is_dense_ = false;    // the projection
  T* projection_ = nullptr;  // (D, K, N) in visiting order
  NonZero<T>* nonzeros_ = nullptr;
  int64_t* nonzero_ptr_ = nullptr;
};
