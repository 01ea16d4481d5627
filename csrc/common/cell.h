// Cells: what turns a node's pre-activations, and what is carried to it, into its state. The
// formulas of each cell stand here once, for host and device, for scalars and registers.
//
// A row of pre-activations has kBlocks blocks of H: the product with x adds to the first kGates of
// them, the product with q to the last kGates. They are the same blocks but for a gru, whose new
// gate keeps the two apart: nx, r, z, nh. kInputGate and kStateGate name the block of rows of w_ih
// and w_hh (torch's order) behind each block of a row, kBiasGate the block of a bias in one piece.
//
//   forward(a, m)               the state from pre-activations a[kBlocks] and the carried m
//   save(a, m, saved)           what backward wants to know: saved[kSaved], see saved_of
//   backward(saved, h, dh, dc)  the gradients of a, and of m, from those of h and c
//
// V is float, double or a register of them. The includer brings, for its V, tanh_of(v) and
// sigmoid_of(v), which give a V within their bounds, and tanh_factor(v) and sigmoid_factor(v),
// which give anything that can be multiplied (with each other and with a V), added, mixed (below),
// and turned into a V at the end by value_of: plain V, or a fraction, so that a product of
// activations is one division.
//
// No namespace and no include guard: on a CPU this is compiled for each instruction set, inside its
// namespace.

// mix(z, m, n) = z m + (1 - z) n.
template <typename V>
STRNN_CELL_INLINE V mix(V z, V m, V n) {
  return z * m + (1 - z) * n;
}

enum class Carry { kNothing, kState, kCell };  // m is not used, the reduced h, the reduced c

template <typename V>
struct CellState {
  V h, c;
};

template <typename V, int kBlocks>
struct CellGradient {
  V a[kBlocks];
  V m;
};

// One gate and no carry: h = act(a), and act' follows from h.
template <int kActivation>
struct ElmanCell {
  static constexpr int kGates = 1, kBlocks = 1, kSaved = 0;
  static constexpr int kInputGate[] = {0}, kStateGate[] = {0}, kBiasGate[] = {0};
  static constexpr Carry kCarry = Carry::kNothing;

  template <typename V>
  STRNN_CELL_INLINE static CellState<V> forward(const V* a, V) {
    if constexpr (kActivation == kRelu) return {a[0] < 0 ? V{} : a[0], V{}};
    if constexpr (kActivation == kTanh) return {tanh_of(a[0]), V{}};
    if constexpr (kActivation == kSigmoid) return {sigmoid_of(a[0]), V{}};
    return {a[0], V{}};
  }
  template <typename V>
  STRNN_CELL_INLINE static void save(const V*, V, V*) {}
  template <typename V>
  STRNN_CELL_INLINE static CellGradient<V, 1> backward(const V*, V h, V dh, V) {
    if constexpr (kActivation == kRelu) return {{(h <= 0 ? V{} : V{} + 1) * dh}, V{}};
    if constexpr (kActivation == kTanh) return {{(1 - h * h) * dh}, V{}};
    if constexpr (kActivation == kSigmoid) return {{h * (1 - h) * dh}, V{}};
    return {{dh}, V{}};
  }
};

// r = sigmoid(a_r), z = sigmoid(a_z), n = tanh(nx + r nh), h = z m + (1 - z) n
struct GruCell {
  static constexpr int kGates = 3, kBlocks = 4, kSaved = 5;
  static constexpr int kInputGate[] = {2, 0, 1}, kStateGate[] = {0, 1, 2};
  static constexpr int kBiasGate[] = {2, 0, 1, 3};
  static constexpr Carry kCarry = Carry::kState;

  template <typename V>
  STRNN_CELL_INLINE static CellState<V> forward(const V* a, V m) {
    const V n = a[0] + value_of(sigmoid_factor(a[1]) * a[3]);
    return {value_of(mix(sigmoid_factor(a[2]), m, tanh_factor(n))), V{}};
  }
  template <typename V>
  STRNN_CELL_INLINE static void save(const V* a, V m, V* saved) {
    saved[0] = sigmoid_of(a[1]);
    saved[1] = sigmoid_of(a[2]);
    saved[2] = tanh_of(a[0] + saved[0] * a[3]);
    saved[3] = a[3];
    saved[4] = m;
  }
  template <typename V>
  STRNN_CELL_INLINE static CellGradient<V, 4> backward(const V* saved, V, V dh, V) {
    const V r = saved[0], z = saved[1], n = saved[2], nh = saved[3], m = saved[4];
    const V dn = dh * (1 - z) * (1 - n * n);
    return {{dn, dn * nh * (r * (1 - r)), dh * (m - n) * (z * (1 - z)), dn * r}, dh * z};
  }
};

// i = sigmoid(a_i), f = sigmoid(a_f), g = tanh(a_g), o = sigmoid(a_o), c = f m + i g, h = o tanh(c)
struct LstmCell {
  static constexpr int kGates = 4, kBlocks = 4, kSaved = 5;
  static constexpr int kInputGate[] = {0, 1, 2, 3}, kStateGate[] = {0, 1, 2, 3};
  static constexpr int kBiasGate[] = {0, 1, 2, 3};
  static constexpr Carry kCarry = Carry::kCell;

  template <typename V>
  STRNN_CELL_INLINE static CellState<V> forward(const V* a, V m) {
    const V c = value_of(sigmoid_factor(a[1]) * m + sigmoid_factor(a[0]) * tanh_factor(a[2]));
    return {value_of(sigmoid_factor(a[3]) * tanh_factor(c)), c};
  }
  template <typename V>
  STRNN_CELL_INLINE static void save(const V* a, V m, V* saved) {
    saved[0] = sigmoid_of(a[0]);
    saved[1] = sigmoid_of(a[1]);
    saved[2] = tanh_of(a[2]);
    saved[3] = sigmoid_of(a[3]);
    saved[4] = m;
  }
  template <typename V>
  STRNN_CELL_INLINE static CellGradient<V, 4> backward(const V* saved, V, V dh, V dc) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], m = saved[4];
    const V y = tanh_of(f * m + i * g);
    const V d = dc + dh * o * (1 - y * y);
    return {
        {d * g * (i * (1 - i)), d * m * (f * (1 - f)), d * i * (1 - g * g), dh * y * (o * (1 - o))},
        d * f};
  }
};

// Calls f with the cell of a kind: the one place where the run-time code becomes a type.
template <typename F>
STRNN_CELL_INLINE auto with_cell(int kind, const F& f) {
  switch (kind) {
    case kRelu:
      return f(ElmanCell<kRelu>{});
    case kTanh:
      return f(ElmanCell<kTanh>{});
    case kSigmoid:
      return f(ElmanCell<kSigmoid>{});
    case kGru:
      return f(GruCell{});
    case kLstm:
      return f(LstmCell{});
    default:
      return f(ElmanCell<kIdentity>{});
  }
}
