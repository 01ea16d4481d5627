// s[b,d,k] = sum_n weight[d,k,n] h[b,n,d] and its derivative, a sequence b at a time.
//
// A unit of work is (b, d). Forward reads h[b, :, d] once, in blocks of nodes that stay in cache,
// and runs over the non-zeros of the block; backward writes dh the same way and adds ds . h to a
// dweight that is private to the worker.

template <typename S>
class SparseProjectionKernel {
  using T = acc_t<S>;
  static constexpr int64_t kNodes = 64;  // nodes of h in cache at a time

 public:
  static void forward(const SparseProjection& a, int num_threads, ParallelFor parallel_for) {
    struct Call {
      const SparseProjection& a;
      int64_t num_workers;
    } call{a, workers(a.B, a.N, a.D, a.H, a.K, num_threads)};
    parallel_for(
        call.num_workers,
        [](int64_t worker, void* context) {
          const Call& c = *static_cast<Call*>(context);
          const int64_t units = c.a.B * c.a.D;
          for (int64_t u = units * worker / c.num_workers; u < units * (worker + 1) / c.num_workers;
               ++u)
            project(c.a, u / c.a.D, u % c.a.D);
        },
        &call);
  }

  static void backward(const SparseProjectionBackward& a, int num_threads,
                       ParallelFor parallel_for) {
    struct Call {
      const SparseProjectionBackward& a;
      int64_t num_workers;
      T* dweight;
    } call{a, workers(a.B, a.N, a.D, a.H, 2 * a.K, num_threads), nullptr};
    const int64_t size = a.D * a.K * a.N;
    Scratch::with(call_block(), [&](Scratch& scratch) {
      call.dweight = scratch.take<T>(a.dweight ? call.num_workers * size : 0);
      if (scratch.is_counting()) return;
      parallel_for(
          call.num_workers,
          [](int64_t worker, void* context) {
            const Call& c = *static_cast<Call*>(context);
            const int64_t units = c.a.B * c.a.D, total = c.a.D * c.a.K * c.a.N;
            T* mine = c.a.dweight ? c.dweight + worker * total : nullptr;
            if (mine) std::fill(mine, mine + total, T(0));
            const int64_t end = units * (worker + 1) / c.num_workers;
            for (int64_t u = units * worker / c.num_workers; u < end; ++u)
              project_backward(c.a, u / c.a.D, u % c.a.D, mine);
          },
          &call);
      for (int64_t j = 0; a.dweight && j < size; ++j) {
        T sum = call.dweight[j];
        for (int64_t w = 1; w < call.num_workers; ++w) sum += call.dweight[w * size + j];
        static_cast<S*>(a.dweight)[j] = from_acc<S>(sum);
      }
    });
  }

 private:
  static int64_t workers(int64_t B, int64_t N, int64_t D, int64_t H, int64_t K, int num_threads) {
    const int64_t wanted =
        std::max<int64_t>(1, (int64_t)(2.0 * B * N * D * H * K / kFlopsPerThread));
    return std::max<int64_t>(1, std::min({(int64_t)num_threads, wanted, B * D}));
  }

  // The entries weight(0 .. count) that are not zero; returns their end.
  template <typename Weight>
  static const NonZero<T>* keep_nonzeros(int64_t count, NonZero<T>* nonzeros,
                                         const Weight& weight) {
    for (int64_t i = 0; i < count; ++i) {
      const T g = to_acc(weight(i));
      if (g != 0) *nonzeros++ = {(int32_t)i, g};
    }
    return nonzeros;
  }

  static void project(const SparseProjection& a, int64_t b, int64_t d) {
    const int64_t ld = round_up<T>(a.H);
    const S* weight = static_cast<const S*>(a.weight) + d * a.K * a.N;
    Scratch::with(worker_block(), [&](Scratch& scratch) {
      T* h = scratch.take<T>(kNodes * ld);
      T* s = scratch.take<T>(a.K * ld);
      if (!h) return;
      for (int64_t n0 = 0; n0 == 0 || n0 < a.N; n0 += kNodes) {  // the first block starts the sums
        const int64_t count = std::min(kNodes, a.N - n0);
        for (int64_t i = 0; i < count; ++i)
          load_row<S, T>(static_cast<const S*>(a.h) + ((b * a.N + n0 + i) * a.D + d) * a.H, a.H,
                         h + i * ld);
        for (int64_t k = 0; k < a.K; ++k) {
          NonZero<T> nonzeros[kNodes];
          const NonZero<T>* end =
              keep_nonzeros(count, nonzeros, [&](int64_t i) { return weight[k * a.N + n0 + i]; });
          add_scaled(nonzeros, end, ld, h, ld, n0 == 0, s + k * ld);
        }
      }
      for (int64_t k = 0; k < a.K; ++k)
        store_row<S, T>(s + k * ld, a.H, static_cast<S*>(a.s) + ((b * a.D + d) * a.K + k) * a.H);
    });
  }

  static void project_backward(const SparseProjectionBackward& a, int64_t b, int64_t d,
                               T* dweight) {
    const int64_t ld = round_up<T>(a.H);
    const S* weight = static_cast<const S*>(a.weight) + d * a.K * a.N;
    Scratch::with(worker_block(), [&](Scratch& scratch) {
      T* ds = scratch.take<T>(a.K * ld);
      T* h = scratch.take<T>(ld);
      T* dh = scratch.take<T>(ld);
      auto* nonzeros = scratch.take<NonZero<T>>(a.K);
      if (!ds) return;
      for (int64_t k = 0; k < a.K; ++k)
        load_row<S, T>(static_cast<const S*>(a.ds) + ((b * a.D + d) * a.K + k) * a.H, a.H,
                       ds + k * ld);
      for (int64_t n = 0; n < a.N; ++n) {
        const int64_t at = ((b * a.N + n) * a.D + d) * a.H;
        if (a.dh) {
          const NonZero<T>* end =
              keep_nonzeros(a.K, nonzeros, [&](int64_t k) { return weight[k * a.N + n]; });
          add_scaled(nonzeros, end, ld, ds, ld, true, dh);
          store_row<S, T>(dh, a.H, static_cast<S*>(a.dh) + at);
        }
        if (!dweight) continue;
        load_row<S, T>(static_cast<const S*>(a.h) + at, a.H, h);
        for (int64_t k = 0; k < a.K; ++k) {
          Vec<T> sum{};
          for (int64_t j = 0; j < ld; j += kLanes<T>) sum += load(h + j) * load(ds + k * ld + j);
          dweight[(d * a.K + k) * a.N + n] += lane_sum(sum);
        }
      }
    });
  }
};
