// Instructions that compute lane by lane, and those that exchange registers within a warp.
#include <algorithm>
#include <limits>

#include "machine.h"

namespace ptx {

std::map<std::string, Op>& ops() {
  static std::map<std::string, Op> all;
  return all;
}

namespace {

using std::string;

// What values of a type are calculated in.
template <class T>
struct Exact {
  using type = T;
};
template <>
struct Exact<f16> {
  using type = double;
};
template <>
struct Exact<bf16> {
  using type = double;
};

template <class T>
auto operand(const Ins& i, Warp& w, int n, int lane) {
  const T x = get<T>(w.reg(i.s[n]), lane);
  if constexpr (std::is_same_v<T, f32>)
    return (i.flags & kFtz) && std::fabs(x) < 1.17549435e-38f ? std::copysign(0.f, x) : x;
  else if constexpr (kIsFloat<T>)
    return value_of(x);
  else
    return x;
}
template <class T>
T result(const Ins& i, typename Exact<T>::type x) {
  if constexpr (kIsFloat<T>)
    if (i.flags & kSat) x = x > 0 ? (x > 1 ? 1 : x) : 0;
  if constexpr (std::is_same_v<T, f32>)
    if ((i.flags & kFtz) && std::fabs(x) < 1.17549435e-38f) x = std::copysign(0.f, x);
  if constexpr (kIsFloat<T>)
    return rounded<T>(x);
  else
    return x;
}

// d = f(s...) of a type; of two halves of a register where the type has 16 bits and is a float.
template <class T, int kOperands, class F>
void compute(const string& name, F) {
  const auto apply = []<class G>(const Ins& i, G x) {
    using E = typename Exact<T>::type;
    if constexpr (kOperands == 1)
      return result<T>(i, static_cast<E>(F{}(x(0))));
    else if constexpr (kOperands == 2)
      return result<T>(i, static_cast<E>(F{}(x(0), x(1))));
    else
      return result<T>(i, static_cast<E>(F{}(x(0), x(1), x(2))));
  };
  using Apply = decltype(apply);
  define(name, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<T>(w, i, lanes,
              [&](int l) { return Apply{}(i, [&](int n) { return operand<T>(i, w, n, l); }); });
  });
  if constexpr (kIsFloat<T> && sizeof(T) == 2)
    define(name + "x2", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
      assign<u32>(w, i, lanes, [&](int l) {
        const auto half = [&](int h) -> u32 {
          return Apply{}(
                     i,
                     [&](int n) {
                       return value_of(T{static_cast<u16>(get<u32>(w.reg(i.s[n]), l) >> 16 * h)});
                     })
              .bits;
        };
        return half(0) | half(1) << 16;
      });
    });
}
template <class T, class F>
void unary(const string& name, F f) {
  compute<T, 1>(name, f);
}
template <class T, class F>
void binary(const string& name, F f) {
  compute<T, 2>(name, f);
}

// p = f(a, b), the other predicate its opposite; both combined with a third by and, or, xor.
template <class T, class F>
void compare(const string& name, F) {
  define("setp." + name, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    u32 yes = 0;
    for_lanes(lanes, [&](int l) {
      yes |= static_cast<u32>(F{}(operand<T>(i, w, 0, l), operand<T>(i, w, 1, l))) << l;
    });
    u32 no = ~yes;
    if (i.imm) {
      const u32 c = w.pred(i.s[2]);
      for (u32* x : {&yes, &no}) *x = i.imm == 1 ? *x & c : i.imm == 2 ? *x | c : *x ^ c;
    }
    w.set(i.d[0], lanes, yes);
    if (i.dests > 1) w.set(i.d[1], lanes, no);
  });
  // Of pairs: a predicate for each half.
  if constexpr (std::is_same_v<T, f16> || std::is_same_v<T, bf16>)
    define("setp." + name + "x2", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
      if (i.imm || i.dests != 2)
        throw std::runtime_error("setp of pairs: two predicates, no third");
      for (int h = 0; h < 2; ++h) {
        u32 yes = 0;
        for_lanes(lanes, [&](int l) {
          const auto half = [&](int n) {
            return value_of(T{static_cast<u16>(get<u32>(w.reg(i.s[n]), l) >> 16 * h)});
          };
          yes |= static_cast<u32>(F{}(half(0), half(1))) << l;
        });
        w.set(i.d[h], lanes, yes);
      }
    });
}
template <class T>
void comparisons(const string& type) {
  compare<T>("eq." + type, [](auto a, auto b) { return a == b; });
  compare<T>("ne." + type, [](auto a, auto b) { return a < b || a > b; });
  compare<T>("lt." + type, [](auto a, auto b) { return a < b; });
  compare<T>("le." + type, [](auto a, auto b) { return a <= b; });
  compare<T>("gt." + type, [](auto a, auto b) { return a > b; });
  compare<T>("ge." + type, [](auto a, auto b) { return a >= b; });
}

template <class T>
void bits(const string& type) {
  binary<T>("and." + type, [](T a, T b) -> T { return a & b; });
  binary<T>("or." + type, [](T a, T b) -> T { return a | b; });
  binary<T>("xor." + type, [](T a, T b) -> T { return a ^ b; });
  unary<T>("not." + type, [](T a) -> T { return ~a; });
  unary<T>("mov." + type, [](T a) { return a; });
  comparisons<T>(type);
  define("selp." + type, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    const u32 c = w.pred(i.s[2]);
    assign<T>(w, i, lanes, [&](int l) { return get<T>(w.reg(i.s[c >> l & 1 ? 0 : 1]), l); });
  });
  define("shl." + type, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<T>(w, i, lanes, [&](int l) -> T {
      const u32 by = get<u32>(w.reg(i.s[1]), l);
      return by < 8 * sizeof(T) ? get<T>(w.reg(i.s[0]), l) << by : 0;
    });
  });
}

// Sums and products wrap, as those of unsigned numbers do.
template <class T>
void integers(const string& type) {
  binary<T>("add." + type, [](T a, T b) { return T(u64(a) + u64(b)); });
  binary<T>("sub." + type, [](T a, T b) { return T(u64(a) - u64(b)); });
  binary<T>("mul.lo." + type, [](T a, T b) { return T(u64(a) * u64(b)); });
  compute<T, 3>("mad.lo." + type, [](T a, T b, T c) { return T(u64(a) * u64(b) + u64(c)); });
  binary<T>("min." + type, [](T a, T b) { return std::min(a, b); });
  binary<T>("max." + type, [](T a, T b) { return std::max(a, b); });
  binary<T>("div." + type, [](T a, T b) -> T {
    if (b == 0) return T(~u64(0));
    return b == T(-1) && std::is_signed_v<T> ? T(0 - u64(a)) : T(a / b);
  });
  binary<T>("rem." + type, [](T a, T b) -> T {
    if (b == 0) return a;
    return b == T(-1) && std::is_signed_v<T> ? T(0) : T(a % b);
  });
  unary<T>("neg." + type, [](T a) { return T(0 - u64(a)); });
  unary<T>("abs." + type, [](T a) { return a < T(0) ? T(0 - u64(a)) : a; });
  comparisons<T>(type);
  define("shr." + type, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<T>(w, i, lanes, [&](int l) -> T {
      const u32 by = get<u32>(w.reg(i.s[1]), l);
      const T x = get<T>(w.reg(i.s[0]), l);
      return by < 8 * sizeof(T) ? x >> by : (x < T(0) ? T(-1) : T(0));
    });
  });
}
template <class T, class W>  // products of twice the width
void wide(const string& type) {
  binary<T>("mul.hi." + type, [](T a, T b) { return T(W(a) * W(b) >> 8 * sizeof(T)); });
  if constexpr (sizeof(W) <= 8) {
    define("mul.wide." + type, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
      assign<W>(w, i, lanes,
                [&](int l) { return W(get<T>(w.reg(i.s[0]), l)) * W(get<T>(w.reg(i.s[1]), l)); });
    });
    define("mad.wide." + type, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
      assign<W>(w, i, lanes, [&](int l) {
        const W product = W(get<T>(w.reg(i.s[0]), l)) * W(get<T>(w.reg(i.s[1]), l));
        return W(u64(product) + u64(get<W>(w.reg(i.s[2]), l)));
      });
    });
  }
}

template <class E>
E smaller(E a, E b) {
  return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? a : b) : std::min(a, b);
}
template <class T>
void floats(const string& type) {
  using E = typename Exact<T>::type;
  binary<T>("add." + type, [](E a, E b) { return a + b; });
  binary<T>("sub." + type, [](E a, E b) { return a - b; });
  binary<T>("mul." + type, [](E a, E b) { return a * b; });
  compute<T, 3>("fma." + type, [](E a, E b, E c) { return std::fma(a, b, c); });
  binary<T>("min." + type, [](E a, E b) { return smaller(a, b); });
  binary<T>("max." + type, [](E a, E b) { return -smaller(-a, -b); });
  binary<T>("min.NaN." + type, [](E a, E b) { return a != a || b != b ? a + b : smaller(a, b); });
  binary<T>("max.NaN." + type,
            [](E a, E b) { return a != a || b != b ? a + b : -smaller(-a, -b); });
  unary<T>("neg." + type, [](E a) { return -a; });
  unary<T>("abs." + type, [](E a) { return std::fabs(a); });
  comparisons<T>(type);
  compare<T>("equ." + type, [](E a, E b) { return !(a < b || a > b); });
  compare<T>("neu." + type, [](E a, E b) { return a != b; });
  compare<T>("ltu." + type, [](E a, E b) { return !(a >= b); });
  compare<T>("leu." + type, [](E a, E b) { return !(a > b); });
  compare<T>("gtu." + type, [](E a, E b) { return !(a <= b); });
  compare<T>("geu." + type, [](E a, E b) { return !(a < b); });
  compare<T>("num." + type, [](E a, E b) { return a == a && b == b; });
  compare<T>("nan." + type, [](E a, E b) { return a != a || b != b; });
}
template <class T>
void exact_functions(const string& type) {
  binary<T>("div.rn." + type, [](T a, T b) { return a / b; });
  unary<T>("rcp.rn." + type, [](T a) { return 1 / a; });
  unary<T>("sqrt.rn." + type, [](T a) { return std::sqrt(a); });
  binary<T>("copysign." + type, [](T a, T b) { return std::copysign(b, a); });
}

// A value within the documented error of an approximation: its error depends on the operand.
f32 near(double y, f32 x, double relative) {
  u32 b = as<u32>(x) * 2654435761u;
  b = (b ^ b >> 15) * 2246822519u;
  return static_cast<f32>(y * (1 + relative * static_cast<s32>(b ^ b >> 13) * 0x1p-31));
}
void approximations() {
  for (const char* kind : {"full", "approx"})
    binary<f32>(string("div.") + kind + ".f32",
                [](f32 a, f32 b) { return near(double(a) / b, a + b, 1.1e-7); });
  unary<f32>("sqrt.approx.f32", [](f32 a) { return near(std::sqrt(double(a)), a, 1.2e-7); });
  unary<f32>("rsqrt.approx.f32", [](f32 a) { return near(1 / std::sqrt(double(a)), a, 1.3e-7); });
  unary<f32>("rcp.approx.f32", [](f32 a) {
    int exponent;
    return std::frexp(a, &exponent) == 0.5f ? 1 / a : near(1.0 / a, a, 1.1e-7);
  });
  // Exact at integers: the library's functions in double rely on it.
  unary<f32>("ex2.approx.f32", [](f32 a) {
    const double y = std::exp2(double(a));
    return a == std::floor(a) ? static_cast<f32>(y) : near(y, a, 2.3e-7);
  });
  unary<f32>("lg2.approx.f32", [](f32 a) { return std::log2(a); });
  unary<f32>("tanh.approx.f32",
             [](f32 a) { return std::clamp(near(std::tanh(double(a)), a, 4.8e-4), -1.f, 1.f); });
  // Only the high half counts.
  unary<f64>("rcp.approx.f64", [](f64 a) { return as<f64>(as<u64>(1 / a) & ~0xffffffffull); });
}

// cvt: imm is 0 nearest, 1 toward zero, 2 down, 3 up; + 8: to an integral value.
double integral(double x, s64 mode) {
  switch (mode & 7) {
    case 0:
      return std::nearbyint(x);
    case 1:
      return std::trunc(x);
    case 2:
      return std::floor(x);
    default:
      return std::ceil(x);
  }
}
template <class D, class S>
D converted(const Ins& i, S x) {
  using Limits = std::numeric_limits<D>;
  if constexpr (kIsFloat<D>) {
    if (i.imm & 8) return result<D>(i, integral(x, i.imm));
    if constexpr (sizeof(D) < sizeof(S) && std::is_same_v<D, f32> && std::is_same_v<S, f64>)
      if (const f32 y = x; i.imm == 1 && std::fabs(double(y)) > std::fabs(x))
        return std::nextafter(y, 0.f);
    return result<D>(i, static_cast<typename Exact<D>::type>(x));
  } else if constexpr (std::is_floating_point_v<S>) {
    const double y = integral(x, i.imm);
    if (y != y) return sizeof(D) == 8 ? D(1ull << 63) : D(0);
    if (y <= double(Limits::min())) return Limits::min();
    return y >= double(Limits::max()) ? Limits::max() : D(y);
  } else {
    if (i.flags & kSat) return D(std::clamp<__int128>(x, Limits::min(), Limits::max()));
    return D(x);
  }
}
template <class D, class S>
void conversion(const string& to, const string& from) {
  define("cvt." + to + "." + from, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    const auto of = [&](int l) { return converted<D>(i, operand<S>(i, w, 0, l)); };
    if constexpr (!kIsFloat<D>)
      if (i.flags & kWide)
        return assign<s64>(w, i, lanes, [&](int l) { return static_cast<s64>(of(l)); });
    assign<D>(w, i, lanes, of);
  });
}
template <class S>
void conversions(const string& from) {
  conversion<u8, S>("u8", from), conversion<s8, S>("s8", from);
  conversion<u16, S>("u16", from), conversion<s16, S>("s16", from);
  conversion<u32, S>("u32", from), conversion<s32, S>("s32", from);
  conversion<u64, S>("u64", from), conversion<s64, S>("s64", from);
  conversion<f16, S>("f16", from), conversion<bf16, S>("bf16", from);
  conversion<f32, S>("f32", from), conversion<f64, S>("f64", from);
}
template <class T>
void conversion_of_two(const string& to) {
  define("cvt." + to + "x2.f32", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<u32>(w, i, lanes, [&](int l) -> u32 {
      const auto half = [&](int n) -> u32 { return result<T>(i, operand<f32>(i, w, n, l)).bits; };
      return half(0) << 16 | half(1);
    });
  });
}
u32 to_tf32(u32 x, u32 to_even) {
  const bool is_finite = (x & 0x7f800000) != 0x7f800000;
  return is_finite ? (x + 0xfff + to_even) & ~0x1fffu : x;
}

template <class F>  // of two predicates; one that does not look at b is of one
void predicates(const string& name, F) {
  define(name + ".pred", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    w.set(i.d[0], lanes, F{}(w.pred(i.s[0]), w.pred(i.s[i.sources - 1])));
  });
}

template <class F>  // u32 f(a, b, c, d)
void words(const string& name, F) {
  define(name, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<u32>(w, i, lanes, [&](int l) -> u32 {
      u32 x[4] = {};
      for (int n = 0; n < i.sources; ++n) x[n] = get<u32>(w.reg(i.s[n]), l);
      return F{}(x[0], x[1], x[2], x[3], i.imm);
    });
  });
}
u64 low(u32 n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }
void bit_fields() {
  words("popc.b32", [](u32 a, auto...) { return __builtin_popcount(a); });
  words("clz.b32", [](u32 a, auto...) { return a ? __builtin_clz(a) : 32; });
  words("bfe.u32", [](u32 a, u32 at, u32 n, auto...) {
    return (u64(a) >> std::min(at & 255, 63u)) & low(n & 255);
  });
  words("bfe.s32", [](u32 a, u32 at, u32 n, auto...) {
    n &= 255;
    const u64 x = s64(s32(a)) >> std::min(at & 255, 63u);
    return n >= 32 ? x : n && x >> (n - 1) & 1 ? x | ~low(n) : x & low(n);
  });
  words("bfi.b32", [](u32 a, u32 b, u32 at, u32 n, auto...) -> u32 {
    const u64 mask = (at & 255) > 31 ? 0 : low(std::min(n & 255, 32u)) << (at & 255);
    return (b & ~mask) | ((u64(a) << (at & 31)) & mask);
  });
  words("prmt.b32", [](u32 a, u32 b, u32 c, auto...) {
    u32 y = 0;
    for (int k = 0; k < 4; ++k) {
      const u32 s = c >> 4 * k & 15, x = (u64(b) << 32 | a) >> 8 * (s & 7) & 255;
      y |= (s & 8 ? (x & 128 ? 255 : 0) : x) << 8 * k;
    }
    return y;
  });
  words("lop3.b32", [](u32 a, u32 b, u32 c, u32 table, auto...) {
    u32 y = 0;
    for (int k = 0; k < 8; ++k)
      if (table >> k & 1) y |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
    return y;
  });
  words("shf.l.b32", [](u32 a, u32 b, u32 n, u32, s64 wraps) {
    return (u64(b) << 32 | a) << (wraps ? n & 31 : std::min(n, 32u)) >> 32;
  });
  words("shf.r.b32", [](u32 a, u32 b, u32 n, u32, s64 wraps) {
    return (u64(b) << 32 | a) >> (wraps ? n & 31 : std::min(n, 32u));
  });
  words("cvt.rna.tf32.f32", [](u32 a, auto...) { return to_tf32(a, 1); });
  words("cvt.rn.tf32.f32", [](u32 a, auto...) { return to_tf32(a, a >> 13 & 1); });
}

// mov of a vector; imm: bits of a part.
void pack(Machine&, Warp& w, const Ins& i, u32 lanes) {
  for_lanes(lanes, [&](int l) {
    u64 value = 0;
    for (int k = 0; k < i.sources; ++k)
      value |= (get<u32>(w.reg(i.s[k]), l) & low(i.imm)) << k * i.imm;
    if (i.sources * i.imm == 64)
      put<u64>(w.reg(i.d[0]), l, value);
    else
      put<u32>(w.reg(i.d[0]), l, value);
  });
}
void unpack(Machine&, Warp& w, const Ins& i, u32 lanes) {
  for_lanes(lanes, [&](int l) {
    const u32* a = w.reg(i.s[0]);
    const u64 value = i.dests * i.imm == 64 ? get<u64>(a, l) : get<u32>(a, l);
    for (int k = 0; k < i.dests; ++k)
      if (i.d[k] >= 0) put<u32>(w.reg(i.d[k]), l, value >> k * i.imm & low(i.imm));
  });
}

enum Mode { kUp, kDown, kButterfly, kIndex };
template <Mode kMode>
void shuffle(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u32 out[32], inside = 0;
  for_lanes(lanes, [&](int l) {
    const auto word = [&](int n) { return get<u32>(w.reg(i.s[n]), l); };
    const int by = word(1) & 31, clamp = word(2) & 31, segment = word(2) >> 8 & 31;
    const int last = (l & segment) | (clamp & ~segment);
    int from = kMode == kUp          ? l - by
               : kMode == kDown      ? l + by
               : kMode == kButterfly ? l ^ by
                                     : (l & segment) | (by & ~segment);
    const bool is_inside = kMode == kUp ? from >= last : from <= last;
    if (!is_inside) from = l;
    if (from < 0 || from > 31 || !(lanes >> from & 1))
      m.fail("shfl reads lane " + std::to_string(from) + ", which does not take part", w, i, l);
    out[l] = get<u32>(w.reg(i.s[0]), from);
    inside |= static_cast<u32>(is_inside) << l;
  });
  for_lanes(lanes, [&](int l) { put<u32>(w.reg(i.d[0]), l, out[l]); });
  if (i.dests > 1) w.set(i.d[1], lanes, inside);
}

template <class T, class F>
void reduction(const string& name, F) {
  define("redux." + name, [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    T all = get<T>(w.reg(i.s[0]), __builtin_ctz(lanes));
    for_lanes(lanes & (lanes - 1), [&](int l) { all = F{}(all, get<T>(w.reg(i.s[0]), l)); });
    assign<T>(w, i, lanes, [&](int) { return all; });
  });
}

}  // namespace

void define_arithmetic() {
  bits<u16>("b16"), bits<u32>("b32"), bits<u64>("b64");
  integers<u16>("u16"), integers<u32>("u32"), integers<u64>("u64");
  integers<s16>("s16"), integers<s32>("s32"), integers<s64>("s64");
  for (const auto& [from, to] : {std::pair{"u16", "b16"}, {"u32", "b32"}, {"u64", "b64"}})
    ops()[string("shr.") + to] = ops()[string("shr.") + from];
  wide<u16, u32>("u16"), wide<u32, u64>("u32"), wide<u64, unsigned __int128>("u64");
  wide<s16, s32>("s16"), wide<s32, s64>("s32"), wide<s64, __int128>("s64");
  floats<f16>("f16"), floats<bf16>("bf16"), floats<f32>("f32"), floats<f64>("f64");
  exact_functions<f32>("f32"), exact_functions<f64>("f64");
  approximations();
  conversions<u8>("u8"), conversions<s8>("s8"), conversions<u16>("u16"), conversions<s16>("s16");
  conversions<u32>("u32"), conversions<s32>("s32"), conversions<u64>("u64");
  conversions<s64>("s64"), conversions<f16>("f16"), conversions<bf16>("bf16");
  conversions<f32>("f32"), conversions<f64>("f64");
  conversion_of_two<f16>("f16"), conversion_of_two<bf16>("bf16");
  predicates("mov", [](u32 a, u32) { return a; });
  predicates("not", [](u32 a, u32) { return ~a; });
  predicates("and", [](u32 a, u32 b) { return a & b; });
  predicates("or", [](u32 a, u32 b) { return a | b; });
  predicates("xor", [](u32 a, u32 b) { return a ^ b; });
  bit_fields();
  define("pack", pack);
  define("unpack", unpack);
  define("shfl.up", shuffle<kUp>);
  define("shfl.down", shuffle<kDown>);
  define("shfl.bfly", shuffle<kButterfly>);
  define("shfl.idx", shuffle<kIndex>);
  reduction<s32>("max.s32", [](s32 a, s32 b) { return std::max(a, b); });
  reduction<s32>("min.s32", [](s32 a, s32 b) { return std::min(a, b); });
  define("vote.ballot", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    const u32 yes = w.pred(i.s[0]) & lanes;
    assign<u32>(w, i, lanes, [&](int) { return yes; });
  });
}

}  // namespace ptx
