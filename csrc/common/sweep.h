// Arguments of the sweep, as every native backend receives them: raw pointers, contiguous, all of
// one dtype.
//
//   u[b,n,d] = w_ih[d] x[b,n] + bias[d]                    (C > 0; with C = 0, x holds u itself)
//   h[b,n,d] = mask[b,n] * act(u[b,n,d] + w_hh[d] sum_{p in pred(d,n)} h[b,p,d])
//   s[b,d,k] = sum_n projection[d,k,n] h[b,n,d]            (K > 0)
//
// h0[b,d] is one more predecessor of the nodes of direction d that have none; with entry, of node
// entry[b,d] alone.
#pragma once
#include "program.h"

namespace strnn {

enum Activation { kIdentity, kRelu, kTanh, kSigmoid, kNumActivations };

struct Sweep {
  int64_t B, N, D, C, H, K;
  const void* x;           // (B, N, C), or u (B, N, D, H) with C = 0
  const void* w_ih;        // (D, H, C)       or null with C = 0
  const void* bias;        // (D, H)          or null
  const void* w_hh;        // (D, H, H)
  const uint8_t* mask;     // (B, N)          or null; any byte but zero is true
  const void* h0;          // (B, D, H)       or null
  const int32_t* entry;    // (B, D)          or null; a value outside 0..N-1: h0 enters nowhere
  const void* projection;  // (D, K, N)       or null with K = 0
  int activation;
  bool allow_tf32;  // products of float32 may be of operands rounded to tf32
};

struct SweepForward : Sweep {
  Program program;   // of the topology
  const void* gate;  // (B, N, D, H) or null; given: h = gate * (u + w_hh sum), no activation
  void* h;           // (B, N, D, H) or null: not kept
  void* pre;  // (B, N, D, H) or null: u + w_hh sum, what the gate or the activation is applied to
  void* s;    // (B, D, K, H) or null with K = 0
};

struct SweepBackward : Sweep {
  Program program;    // of the reversed topology
  const void* h;      // (B, N, D, H), what the forward gave
  const void* dh;     // (B, N, D, H) or null: zero
  const void* ds;     // (B, D, K, H) or null: zero
  const void* gate;   // (B, N, D, H) or null; given: the forward was gated, and h is its output
  const void* pre;    // (B, N, D, H), with a gate: what the gate was applied to
  void* dgate;        // (B, N, D, H), with a gate
  void* dx;           // as x, or null: not wanted
  void* dw_ih;        // as w_ih, null with C = 0
  void* dbias;        // (D, H) or null
  void* dw_hh;        // (D, H, H)
  void* dh0;          // (B, D, H) or null
  void* dprojection;  // (D, K, N) or null
};

}  // namespace strnn
