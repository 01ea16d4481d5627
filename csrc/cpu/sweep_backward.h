// Derivative of the forward sweep; see sweep_kernel.h for the plan. a.program is that of the
// reversed topology, so that a "predecessor" here is a successor of the forward sweep.

template <typename S>
class SweepBackwardKernel {
  using T = acc_t<S>;

 public:
  static void run(const SweepBackward& a, int num_threads, ParallelFor parallel_for) {
    SweepBackwardKernel kernel(a, num_threads);
    static thread_local ThreadBlock block;
    Scratch::with(block, [&](Scratch& scratch) { kernel.prepare(scratch); });
    parallel_for(
        kernel.tiling_.num_workers,
        [](int64_t worker, void* self) { static_cast<SweepBackwardKernel*>(self)->work(worker); },
        &kernel);
    kernel.reduce();
  }

 private:
  SweepBackwardKernel(const SweepBackward& a, int num_threads)
      : a_(a),
        ld_(leading_dimension<T>(a.H)),
        ldc_(leading_dimension<T>(a.C)),
        ldx_(leading_dimension<T>(a.C + 1)),
        width_(round_up<T>(a.H)) {
    const double flops = 2.0 * a.B * a.N * a.D * a.H * (2 * a.C + 2 * a.H + 2 * a.K);
    tiling_ = Tiling::choose<T>(a, a.program, flops, (3 * ld_ + 2 * ldc_) * sizeof(T), num_threads);
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

  // Partial gradients of one direction, private to a worker.
  struct Gradients {
    T* dw;    // [H][ld]
    T* du_t;  // [C + 1][ld], dw_ih transposed, then dbias: the bias is the weight of an input that
              // is always one
    T* dprojection;  // [K][N]
  };

  void prepare(Scratch& scratch) {
    const int64_t D = a_.D, H = a_.H, C = a_.C, K = a_.K, N = a_.N;
    T* w = scratch.take<T>(D * packed_size<T>(H, H));
    T* u = scratch.take<T>(has_dx_sum_ ? D * packed_size<T>(H, C) : 0);
    int64_t* row_of = scratch.take<int64_t>(a_.B);
    auto* nonzeros = scratch.take<NonZero<T>>(a_.ds ? D * K * N : 0);
    int64_t* nonzero_ptr = scratch.take<int64_t>(a_.ds ? D * N + 1 : 0);
    T* dx = scratch.take<T>(
        has_dx_sum_ && !dx_in_place_ ? (split_directions_ ? D : 1) * a_.B * N * C : 0);
    gradients_size_ = H * ld_ + (C + 1) * ld_ + (a_.ds ? K * N : 0);
    T* gradients = scratch.take<T>(tiling_.num_workers * D * gradients_size_);
    T* zeros = scratch.take<T>(ldc_);
    if (!w) return;
    std::fill(zeros, zeros + ldc_, T(0));
    zeros_ = zeros;
    packed_w_ = w, packed_u_ = u, row_of_ = row_of, nonzeros_ = nonzeros,
    nonzero_ptr_ = nonzero_ptr, gradients_ = gradients;
    dx_ = dx_in_place_ ? static_cast<T*>(a_.dx) : dx;

    for (int64_t d = 0; d < D; ++d) {
      const S* w_hh = static_cast<const S*>(a_.w_hh.of(d));
      pack_panels(H, H, w + d * packed_size<T>(H, H),
                  [&](int64_t k, int64_t n) { return to_acc(w_hh[k * H + n]); });
      if (!has_dx_sum_) continue;
      const S* w_ih = static_cast<const S*>(a_.w_ih.of(d));
      pack_panels(H, C, u + d * packed_size<T>(H, C),
                  [&](int64_t k, int64_t n) { return to_acc(w_ih[k * C + n]); });
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
    return {p, p + a_.H * ld_, p + (a_.H + a_.C + 1) * ld_};
  }

  struct Buffers {
    T *slots, *x, *dx, *h, *du, *sum, *h0, *dh0, *ds;
    bool* mask;
    int32_t* active;
    Buffers(const SweepBackwardKernel& kernel, Scratch& scratch) {
      const SweepBackward& a = kernel.a_;
      const int64_t rows = kernel.tiling_.rows, chunk_rows = rows * kernel.tiling_.chunk,
                    ld = kernel.ld_;
      slots = scratch.take<T>(a.program.S * rows * ld);
      x = scratch.take<T>(a.C ? chunk_rows * kernel.ldx_ : 0);
      dx = scratch.take<T>(kernel.has_dx_sum_ ? chunk_rows * kernel.ldc_ : 0);
      h = scratch.take<T>(chunk_rows * ld);
      du = scratch.take<T>(chunk_rows * ld);
      sum = scratch.take<T>(chunk_rows * ld);
      h0 = scratch.take<T>(a.h0 ? rows * ld : 0);
      dh0 = scratch.take<T>(a.h0 ? rows * ld : 0);
      ds = scratch.take<T>(a.ds ? a.K * rows * ld : 0);
      mask = scratch.take<bool>(a.mask ? a.N * rows : 0);
      active = scratch.take<int32_t>(a.mask ? a.N : 0);
    }
  };

  void work(int64_t worker) {
    static thread_local ThreadBlock block;
    Scratch::with(block, [&](Scratch& scratch) {
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
                       ld_,
                       row_of_ + first,
                       a_.mask ? buffers.mask : nullptr,
                       a_.mask ? buffers.active : nullptr,
                       buffers.slots};
    const Gradients mine = gradients(worker, d);
    if (a_.mask) load_mask(a_, tile.b_of, rows, buffers.mask, buffers.active);
    if (a_.h0) {
      for (int64_t r = 0; r < rows; ++r)
        load_row<S, T>(static_cast<const S*>(a_.h0) + (tile.b_of[r] * a_.D + d) * H, H,
                       buffers.h0 + r * ld_);
      std::fill(buffers.dh0, buffers.dh0 + rows * ld_, T(0));
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
          finish<kGated>(tile, i, stop, m, row, buffers);
        else
          with_activation(a_.cell, [&](auto act) {
            finish<decltype(act)::value>(tile, i, stop, m, row, buffers);
          });
        i = stop;
      }
      add_gradients(tile, begin, end, m, mine, buffers);
    }
    if (a_.h0) finish_h0(tile, mine, buffers);
  }

  // h, and dh + G^T ds, of the chunk's nodes.
  void load_outputs(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m,
                    const Buffers& buffers) {
    const S *h = static_cast<const S*>(a_.h), *dh = static_cast<const S*>(a_.dh);
    for (int64_t i = begin, row = 0; i < end; ++i) {
      const int64_t next = tile.node_ahead(i, m);
      for (int64_t r = 0; r < m; ++r, ++row) {
        const int64_t here = tile.b_of[r] * a_.N + tile.node(i);
        const int64_t at = (here * a_.D + tile.d) * a_.H;
        const int64_t ahead = ((tile.b_of[r] * a_.N + next) * a_.D + tile.d) * a_.H;
        if (a_.C == 0 && a_.dx) prefetch_to_write(static_cast<const S*>(a_.dx) + at, a_.H);
        if (a_.C) prefetch_to_read(static_cast<const S*>(a_.x) + here * a_.C, a_.C);
        if (has_dx_sum_) prefetch_to_write(dx_of(tile.d) + here * a_.C, a_.C);
        prefetch_to_read(h + ahead, a_.H);
        if (dh) prefetch_to_read(dh + ahead, a_.H);
        load_row<S, T>(h + at, a_.H, buffers.h + row * ld_);
        if (dh) load_row<S, T>(dh + at, a_.H, buffers.du + row * ld_);
      }
      T* du = buffers.du + (row - m) * ld_;
      if (a_.ds) {
        const int64_t* range = nonzero_ptr_ + tile.d * a_.N + i;
        add_scaled(nonzeros_ + range[0], nonzeros_ + range[1], m * ld_, buffers.ds, tile.rows * ld_,
                   !dh, du);
      } else if (!dh) {
        std::fill(du, du + m * ld_, T(0));
      }
    }
  }

  // du += (sum of successors' du) W; the sums stay for dW.
  void add_recurrent(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, int64_t row,
                     const Buffers& buffers) {
    bool some = false;
    for (int64_t i = begin; i < end; ++i)
      some |= tile.gather(i, m, buffers.sum + (row + (i - begin) * m) * ld_);
    if (!some) return;
    T* du = buffers.du + row * ld_;
    gemm(tile.product_rows(begin, end, m), width_,
         Gemm<T>{{a_.H, buffers.sum + row * ld_, ld_, 1,
                  packed_w_ + tile.d * packed_size<T>(a_.H, a_.H), kPanel<T>, a_.H * kPanel<T>},
                 du,
                 ld_,
                 du,
                 ld_});
  }

  static constexpr int kGated = kNumActivations;

  // du = mask * act'(h) * (what reached the state), in place and to the slot; with a gate, du =
  // gate * (what reached it) and dgate = pre * (what reached it).
  template <int kActivation>
  void finish(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, int64_t row,
              const Buffers& buffers) {
    S* output = a_.C ? nullptr : static_cast<S*>(a_.dx);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = tile.node(i);
      T* slot = tile.has_successors(i) ? tile.slot(i) : nullptr;
      for (int64_t r = 0; r < m; ++r, ++row) {
        T* du = buffers.du + row * ld_;
        const T* h = buffers.h + row * ld_;
        const int64_t at = ((tile.b_of[r] * a_.N + n) * a_.D + tile.d) * a_.H;
        const bool is_masked = tile.is_masked(n, r);
        for (int64_t j = 0; j < width_; j += kLanes<T>) {
          Vec<T> y;
          if constexpr (kActivation == kGated) {
            const int64_t lanes = std::min<int64_t>(kLanes<T>, a_.H - j);
            const Vec<T> pre = load_partial<S, T>(static_cast<const S*>(a_.pre) + at + j, lanes);
            store_partial<S, T>(static_cast<S*>(a_.dgate) + at + j, lanes, load(du + j) * pre);
            y = load_partial<S, T>(static_cast<const S*>(a_.gate) + at + j, lanes) * load(du + j);
          } else {
            y = is_masked ? Vec<T>{} : derivative<kActivation>(load(h + j)) * load(du + j);
          }
          store(du + j, y);
          if (slot) store(slot + r * ld_ + j, y);
        }
        if (output) store_row<S, T>(du, a_.H, output + at);
      }
      tile.for_entering_rows(n, !slot, m, [&](int64_t r) {
        const T* du = buffers.du + (row - m + r) * ld_;
        T* dh0 = buffers.dh0 + r * ld_;
        for (int64_t j = 0; j < width_; j += kLanes<T>)
          store(dh0 + j, load(dh0 + j) + load(du + j));
      });
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
    const int64_t R = (end - begin) * m, H = a_.H, C = a_.C;
    gemm(H, width_,
         Gemm<T>{{R, buffers.sum, 1, ld_, buffers.h, ld_, kPanel<T>}, mine.dw, ld_, mine.dw, ld_});
    if (a_.ds) add_dprojection(tile, begin, end, m, mine.dprojection, buffers);
    if (C == 0) return;
    for (int64_t i = begin, row = 0; i < end; ++i)
      for (int64_t r = 0; r < m; ++r, ++row) {
        T* x = buffers.x + row * ldx_;
        const int64_t n = tile.node(i);
        // du is zero at a masked node, but zero times what its x may hold need not be.
        if (tile.is_masked(n, r))
          std::fill(x, x + C, T(0));
        else
          load_row<S, T>(static_cast<const S*>(a_.x) + (tile.b_of[r] * a_.N + n) * C, C, x);
        x[C] = 1;
      }
    const int64_t inputs = C + (a_.dbias ? 1 : 0);
    gemm(inputs, width_,
         Gemm<T>{
             {R, buffers.x, 1, ldx_, buffers.du, ld_, kPanel<T>}, mine.du_t, ld_, mine.du_t, ld_});
    if (!has_dx_sum_) return;
    gemm(R, C,
         Gemm<T>{{H, buffers.du, ld_, 1, packed_u_ + tile.d * packed_size<T>(H, C), kPanel<T>,
                  H * kPanel<T>},
                 zeros_,
                 0,
                 buffers.dx,
                 ldc_});
    add_dx(tile, begin, end, m, buffers);
  }

  T* dx_of(int64_t d) const { return dx_ + (split_directions_ ? d * a_.B * a_.N * a_.C : 0); }
  bool is_first_of_dx(int64_t d) const { return split_directions_ || d == 0; }

  // dx of the chunk's nodes: written by the first direction, added by the others, or kept apart for
  // each direction.
  void add_dx(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, const Buffers& buffers) {
    const bool is_first = is_first_of_dx(tile.d);
    for (int64_t i = begin, row = 0; i < end; ++i)
      for (int64_t r = 0; r < m; ++r, ++row) {
        T* to = dx_of(tile.d) + (tile.b_of[r] * a_.N + tile.node(i)) * a_.C;
        const T* from = buffers.dx + row * ldc_;
        for (int64_t j = 0; j < a_.C; j += kLanes<T>) {
          const int64_t lanes = std::min<int64_t>(kLanes<T>, a_.C - j);
          const Vec<T> y = load(from + j);
          store_partial<T, T>(to + j, lanes, is_first ? y : y + load_partial<T, T>(to + j, lanes));
        }
      }
  }

  // dG[k, n] += sum over the rows of ds[k] . h[n], for blocks of k and of nodes that share their
  // loads. A block at the edge repeats its last k or node.
  void add_dprojection(const Tile<S>& tile, int64_t begin, int64_t end, int64_t m, T* dprojection,
                       const Buffers& buffers) {
    constexpr int kRows = STRNN_VEC_BYTES == 64 ? 5 : 2, kNodes = STRNN_VEC_BYTES == 64 ? 4 : 2;
    const int64_t size = tile.rows * ld_;
    for (int64_t i = begin; i < end; i += kNodes)
      for (int64_t k = 0; k < a_.K; k += kRows) {
        const T *h[kNodes], *ds[kRows];
        for (int n = 0; n < kNodes; ++n)
          h[n] = buffers.h + (std::min<int64_t>(i + n, end - 1) - begin) * m * ld_;
        for (int q = 0; q < kRows; ++q)
          ds[q] = buffers.ds + std::min<int64_t>(k + q, a_.K - 1) * size;
        Vec<T> acc[kRows][kNodes] = {};
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

  // h0 is a state without a gate: dh0 = (sum of du where it entered) W, and its share of dW.
  void finish_h0(const Tile<S>& tile, const Gradients& mine, const Buffers& buffers) {
    gemm(a_.H, width_,
         Gemm<T>{{tile.rows, buffers.dh0, 1, ld_, buffers.h0, ld_, kPanel<T>},
                 mine.dw,
                 ld_,
                 mine.dw,
                 ld_});
    if (!a_.dh0) return;
    T* result = buffers.sum;
    std::fill(result, result + tile.rows * ld_, T(0));
    gemm(tile.rows, width_,
         Gemm<T>{{a_.H, buffers.dh0, ld_, 1, packed_w_ + tile.d * packed_size<T>(a_.H, a_.H),
                  kPanel<T>, a_.H * kPanel<T>},
                 result,
                 ld_,
                 result,
                 ld_});
    for (int64_t r = 0; r < tile.rows; ++r)
      store_row<S, T>(result + r * ld_, a_.H,
                      static_cast<S*>(a_.dh0) + (tile.b_of[r] * a_.D + tile.d) * a_.H);
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
      for (int64_t h = 0; h < H; ++h)
        store_row<S, T>(sum.dw + h * ld_, H, static_cast<S*>(a_.dw_hh) + (d * H + h) * H);
      if (C)
        for (int64_t h = 0; h < H; ++h)
          for (int64_t c = 0; c < C; ++c)
            static_cast<S*>(a_.dw_ih)[(d * H + h) * C + c] = from_acc<S>(sum.du_t[c * ld_ + h]);
      if (a_.dbias) store_row<S, T>(sum.du_t + C * ld_, H, static_cast<S*>(a_.dbias) + d * H);
      if (a_.dprojection) {
        S* to = static_cast<S*>(a_.dprojection) + d * K * N;
        for (int64_t j = 0; j < K * N; ++j) to[j] = a_.ds ? from_acc<S>(sum.dprojection[j]) : S{};
      }
    }
    if (!has_dx_sum_ || dx_in_place_) return;
    const int64_t size = a_.B * N * C;
    for (int64_t j = 0; j < size; ++j) {
      T sum = dx_[j];
      for (int64_t d = 1; d < (split_directions_ ? a_.D : 1); ++d) sum += dx_[d * size + j];
      static_cast<S*>(a_.dx)[j] = from_acc<S>(sum);
    }
  }

  const SweepBackward& a_;
  int64_t ld_, ldc_, ldx_, width_, gradients_size_ = 0;
  Tiling tiling_;
  bool has_dx_sum_, split_directions_, dx_in_place_;
  T *packed_w_ = nullptr, *packed_u_ = nullptr, *gradients_ = nullptr, *dx_ = nullptr,
    *zeros_ = nullptr;
  int64_t* row_of_ = nullptr;
  NonZero<T>* nonzeros_ = nullptr;
  int64_t* nonzero_ptr_ = nullptr;
};
