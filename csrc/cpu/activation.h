// Activations on registers, for the cells of common/cell.h.
//
// float tanh is a rational function fitted for this package: x P(x^2) / Q(x^2) with P, Q of degree
// 4 on |x| <= 8, largest absolute and relative error 4e-7; tanh(8) differs from 1 by 2.3e-7.
// sigmoid(x) = (1 + tanh(x / 2)) / 2. double goes through the C library, lane by lane. NaN goes
// through all of them.

// p / q that is not divided yet: a product, or a sum of two, takes one division at the end.
template <typename V>
struct Fraction {
  V p, q;
};
template <typename V>
STRNN_INLINE Fraction<V> operator*(Fraction<V> a, Fraction<V> b) {
  return {a.p * b.p, a.q * b.q};
}
template <typename V>
STRNN_INLINE Fraction<V> operator*(Fraction<V> a, V b) {
  return {a.p * b, a.q};
}
template <typename V>
STRNN_INLINE Fraction<V> operator+(Fraction<V> a, Fraction<V> b) {
  return {a.p * b.q + b.p * a.q, a.q * b.q};
}
template <typename V>
STRNN_INLINE Fraction<V> mix(Fraction<V> z, V m, Fraction<V> n) {
  return {z.p * m * n.q + (z.q - z.p) * n.p, z.q * n.q};
}
template <typename V>
STRNN_INLINE V value_of(Fraction<V> a) {
  return a.p / a.q;
}
STRNN_INLINE Vec<double> value_of(Vec<double> a) { return a; }

STRNN_INLINE Fraction<Vec<float>> tanh_factor(Vec<float> x) {
  constexpr float kLimit = 8.0f;
  constexpr float P[] = {9.999999936e-01f, 1.344450138e-01f, 3.571602070e-03f, 2.189472924e-05f,
                         1.523051315e-08f};
  constexpr float Q[] = {1.0f, 4.677782870e-01f, 2.616445830e-02f, 3.411298660e-04f,
                         8.522485164e-07f};
  x = clamp(x, kLimit);
  const Vec<float> t = x * x;
  const Vec<float> p = (((P[4] * t + P[3]) * t + P[2]) * t + P[1]) * t + P[0];
  const Vec<float> q = (((Q[4] * t + Q[3]) * t + Q[2]) * t + Q[1]) * t + Q[0];
  return {x * p, q};
}
STRNN_INLINE Fraction<Vec<float>> sigmoid_factor(Vec<float> x) {
  const Fraction<Vec<float>> y = tanh_factor(x / 2);
  return {y.p + y.q, y.q + y.q};
}

STRNN_INLINE Vec<float> tanh_of(Vec<float> x) {
  return clamp(value_of(tanh_factor(x)), 1.0f);  // rounding may pass 1; 1 - y * y must not be < 0
}
STRNN_INLINE Vec<double> tanh_of(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

template <typename V>
STRNN_INLINE V sigmoid_of(V x) {
  return tanh_of(x / 2) / 2 + V{} + 1 / decltype(x[0] + 0)(2);
}

STRNN_INLINE Vec<double> tanh_factor(Vec<double> x) { return tanh_of(x); }
STRNN_INLINE Vec<double> sigmoid_factor(Vec<double> x) { return sigmoid_of(x); }
