// The sweep for float32 states of up to 128 units: a thread for each unit, ceil(H / 32) warps for
// each (direction, row of B); a CTA has one row at a time, or, where H <= 32, up to four.
//
// Row j of W (forward) or column j (backward) stays in thread j's registers for the whole sweep; a
// state lives in a slot of shared memory that only its own thread reads and writes, so gathering
// predecessors needs no synchronisation. What the threads of a row need of each other, the sum of
// predecessors, goes through a vector in shared memory: a step has one barrier, where H <= 32 of a
// warp alone. A step takes a node and, up to 64 units, the next one, if that is of the same group:
// their chains of additions overlap; beyond, and backward of gated cells, registers are short.
// Inputs come by cp.async, several nodes ahead.
//
// Of a gated cell, up to H = 32, a thread has its unit's rows (columns) of W of all gates, and a
// slot also what is carried; u is made before, the sums over rows after the sweep.
//
// Of up to 32 inputs the product with x is made beside; its weights are in shared memory, a row for
// each thread. Backward, up to H = 64, dw_hh grows in registers over all rows of a thread, and
// dw_ih and dbias (by a one beside the inputs) in shared memory; they are added up over the rows of
// a CTA in their order, and over the CTAs by the reduction that follows. Else products over du and
// q do.
//
// Predicted, not measured (H200 at 1.98 GHz), from the instructions that the PTX executes:
//   * SEED, B = 288, C = 5, H = 30: 1152 warps of about 40 steps of two nodes, 350 instructions
//     forward and 500 backward: 10 to 15 us in one wave of three CTAs on an SM; backward, where two
//     CTAs of four rows would fit, five of two rows do: 15 to 22 us in one wave. The reductions
//     come to that.
//   * A chain, T = 512, B = 64, H = 128: 128 CTAs of four warps, one on a scheduler; a step is
//     some 500 instructions, of them 128 fma: 0.3 us, 150 us in all. u of 128 inputs comes before,
//     2.1 GFLOP by torch.
//   * A chain, H = 30, float32: 570 instructions a step of an lstm, 590 backward, of a gru 470 and
//     450: 0.4 us.
// What this leaves to kernels of their own, and memory in between: u of more than 32 inputs, the
// projection beyond 64 units, backward the sums beyond 64 units and what h0 receives.
#include <cstring>
#include <type_traits>

#include "launch.cuh"
#include "pass.cuh"
#include "planner.h"
#include "ptx.cuh"

namespace strnn::cuda {
namespace {

constexpr int kNoSlot = 0xffff;

// A position of the sweep program.
struct alignas(16) RowNode {
  uint16_t node, slot;                // kNoSlot if nobody reads the state
  uint16_t pred[3];                   // slots of the first three predecessors
  uint16_t count : 15, has_next : 1;  // predecessors; whether the next position is of its group
  int32_t first;                      // predecessor
};

template <typename Pass>
struct RowArgs {
  Pass pass;
  RowLayout layout;
  int C;  // 0: no x
  bool projects;
};

// The program of direction d.
__device__ __forceinline__ void load_nodes(const Program& p, int d, RowNode* to) {
  for (int i = threadIdx.x; i < p.N; i += blockDim.x) {
    const int32_t* range = p.pred_ptr + d * (p.N + 1) + i;
    const int first = range[0], count = range[1] - first;
    const auto slot = [&](int k) {
      return static_cast<uint16_t>(k < count ? p.pred_slot[first + k] : 0);
    };
    RowNode node{};
    node.node = static_cast<uint16_t>(p.node[d * p.N + i]);
    node.slot = static_cast<uint16_t>(p.num_succ[d * p.N + i] ? p.slot[d * p.N + i] : kNoSlot);
    node.pred[0] = slot(0), node.pred[1] = slot(1), node.pred[2] = slot(2);
    node.count = count, node.has_next = 1;
    node.first = first;
    to[i] = node;
  }
  __syncthreads();
  for (int g = threadIdx.x; g < p.G; g += blockDim.x) {
    const int32_t* bounds = p.group_ptr + d * (p.G + 1) + g;
    if (bounds[0] < bounds[1]) to[bounds[1] - 1].has_next = 0;
  }
  __syncthreads();
}

// start + sum_k w[k] v[k] for k < width, a multiple of 32, of a vector that all threads read.
template <int kWidth>
__device__ __forceinline__ float dot(const float (&w)[kWidth], const float* v, int width,
                                     float start) {
  float sum[4] = {start};
#pragma unroll
  for (int k = 0; k < kWidth; k += 4) {
    if (k % 32 == 0 && k >= width) break;
    if (kWidth > kRowNarrowH && k % 32 == 0)
      asm volatile("" ::: "memory");  // or loads fill registers
    const Quad<float> q = *reinterpret_cast<const Quad<float>*>(v + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += w[k + i] * q.v[i];
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// w[k] += x v[k], likewise.
template <int kWidth>
__device__ __forceinline__ void add_outer(float (&w)[kWidth], float x, const float* v) {
#pragma unroll
  for (int k = 0; k < kWidth; k += 4) {
    const Quad<float> q = *reinterpret_cast<const Quad<float>*>(v + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[k + i] += x * q.v[i];
  }
}

// The same two with a row in shared memory.
__device__ __forceinline__ float dot_shared(const float* w, const float* v, int count, float sum) {
#pragma unroll 2
  for (int k = 0; k < count; k += 4) {
    const Quad<float> p = *reinterpret_cast<const Quad<float>*>(w + k);
    const Quad<float> q = *reinterpret_cast<const Quad<float>*>(v + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += p.v[i] * q.v[i];
  }
  return sum;
}
__device__ __forceinline__ void add_outer_shared(float* w, float x, const float* v, int count) {
#pragma unroll 2
  for (int k = 0; k < count; k += 4) {
    Quad<float> p = *reinterpret_cast<const Quad<float>*>(w + k);
    const Quad<float> q = *reinterpret_cast<const Quad<float>*>(v + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) p.v[i] += x * q.v[i];
    *reinterpret_cast<Quad<float>*>(w + k) = p;
  }
}

// s[k] += weight[k] y, where a weight of zero does not read a y that is not finite.
__device__ __forceinline__ void add_projection(float (&s)[kRowMaxK], float y, const float* weight) {
  if (isfinite(y)) return add_outer(s, y, weight);
#pragma unroll
  for (int k = 0; k < kRowMaxK; ++k)
    if (weight[k] != 0) s[k] += weight[k] * y;
}

// kWidth: of W in registers, 32, 64 or 128; zero beyond H.
template <typename Pass, int kWidth>
__global__ void __launch_bounds__(kRowThreads,
                                  kWidth == 32 && std::is_same_v<Pass, Forward<float>> ? 3 : 2)
    sweep_row_kernel(const RowArgs<Pass> f) {
  using Cell = typename Pass::Cell;
  constexpr bool kIsBackward = Pass::kIsBackward, kIsNarrow = kWidth <= kRowNarrowH;
  constexpr bool kIsGated = Cell::kBlocks > 1, kSums = kIsBackward && kIsNarrow && !kIsGated;
  // Blocks of a state that is gathered and, in its slot, with what is carried; of products.
  constexpr int kGates = Cell::kGates, kStates = kIsBackward ? kGates : 1,
                kOfSlot = kStates + kIsGated, kResults = kIsBackward ? 1 : kGates;
  constexpr bool kPairs = kIsNarrow && !(kIsGated && kIsBackward);  // or registers are short
  const bool projects = kIsNarrow && f.projects;
  const Pass& pass = f.pass;
  const auto& a = pass.a;
  const RowLayout& l = f.layout;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int width = kIsNarrow ? kWidth : l.width;
  const int row = thread / width, j = thread % width, rows = static_cast<int>(blockDim.x) / width;
  const int d = static_cast<int>(blockIdx.y), N = static_cast<int>(a.N), H = static_cast<int>(a.H);
  const int C = kIsBackward && !kSums ? 0 : f.C, columns = C ? (C + kIsBackward + 3) / 4 * 4 : 0;
  const unsigned stride = static_cast<unsigned>(a.D * a.H);
  const OneUnit unit{j < H};

  STRNN_DYNAMIC_SHARED(raw);
  RowNode* const nodes = array_at<RowNode>(raw, l.records);
  float* const projection = array_at<float>(raw, l.projection);  // [node][kRowMaxK]
  float* const factors = reinterpret_cast<float*>(nodes + N);    // [node], of gated cells
  float* const slots =
      array_at<float>(raw, l.slots) + row * a.program.S * kOfSlot * width + j;  // [slot][width]
  // [2][kRowNodes][width]
  float* const vectors = array_at<float>(raw, l.vectors) + row * 2 * kRowNodes * kStates * width;
  float* const ring = array_at<float>(raw, l.ring) + row * kRowRing * l.stage;  // [kRowRing][stage]
  unsigned* const live = array_at<unsigned>(raw, l.mask) + row * ((N + 31) / 32);
  float* const own = array_at<float>(raw, l.own) + thread * l.ld_x;
  const auto sync = [] {
    if constexpr (kWidth == 32)
      __syncwarp();
    else
      __syncthreads();
  };

  // What is not copied stays: zeros beyond H and C, and the one for dbias.
  for (int e = j; e < kRowRing * l.stage; e += width)
    ring[e] = kIsBackward && C && e % l.stage == l.x + C ? 1 : 0;
  const auto* w_ih =
      static_cast<const float*>(a.w_ih.first) + (static_cast<int64_t>(d) * H + j) * C;
  for (int c = 0; c < columns; ++c) own[c] = !kIsBackward && j < H && c < C ? w_ih[c] : 0;
  if (projects) {
    const float* from = static_cast<const float*>(a.projection) + d * a.K * N;
    for (int e = thread; e < N * kRowMaxK; e += static_cast<int>(blockDim.x)) {
      const int k = e % kRowMaxK;
      projection[e] = k < a.K ? from[k * N + e / kRowMaxK] : 0;
    }
  }
  load_nodes(a.program, d, nodes);

  if (kIsGated) {
    for (int i = thread; i < N; i += static_cast<int>(blockDim.x)) {
      const int count = kIsBackward ? a.program.num_succ[d * N + i] : nodes[i].count;
      factors[i] = a.mean ? reciprocal<float>(max(1, count)) : 1;
    }
    __syncthreads();
  }
  float w[kResults][kStates * kWidth], dw[kSums ? kWidth : 1] = {};
  const float* w_hh =
      static_cast<const float*>(a.w_hh.first) + static_cast<int64_t>(d) * kGates * H * H;
  int64_t at_k = j * pass.weight_j();
#pragma unroll
  for (int k = 0; k < kWidth; ++k, at_k += pass.weight_k()) {
    if ((kIsGated || kWidth > kRowNarrowH) && k % 8 == 0)
      asm volatile("" : "+l"(at_k));  // not all at once
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate)
      w[kIsBackward ? 0 : gate][kIsBackward ? gate * kWidth + k : k] =
          j < H && k < H ? w_hh[at_k + gate * H * H] : 0;
  }
  float bias[Cell::kBlocks][1] = {};
  if (!kIsBackward && a.bias.first)
#pragma unroll
    for (int block = 0; block < Cell::kBlocks; ++block)
      unit.load(static_cast<const float*>(a.bias.first) + (d * Cell::kBlocks + block) * H + j,
                bias[block]);

  for (int64_t b = static_cast<int64_t>(blockIdx.x) * rows + row; b < a.B;
       b += static_cast<int64_t>(gridDim.x) * rows) {
    const int64_t first = (b * N * a.D + d) * H + j, first_x = b * N * C + j;
    const auto at = [&](unsigned n) { return first + uint64_t{n} * stride; };
    sync();  // the row before is done with the vectors, the ring and the mask
    if (a.mask)
      for (int n = j; n - lane < N; n += width) {
        const unsigned word = __ballot_sync(kAllLanes, n < N && a.mask[b * N + n]);
        if (lane == 0) live[n / 32] = word;
      }
    const int entry = pass.entry(b * a.D + d);
    float s[kRowMaxK] = {};  // and backward ds
    if constexpr (kIsBackward) {
#pragma unroll
      for (int k = 0; k < kRowMaxK; ++k)
        if (projects && k < a.K && j < H)
          s[k] = static_cast<const float*>(a.ds)[((b * a.D + d) * a.K + k) * H + j];
    }

    // A stage: u or x; backward h, dh, x. Of gated cells the gates of u; backward what was saved,
    // dh.
    const auto stage = [&](int i) {
      if (i < N) {
        const unsigned n = nodes[i].node;
        float* const to = ring + i % kRowRing * l.stage;
        if (j < H) {
          if constexpr (kIsGated) {
            const float* const from = pass.inputs() + (at(n) - j) * Pass::kInputs + j;
#pragma unroll
            for (int block = 0; block < Pass::kInputs; ++block)
              cp_async<4>(to + block * width + j, from + block * H);
            if constexpr (kIsBackward)
              if (pass.to.dh)
                cp_async<4>(to + Pass::kInputs * width + j,
                            static_cast<const float*>(pass.to.dh) + at(n));
          } else if constexpr (kIsBackward) {
            cp_async<4>(to + j, static_cast<const float*>(a.h) + at(n));
            if (pass.to.dh)
              cp_async<4>(to + width + j, static_cast<const float*>(pass.to.dh) + at(n));
          } else if (!C) {
            cp_async<4>(to + j, static_cast<const float*>(a.x) + at(n));
          }
        }
        if (j < C)
          cp_async<4>(to + l.x + j, static_cast<const float*>(a.x) + first_x + uint64_t{n} * C);
      }
      cp_async_commit();
    };
    for (int i = 0; i < kRowRing - kRowNodes; ++i) stage(i);

    // From the products v to the state, to memory and to its slot.
    const auto finish_gated = [&](int i, unsigned n, bool is_masked, int slot, const float* input,
                                  const float (&v)[kResults][1], float (&m)[1]) {
      if constexpr (kIsGated) {
        float values[Pass::kValues][1];
        pass.assemble([&](int k, float (&to)[1]) { to[0] = input[k * width + j]; },
                      [&](int k, float (&to)[1]) { to[0] = bias[k][0]; },
                      [&](int k, float (&to)[1]) { to[0] = v[k][0]; }, values);
        pass.finish(unit, at(n) - j, j, is_masked, values, m);
        if (slot == kNoSlot) return;
        const float factor = kIsBackward ? factors[i] : 1;
        float* const to = slots + slot * kOfSlot * width;
#pragma unroll
        for (int k = 0; k < kStates; ++k)
          to[k * width] = j < H ? factor * values[Pass::state(k)][0] : 0;
        to[kStates * width] = j < H ? factor * m[0] : 0;
      }
    };
    int half = 0;
    const auto step = [&](int i, auto nodes_of_it) {
      constexpr int kCount = decltype(nodes_of_it)::value;
      RowNode node[kCount];
      float sum[kCount][kStates][1], v[kCount][kResults][1];
      [[maybe_unused]] float m[kCount][1] = {};
      const float* input[kCount];
#pragma unroll
      for (int q = 0; q < kCount; ++q) {
        const uint4 bits = *reinterpret_cast<const uint4*>(nodes + i + q);
        memcpy(&node[q], &bits, sizeof bits);
        const RowNode& own = node[q];
        float total[kOfSlot] = {};
        const auto gather = [&](int slot) {
#pragma unroll
          for (int s = 0; s < kOfSlot; ++s) total[s] += slots[(slot * kOfSlot + s) * width];
        };
        if (own.count > 0) gather(own.pred[0]);
        if (own.count > 1) gather(own.pred[1]);
        if (own.count > 2) gather(own.pred[2]);
        for (int p = 3; p < own.count; ++p) gather(__ldg(a.program.pred_slot + own.first + p));
        const float factor = kIsGated && !kIsBackward ? factors[i + q] : 1;
#pragma unroll
        for (int s = 0; s < kStates; ++s) sum[q][s][0] = total[s] * factor;
        pass.add_h0(unit, b * a.D + d, entry, own.node, own.count == 0, j, sum[q][0]);
        if constexpr (kIsGated) {
          m[q][0] = total[kStates] * factor;
          if constexpr (kIsBackward) {
            float* const to = static_cast<float*>(pass.to.q) + (at(own.node) - j) * kGates + j;
#pragma unroll
            for (int s = 0; s < kStates; ++s) unit.store(to + s * H, sum[q][s]);
          } else {
            pass.add_first(unit, pass.first_carried(), b * a.D + d, entry, own.node, own.count == 0,
                           j, m[q]);
          }
        }
#pragma unroll
        for (int s = 0; s < kStates; ++s)
          vectors[((half + q) * kStates + s) * width + j] = sum[q][s][0];
      }
      cp_async_wait<kRowRing - 2 * kRowNodes>();  // the inputs of two nodes are there
      sync();
      // Every thread is done with the nodes before i: their places in the ring are free.
#pragma unroll
      for (int q = 0; q < kCount; ++q) stage(i + kRowRing - kRowNodes + q);
#pragma unroll
      for (int q = 0; q < kCount; ++q) {
        input[q] = ring + (i + q) % kRowRing * l.stage;
        float start = 0;
        if constexpr (kIsGated && kIsBackward)
          start = input[q][Pass::kFirstResult * width + j];
        else if (kIsBackward)
          start = input[q][width + j];
        else if (!kIsGated)
          start = C ? bias[0][0] : bias[0][0] + input[q][j];
#pragma unroll
        for (int r = 0; r < kResults; ++r)
          v[q][r][0] = dot(w[r], vectors + (half + q) * kStates * width, kStates * width, start);
        if (kIsGated) continue;
        float& t = v[q][0][0];
        if (!kIsBackward) t = dot_shared(own, input[q], columns, t);
        if (kIsBackward && projects) t = dot(s, projection + node[q].node * kRowMaxK, kRowMaxK, t);
      }
#pragma unroll
      for (int q = 0; q < kCount; ++q) {
        const unsigned n = node[q].node;
        const bool is_masked = a.mask && !(live[n / 32] >> n % 32 & 1);
        if constexpr (kIsGated) {
          finish_gated(i + q, n, is_masked, node[q].slot, input[q], v[q], m[q]);
        } else {
          const float h[1] = {input[q][j]};
          pass.keep(unit, at(n), sum[q][0]);
          pass.finish(unit, at(n), is_masked, v[q][0], h);
          const float y = j < H ? v[q][0][0] : 0;
          if (node[q].slot != kNoSlot) slots[node[q].slot * width] = y;
          if (!kIsBackward && projects) add_projection(s, y, projection + n * kRowMaxK);
          if constexpr (kSums) {
            add_outer(dw, sum[q][0][0], input[q]);
            if (!is_masked)
              add_outer_shared(own, y, input[q] + l.x, columns);  // 0 * NaN is not zero
          }
        }
      }
      half ^= kRowNodes;
      return i + kCount;
    };
    for (int i = 0; i < N;)
      if (kPairs && nodes[i].has_next)
        i = step(i, std::integral_constant<int, kPairs ? kRowNodes : 1>{});
      else
        i = step(i, std::integral_constant<int, 1>{});
    if constexpr (!kIsBackward) {
#pragma unroll
      for (int k = 0; k < kRowMaxK; ++k)
        if (projects && k < a.K && j < H)
          static_cast<float*>(a.s)[((b * a.D + d) * a.K + k) * H + j] = s[k];
    }
  }

  if constexpr (kSums) {
    constexpr int kLd = kWidth + 1;  // threads meet in no bank
    float* const total = array_at<float>(raw, l.total);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) total[thread * kLd + k] = dw[k];
    __syncthreads();
    const auto over_rows = [&](const float* from, int ld, int unit, int column) {
      float sum = 0;
      for (int r = 0; r < rows; ++r) sum += from[(r * width + unit) * ld + column];
      return sum;
    };
    const int64_t part = static_cast<int64_t>(blockIdx.x) * a.D + d;
    for (int e = thread; e < H * H; e += static_cast<int>(blockDim.x))
      pass.to.dw_hh[part * H * H + e] = over_rows(total, kLd, e / H, e % H);
    for (int e = thread; e < H * C; e += static_cast<int>(blockDim.x))
      pass.to.dw_ih[part * H * C + e] =
          over_rows(array_at<float>(raw, l.own), l.ld_x, e / C, e % C);
    for (int e = thread; C && pass.to.dbias && e < H; e += static_cast<int>(blockDim.x))
      pass.to.dbias[part * H + e] = over_rows(array_at<float>(raw, l.own), l.ld_x, e, C);
  }
}

}  // namespace

template <typename A, typename States>
void sweep_row(const A& a, const States& states, Dtype, const Plan& plan, void* stream) {
  with_pass<float>(a, states, [&](const auto& pass) {
    using Pass = std::decay_t<decltype(pass)>;
    const RowLayout& layout = std::get<RowPlan>(plan.kind).layout;
    const bool has_x = Pass::kIsBackward ? plan.sums_input : plan.takes_x;
    bool projects = plan.projects;
    if constexpr (Pass::kIsBackward) projects = projects && pass.a.ds;
    const RowArgs<Pass> f{pass, layout, has_x ? static_cast<int>(a.C) : 0, projects};
    auto kernel = sweep_row_kernel<Pass, 32>;
    if constexpr (Pass::Cell::kBlocks == 1)
      if (layout.width > 32)
        kernel = layout.width == 64 ? sweep_row_kernel<Pass, 64> : sweep_row_kernel<Pass, 128>;
    launch_sweep("sweep_forward_row", "sweep_backward_row", kernel, plan, stream, f);
  });
}

STRNN_BOTH_PASSES(sweep_row);

}  // namespace strnn::cuda
