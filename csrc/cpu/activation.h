// Activations on registers, and their derivatives from the output: act'(u) = derivative(act(u)).
//
// float tanh is a rational function fitted for this package: x P(x^2) / Q(x^2) with P, Q of degree
// 4 on |x| <= 8, largest absolute and relative error 4e-7; tanh(8) differs from 1 by 2.3e-7.
// sigmoid(x) = (1 + tanh(x / 2)) / 2. double goes through the C library, lane by lane. NaN goes
// through all of them.

STRNN_INLINE Vec<float> tanh_of(Vec<float> x) {
  constexpr float kLimit = 8.0f;
  constexpr float P[] = {9.999999936e-01f, 1.344450138e-01f, 3.571602070e-03f, 2.189472924e-05f,
                         1.523051315e-08f};
  constexpr float Q[] = {1.0f, 4.677782870e-01f, 2.616445830e-02f, 3.411298660e-04f,
                         8.522485164e-07f};
  x = x > kLimit ? splat(kLimit) : x;
  x = x < -kLimit ? splat(-kLimit) : x;
  const Vec<float> t = x * x;
  const Vec<float> p = (((P[4] * t + P[3]) * t + P[2]) * t + P[1]) * t + P[0];
  const Vec<float> q = (((Q[4] * t + Q[3]) * t + Q[2]) * t + Q[1]) * t + Q[0];
  Vec<float> y = x * p / q;
  y = y > 1.0f ? splat(1.0f) : y;  // rounding may pass 1, and 1 - y * y must not be negative
  return y < -1.0f ? splat(-1.0f) : y;
}

STRNN_INLINE Vec<double> tanh_of(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

template <int kActivation, typename V>
STRNN_INLINE V activate(V u) {
  if constexpr (kActivation == kRelu) return u < 0 ? V{} : u;
  if constexpr (kActivation == kTanh) return tanh_of(u);
  if constexpr (kActivation == kSigmoid)
    return tanh_of(u / 2) / 2 + V{} + 1 / decltype(u[0] + 0)(2);
  return u;
}

template <int kActivation, typename V>
STRNN_INLINE V derivative(V h) {
  if constexpr (kActivation == kRelu) return h > 0 ? V{} + 1 : V{};
  if constexpr (kActivation == kTanh) return 1 - h * h;
  if constexpr (kActivation == kSigmoid) return h * (1 - h);
  return V{} + 1;
}

// Calls f(std::integral_constant<int, activation>): the one place where the run-time code becomes a
// type.
template <typename F>
STRNN_INLINE void with_activation(int activation, const F& f) {
  switch (activation) {
    case kRelu:
      return f(std::integral_constant<int, kRelu>{});
    case kTanh:
      return f(std::integral_constant<int, kTanh>{});
    case kSigmoid:
      return f(std::integral_constant<int, kSigmoid>{});
    default:
      return f(std::integral_constant<int, kIdentity>{});
  }
}
