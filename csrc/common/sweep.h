// Arguments of the sweep, as every native backend receives them: raw pointers, contiguous, all of
// one dtype.
//
//   a[b,n,d] = w_ih[d] x[b,n] + bias[d] + w_hh[d] q        (C > 0; with C = 0, x holds w_ih x
//   itself) q[b,n,d] = sum_{p in pred(d,n)} h[b,p,d], or their mean; m the same of what is carried
//   h[b,n,d], carried = mask[b,n] * cell(a, m)
//   s[b,d,k] = sum_n projection[d,k,n] h[b,n,d]            (K > 0)
//
// h0[b,d] (and c0, of what is carried) is one more predecessor of the nodes of direction d that
// have none; with entry, of node entry[b,d] alone. h_n, c_n: the state at each direction's last
// visit that the mask leaves.
#pragma once
#include "program.h"

namespace strnn {

// What turns a node's pre-activation, and what it carries, into its state: an activation, or gates
// in torch's order (gru: reset, update, new; lstm: input, forget, cell, output).
enum Cell { kIdentity, kRelu, kTanh, kSigmoid, kGru, kLstm, kNumCells };
constexpr int kNumActivations = 4;

// Rows of w_ih and w_hh for each of H units.
constexpr int64_t gates_of(int cell) { return cell == kLstm ? 4 : cell == kGru ? 3 : 1; }
// Rows of a bias in one piece: a gru's new gate has one for the input and one for the state.
constexpr int64_t bias_rows_of(int cell) { return cell == kGru ? 4 : gates_of(cell); }
// Values that a forward saves for its backward, for each of H units: the gates and what was carried
// there. lstm: i, f, g, o, m; gru: r, z, n, w_hn q + b_hn, m.
constexpr int64_t saved_of(int cell) { return cell < kNumActivations ? 0 : 5; }

// One array for each direction: `step` bytes apart, whether in one tensor or in two.
struct Directions {
  const void* first;
  int64_t step;
  explicit operator bool() const { return first != nullptr; }
  const void* of(int64_t d) const {
    return reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(first) + d * step);
  }
};

struct Sweep {
  int64_t B, N, D, C, H, K;
  const void* x;           // (B, N, C), or u (B, N, D, H) with C = 0
  Directions w_ih;         // (G H, C)        null with C = 0
  Directions bias;         // (G H), of a gru (4 H): r, z, n of the input, n of the state; or null
  Directions bias_hh;      // (G H) or null; given: bias is the input's alone, (G H)
  Directions w_hh;         // (G H, H)
  const uint8_t* mask;     // (B, N), not zero: takes part; or null
  const void* h0;          // (B, D, H)       or null
  const void* c0;          // (B, D, H)       or null
  const int32_t* entry;    // (B, D)          or null; a value outside 0..N-1: h0 enters nowhere
  const void* projection;  // (D, K, N)       or null with K = 0
  int cell;
  bool mean;  // q and m are means over the predecessors
};

struct SweepForward : Sweep {
  Program program;   // of the topology
  const void* gate;  // (B, N, D, H) or null; given: h = gate * (u + w_hh sum), no activation
  void* h;           // (B, N, D, H) or null: not kept
  void* pre;    // (B, N, D, H) or null: u + w_hh sum, what the gate or the activation is applied to
  void* s;      // (B, D, K, H) or null with K = 0
  void* c;      // (B, N, D, H) or null: what is carried
  void* h_n;    // (D, B, H) or null
  void* c_n;    // (D, B, H) or null
  void* saved;  // (B, N, D, R H) or null, see saved_of
  bool has_backward;  // one will follow
};

struct SweepBackward : Sweep {
  Program program;    // of the reversed topology
  const void* h;      // (B, N, D, H), what the forward gave
  const void* saved;  // (B, N, D, R H), null with R = 0
  const void* dh;     // (B, N, D, H) or null: zero
  const void* ds;     // (B, D, K, H) or null: zero
  const void* dc;     // (B, N, D, H) or null: zero
  const void* dh_n;   // (D, B, H) or null: zero
  const void* dc_n;   // (D, B, H) or null: zero
  const void* gate;   // (B, N, D, H) or null; given: the forward was gated, and h is its output
  const void* pre;    // (B, N, D, H), with a gate: what the gate was applied to
  void* dgate;        // (B, N, D, H), with a gate
  void* dx;           // as x, or null: not wanted
  void* dw_ih;        // (D, G H, C), null with C = 0
  void* dbias;        // (D, G H), of a gru (D, 4 H); or null
  void* dw_hh;        // (D, G H, H)
  void* dh0;          // (B, D, H) or null
  void* dc0;          // (B, D, H) or null
  void* dprojection;  // (D, K, N) or null
};

}  // namespace strnn
