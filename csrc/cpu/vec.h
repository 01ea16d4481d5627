// Vec<T>: one register of T, through the compiler's vector extension, so that one source serves
// every instruction set. The register's width is the only thing that a capability decides; loads
// and stores of part of a register are the only place where it needs its own instructions.
//
// This header is included once per capability, inside that capability's namespace (see
// capability.h).

constexpr int kVecBytes = STRNN_VEC_BYTES;

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVecBytes)));
  typedef float half __attribute__((vector_size(kVecBytes / 2)));
  typedef int32_t bits __attribute__((vector_size(kVecBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVecBytes)));
  typedef double half __attribute__((vector_size(kVecBytes / 2)));
  typedef int64_t bits __attribute__((vector_size(kVecBytes)));
};
template <typename T>
using Vec = typename VecOf<T>::type;
template <typename T>
using VecBits = typename VecOf<T>::bits;

template <typename T>
using HalfVec = typename VecOf<T>::half;

template <typename T>
constexpr int kLanes = kVecBytes / sizeof(T);

template <typename T, typename V = Vec<T>>
STRNN_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T, typename V>
STRNN_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// acc + a b. A term of a product of bfloat16 may be a pair of them, neighbours along k, in one
// lane.
template <typename V>
STRNN_INLINE V add_term(V acc, V a, V b) {
  return acc + a * b;
}
using Pair = uint32_t;
template <>
struct VecOf<Pair> {
  typedef Pair type __attribute__((vector_size(kVecBytes)));
  typedef Pair half __attribute__((vector_size(kVecBytes / 2)));
  typedef int32_t bits __attribute__((vector_size(kVecBytes)));
};
#if defined(STRNN_PAIRS) && defined(__aarch64__)
// In words: clang 14 has the intrinsics only where all of the file is compiled for them.
STRNN_INLINE Vec<float> add_term(Vec<float> acc, Vec<Pair> a, Vec<Pair> b) {
  asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(acc) : "w"(a), "w"(b));
  return acc;
}
STRNN_INLINE HalfVec<float> add_term(HalfVec<float> acc, HalfVec<Pair> a, HalfVec<Pair> b) {
  asm("bfdot %0.2s, %1.4h, %2.4h" : "+w"(acc) : "w"(a), "w"(b));
  return acc;
}
STRNN_INLINE HalfVec<Pair> to_pairs(Vec<float> v) {
  HalfVec<Pair> pairs;
  asm("bfcvtn %0.4h, %1.4s" : "=w"(pairs) : "w"(v));
  return pairs;
}
#elif defined(STRNN_PAIRS)
STRNN_INLINE Vec<float> add_term(Vec<float> acc, Vec<Pair> a, Vec<Pair> b) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
}
STRNN_INLINE HalfVec<float> add_term(HalfVec<float> acc, HalfVec<Pair> a, HalfVec<Pair> b) {
  return (HalfVec<float>)_mm256_dpbf16_ps((__m256)acc, (__m256bh)a, (__m256bh)b);
}
STRNN_INLINE HalfVec<Pair> to_pairs(Vec<float> v) {
  return (HalfVec<Pair>)_mm512_cvtneps_pbh((__m512)v);
}
// The same lanes of two registers, as pairs.
STRNN_INLINE Vec<Pair> join(Vec<float> a, Vec<float> b) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (Vec<Pair>)_mm512_permutexvar_epi16(order,
                                             (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
}
#endif
#if defined(STRNN_PAIRS) && defined(__aarch64__)
STRNN_INLINE Vec<Pair> join(Vec<float> a, Vec<float> b) {
  typedef uint16_t Halves __attribute__((vector_size(kVecBytes / 2)));
  const auto widen = [](Vec<float> v) {
    return __builtin_convertvector((Halves)to_pairs(v), Vec<Pair>);
  };
  return widen(a) | widen(b) << 16;
}
#endif

// x - 0 is x, whatever x is, so this is a broadcast and nothing else; 0 + x is not, for x = -0.
template <typename T, typename V = Vec<T>>
STRNN_INLINE V splat(T x) {
  return x - V{};
}

template <typename Q>
STRNN_INLINE Q load_quad(const float* p) {
  Q q;
  __builtin_memcpy(&q, p, sizeof(q));
  return q;
}

// x between -limit and limit; a NaN stays one. In two instructions, which compilers do not make of
// comparisons of registers.
STRNN_INLINE Vec<float> clamp(Vec<float> x, float limit) {
#if STRNN_VEC_BYTES == 64
  const __m512 high = (__m512)splat(limit), low = (__m512)splat(-limit);
  return (Vec<float>)_mm512_max_ps(low, _mm512_min_ps(high, (__m512)x));
#elif STRNN_VEC_BYTES == 32
  const __m256 high = (__m256)splat(limit), low = (__m256)splat(-limit);
  return (Vec<float>)_mm256_max_ps(low, _mm256_min_ps(high, (__m256)x));
#else
  x = x > limit ? splat(limit) : x;
  return x < -limit ? splat(-limit) : x;
#endif
}

// The sum of a register's lanes.
STRNN_INLINE float lane_sum(Vec<float> v) {
  float part[kLanes<float>];
  store(part, v);
  typedef float Quad __attribute__((vector_size(16)));
  Quad sum = load_quad<Quad>(part);
  for (int i = 4; i < kLanes<float>; i += 4) sum += load_quad<Quad>(part + i);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
STRNN_INLINE double lane_sum(Vec<double> v) {
  double sum = 0;
  for (int i = 0; i < kLanes<double>; ++i) sum += v[i];
  return sum;
}

// Conversion of stored values, float, double, BFloat16 or Half (common/dtype.h), to and from a
// register of float or double: load_as and store_as of a whole register, load_partial and
// store_partial of n <= kLanes values; lanes past n read as zero.

#if STRNN_VEC_BYTES == 64
template <typename S, typename T>
Vec<T> load_partial(const S* p, int64_t n);
template <typename S, typename T>
void store_partial(S* p, int64_t n, Vec<T> v);

template <>
STRNN_INLINE Vec<float> load_partial<float, float>(const float* p, int64_t n) {
  return (Vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
template <>
STRNN_INLINE void store_partial<float, float>(float* p, int64_t n, Vec<float> v) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
}
template <>
STRNN_INLINE Vec<double> load_partial<double, double>(const double* p, int64_t n) {
  return (Vec<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1u), p);
}
template <>
STRNN_INLINE void store_partial<double, double>(double* p, int64_t n, Vec<double> v) {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1u), (__m512d)v);
}
template <>
STRNN_INLINE Vec<float> load_partial<BFloat16, float>(const BFloat16* p, int64_t n) {
  const __m256i raw = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1u), p);
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
}
template <>
STRNN_INLINE void store_partial<BFloat16, float>(BFloat16* p, int64_t n, Vec<float> v) {
  // Round to nearest even in integer arithmetic; a NaN keeps its sign and becomes quiet.
  const __m512i bits = (__m512i)v;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m256i packed = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, quiet));
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1u), packed);
}
template <>
STRNN_INLINE Vec<float> load_partial<Half, float>(const Half* p, int64_t n) {
  return (Vec<float>)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1u), p));
}
template <>
STRNN_INLINE void store_partial<Half, float>(Half* p, int64_t n, Vec<float> v) {
  const __m256i packed = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1u), packed);
}

template <typename S, typename T>
STRNN_INLINE Vec<T> load_as(const S* p) {
  if constexpr (std::is_same_v<S, T>)
    return load<T>(p);
  else
    return load_partial<S, T>(p, kLanes<T>);
}

template <typename S, typename T>
STRNN_INLINE void store_as(S* p, Vec<T> v) {
  if constexpr (std::is_same_v<S, T>)
    store<T>(p, v);
  else
    store_partial<S, T>(p, kLanes<T>, v);
}
#else
typedef uint16_t Narrow __attribute__((vector_size(kVecBytes / 2)));
typedef uint32_t Wide __attribute__((vector_size(kVecBytes)));

STRNN_INLINE Vec<float> widen(const BFloat16* p) {
  return (Vec<float>)(__builtin_convertvector(load<uint16_t, Narrow>(&p->bits), Wide) << 16);
}
STRNN_INLINE void narrow(BFloat16* p, Vec<float> v) {
  // Round to nearest even in integer arithmetic; a NaN keeps its sign and becomes quiet.
  const Wide bits = (Wide)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Wide is_nan = (Wide)(v != v);
  store(&p->bits,
        __builtin_convertvector((rounded & ~is_nan) | ((bits >> 16 | 0x40) & is_nan), Narrow));
}

#if STRNN_VEC_BYTES == 32
STRNN_INLINE Vec<float> widen(const Half* p) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
STRNN_INLINE void narrow(Half* p, Vec<float> v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
STRNN_INLINE Vec<float> widen(const Half* p) {
  return (Vec<float>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
}
STRNN_INLINE void narrow(Half* p, Vec<float> v) {
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
}
#else
STRNN_INLINE Vec<float> widen(const Half* p) {
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_acc(p[i]);
  return v;
}
STRNN_INLINE void narrow(Half* p, Vec<float> v) {
  for (int i = 0; i < kLanes<float>; ++i) p[i] = from_acc<Half>(v[i]);
}
#endif

template <typename S, typename T>
STRNN_INLINE Vec<T> load_as(const S* p) {
  if constexpr (std::is_same_v<S, T>)
    return load<T>(p);
  else
    return widen(p);
}

template <typename S, typename T>
STRNN_INLINE void store_as(S* p, Vec<T> v) {
  if constexpr (std::is_same_v<S, T>)
    store<T>(p, v);
  else
    narrow(p, v);
}

// A test for each lane instead of a loop of n, which the compilers take for a memcpy and call.
template <typename S, typename T>
STRNN_INLINE Vec<T> load_partial(const S* p, int64_t n) {
  S buffer[kLanes<T>] = {};
#pragma GCC unroll 8
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < n) buffer[i] = p[i];
  return load_as<S, T>(buffer);
}

template <typename S, typename T>
STRNN_INLINE void store_partial(S* p, int64_t n, Vec<T> v) {
  S buffer[kLanes<T>];
  store_as<S, T>(buffer, v);
#pragma GCC unroll 8
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < n) p[i] = buffer[i];
}

#if STRNN_VEC_BYTES == 32
STRNN_INLINE __m256i first_lanes_32(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
STRNN_INLINE Vec<float> load_partial<float, float>(const float* p, int64_t n) {
  return (Vec<float>)_mm256_maskload_ps(p, first_lanes_32(n));
}
// In pieces: a masked store is slow on Zen.
template <>
STRNN_INLINE void store_partial<float, float>(float* p, int64_t n, Vec<float> v) {
  if (n == kLanes<float>) return store(p, v);
  __m128 piece = _mm256_castps256_ps128((__m256)v);
  if (n & 4) {
    _mm_storeu_ps(p, piece);
    piece = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64*)p, piece);
    piece = _mm_movehl_ps(piece, piece);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, piece);
}
#endif
#endif

// The first `lanes` of a register, of which there may be as many as it has.
template <typename S, typename T>
STRNN_INLINE Vec<T> load_lanes(const S* p, int64_t lanes) {
  return lanes == kLanes<T> ? load_as<S, T>(p) : load_partial<S, T>(p, lanes);
}
template <typename S, typename T>
STRNN_INLINE void store_lanes(S* p, int64_t lanes, Vec<T> v) {
  if (lanes == kLanes<T>)
    store_as<S, T>(p, v);
  else
    store_partial<S, T>(p, lanes, v);
}

// Lanes I of a and b, which follow a's.
template <typename T, int... I>
STRNN_INLINE Vec<T> lanes_of(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, VecBits<T>{I...});
#endif
}

// Transposes a square of as many registers as they have lanes: squares of kStep off the diagonal of
// those of twice the size change places.
template <typename T, int kStep = 1, int... I>
STRNN_INLINE void transpose(Vec<T>* rows, std::integer_sequence<int, I...> lanes) {
  constexpr int kCount = sizeof...(I);
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    if (i & kStep) continue;
    const Vec<T> a = rows[i], b = rows[i + kStep];
    rows[i] = lanes_of<T, (I & kStep ? kCount + I - kStep : I)...>(a, b);
    rows[i + kStep] = lanes_of<T, (I & kStep ? kCount + I : I + kStep)...>(a, b);
  }
  if constexpr (kStep * 2 < kCount) transpose<T, kStep * 2>(rows, lanes);
}

// Asks for the cache lines of n stored values, of which the last may lie in one more. The rows of
// neighbouring visits lie far apart, so the processor does not foresee them.
template <typename S>
STRNN_INLINE void prefetch_to_read(const S* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(S)) __builtin_prefetch(p + i, 0);
  __builtin_prefetch(p + n - 1, 0);
}
template <typename S>
STRNN_INLINE void prefetch_to_write(const S* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(S)) __builtin_prefetch(p + i, 1);
  __builtin_prefetch(p + n - 1, 1);
}

// Rows: n stored values <-> a buffer of whole registers whose tail reads as zero.

template <typename S, typename T>
STRNN_INLINE void load_row(const S* from, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store<T>(to + i, load_as<S, T>(from + i));
  if (i < n) store<T>(to + i, load_partial<S, T>(from + i, n - i));
}

template <typename S, typename T>
STRNN_INLINE void store_row(const T* from, int64_t n, S* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store_as<S, T>(to + i, load<T>(from + i));
  if (i < n) store_partial<S, T>(to + i, n - i, load<T>(from + i));
}

// A register past the caches, to a whole number of lines, where there is an instruction for it;
// others see it after stream_end.
constexpr bool kCanStream = STRNN_VEC_BYTES >= 32;
template <typename T>
STRNN_INLINE void stream(T* p, Vec<T> v) {
#if STRNN_VEC_BYTES == 64
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif STRNN_VEC_BYTES == 32
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
  store(p, v);
#endif
}
STRNN_INLINE void stream_end() {
#if STRNN_VEC_BYTES >= 32
  _mm_sfence();
#endif
}

// The factors of a product: values as they are computed with, or pairs of bfloat16. A row of n
// values is terms_of<E>(n) of them; pairs that it does not fill are zero, or end with zero.
template <typename E>
constexpr int64_t terms_of(int64_t n) {
  constexpr int64_t kStep = 2 * Tiles::kTerms;
  return std::is_same_v<E, Pair> ? (n + kStep - 1) / kStep * Tiles::kTerms : n;
}
template <typename S, typename E>
STRNN_INLINE Vec<E> load_factors(const S* p, int64_t n) {
  if constexpr (!std::is_same_v<E, Pair>) {
    return load_lanes<S, E>(p, n);
  } else {
#if STRNN_VEC_BYTES == 64
    const __mmask32 lanes = n < 32 ? (1u << n) - 1u : ~0u;
    return (Vec<E>)_mm512_maskz_loadu_epi16(lanes, p);
#else
    Vec<E> v{};
    std::memcpy(&v, p, n * sizeof(S));
    return v;
#endif
  }
}
template <typename S, typename E>
STRNN_INLINE void load_factor_row(const S* from, int64_t n, E* to) {
  if constexpr (!std::is_same_v<E, Pair>) return load_row<S, E>(from, n, to);
  for (int64_t j = 0; j < n; j += 2 * kLanes<E>)
    store(to + j / 2, load_factors<S, E>(from + j, std::min<int64_t>(2 * kLanes<E>, n - j)));
}
// The same, and a request for the row that lies so far ahead.
template <typename S, typename E>
STRNN_INLINE void load_row_ahead(const S* from, int64_t n, int64_t ahead, E* to) {
  prefetch_to_read(from + ahead, n);
  load_factor_row<S, E>(from, n, to);
}
