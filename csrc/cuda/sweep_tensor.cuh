// The sweep on tensor cores: a CTA per (tile of rows of B, direction), W in registers for the whole
// sweep; 16-bit storage up to H = 256.
//
// Of the columns, in units of 16 (mma.cuh), each of kSteps / kOwn warps owns kOwn: it alone
// gathers, produces and keeps them. The items of a product are 16 pairs (node, row) of one group of
// the program, which do not depend on each other: 16 rows of a chain's node, or 16 nodes of a
// grid's diagonal of one row. For each chunk of nodes of a group:
//
//   gather  sum of the predecessors' states from the slots of own columns, as an operand; several
//           warps hand it to each other through `exchange` (a warp alone keeps it)
//   -- barrier: the exchange and this chunk's inputs are there; the chunk before is done
//   product sum W^T, one mma after the other
//   stage   the inputs of a later chunk, kTensorRing - 1 ahead, on their way (cp.async) while the
//           first product goes on
//   finish  the pass's own: activation or gate, to the slot and to global memory
//
// The exchange has two halves, so one barrier is enough. A slot is written and read by one warp; a
// slot freed by a node may be taken by a later one of its group, so all of a tile's are read before
// one is written, and a node whose state nobody reads does not write its slot at all. Where nodes
// have fewer predecessors than others of their group, they read a slot of zeros: loads that do not
// wait for branches. Up to three states of 16 bits are added in 16 bits, as pairs; more in float32.
#pragma once
#include <algorithm>
#include <type_traits>

#include "launch.cuh"
#include "mma.cuh"
#include "pass.cuh"
#include "planner.h"
#include "ptx.cuh"

namespace strnn::cuda {

constexpr int kNoSlot = 0xffff;

// CTAs that an SM should hold at least: with that many, at most 255 registers; left to itself the
// compiler makes room for more, and spills for it.
constexpr int tensor_blocks(int threads) { return threads >= 256 ? 1 : 256 / threads; }

// What both passes give to the chunk loop.
struct TensorSweep {
  Program program;
  int64_t B, N, D;
  uint32_t state_stride;  // D * H: elements from node to node
  int H, C;               // C = 0: no x
  int rows_log2, tiles;   // rows of B of a CTA; products of 16 items of a chunk
  int64_t num_tiles;      // of rows of B
  TensorLayout layout;
  const uint8_t* mask;
  // Blocks of H of arrays (B, N, D, blocks H), null where there is none, and the blocks.
  const void* input[kTensorStreams];
  int blocks[kTensorStreams];
  const void* x;               // (B, N, C) or null
  int alignment, alignment_x;  // of rows of H elements and of x, in bytes
};

// Consecutive nodes of one group, by position, and the most predecessors that one of the group has.
struct TensorChunk {
  int begin, end, most;
};

// A pair (node, row) as its lane sees it.
struct TensorItem {
  int position, node;
  int slot, pred[3];  // by their first rows
  int64_t state;      // element of (B, N, D, H) where the lane's columns of its state start
  int columns;        // from these to the last, 0 or less if none may be read or written
  bool is_there;      // in the chunk
  bool is_live;       // and in the batch and not masked
};

// Bytes, at most 16, to which rows of `width` bytes from `data` on are aligned.
__host__ __device__ __forceinline__ int alignment_of(const void* data, int64_t width) {
  const auto bits = static_cast<int>(reinterpret_cast<uintptr_t>(data) | width | 16);
  return bits & -bits;
}

template <typename S>
constexpr int kPieceBytes = kPiece * static_cast<int>(sizeof(S));

// Four neighbouring columns from global to shared memory, of which `valid` > 0 are there;
// alignment: of all such addresses in global memory. Rows aligned to a piece end where a piece
// ends.
template <typename S>
__device__ __forceinline__ void copy_piece(S* to, const S* from, int valid, int alignment) {
  if (alignment >= kPieceBytes<S>) {
    cp_async<kPieceBytes<S>>(to, from);
  } else if (alignment >= 4) {  // nor does a row end inside of a word
#pragma unroll
    for (int at = 0; at < kPieceBytes<S>; at += 4)
      if (at < valid * static_cast<int>(sizeof(S)))
        cp_async<4>(reinterpret_cast<char*>(to) + at, reinterpret_cast<const char*>(from) + at);
  } else {
#pragma unroll
    for (int e = 0; e < kPiece; ++e)
      if (e < valid) to[e] = from[e];
  }
}

template <typename S>
__device__ __forceinline__ typename TensorCore<S>::Piece load_piece(const S* from, int valid,
                                                                    int alignment) {
  typename TensorCore<S>::Piece piece{};
  if (alignment >= kPieceBytes<S>) {
    if (valid > 0) piece = TensorCore<S>::load(from);
    return piece;
  }
  float v[kPiece];
#pragma unroll
  for (int e = 0; e < kPiece; ++e) v[e] = e < valid ? to_acc(from[e]) : 0.f;
  return TensorCore<S>::piece(v);
}

template <typename S>
__device__ __forceinline__ void store_piece(S* to, const typename TensorCore<S>::Piece& piece,
                                            int valid, int alignment) {
  constexpr int kWordElements = 4 / static_cast<int>(sizeof(S));
  if (alignment >= kPieceBytes<S>) {
    if (valid > 0) *reinterpret_cast<typename TensorCore<S>::Piece*>(to) = piece;
  } else if (alignment >= 4) {  // then no row ends inside of a word
#pragma unroll
    for (int i = 0; i < kPiece / kWordElements; ++i)
      if (i * kWordElements < valid)
        reinterpret_cast<decltype(piece.w[0] + 0)*>(to)[i] = piece.w[i];
  } else {
    float v[kPiece];
    TensorCore<S>::values(piece, v);
#pragma unroll
    for (int e = 0; e < kPiece; ++e)
      if (e < valid) to[e] = from_acc<S>(v[e]);
  }
}

// A lane's columns of an item: pieces of kOwn neighbouring units, of which `columns` are there.
template <typename S, int kOwn, bool kIsAligned>
struct OwnPieces {
  using Core = TensorCore<S>;
  int columns, alignment;

  __device__ __forceinline__ int known() const { return kIsAligned ? kPieceBytes<S> : alignment; }
  __device__ __forceinline__ void load(const S* from, float (&v)[kOwn * kPiece]) const {
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
      Core::values(load_piece(from + own * kUnit, columns - own * kUnit, known()), v, own);
  }
  __device__ __forceinline__ void store(S* to, const float (&v)[kOwn * kPiece]) const {
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
      store_piece<S>(to + own * kUnit, Core::piece(v, own), columns - own * kUnit, known());
  }
  __device__ __forceinline__ void store(S* to, const typename Core::Piece& piece) const {
    store_piece<S>(to, piece, columns, known());
  }
  __device__ __forceinline__ void store(float* to, const float (&v)[kOwn * kPiece]) const {
#pragma unroll
    for (int i = 0; i < kOwn * kPiece; ++i) {
      const int column = i / kPiece * kUnit + i % kPiece;
      if (column < columns) to[column] = v[i];
    }
  }
};

// kStreams: of inputs, at most; if they are more than two, of a gated cell, of rows of several
// blocks of H. kBlocks: of H, of a state that is gathered; in a slot a unit's columns of all of
// them are neighbours.
template <typename S, int kOwn, int kSteps, int kStreams, int kBlocks = 1>
struct TensorTile {
  using Core = TensorCore<S>;
  using Piece = typename Core::Piece;
  using Operand = typename Core::Operand;
  using Weight = typename Core::Weight;
  static constexpr int kWarps = kSteps / kOwn, kThreads = 32 * kWarps;
  static constexpr int kLd = tensor_ld(kSteps), kLdSlot = tensor_ld(kSteps * kBlocks);
  static constexpr int kParts = kOwn * kBlocks;  // of a state, of a warp
  static constexpr int kWide = 16 / static_cast<int>(sizeof(S));
  static constexpr int kProjectedRows = tensor_projected_rows(kOwn, kSteps);

  const TensorSweep& a;
  int d, lane, g, q, warp, rows, nodes, tile_rows;  // nodes: of a product
  int columns[2], columns_x;  // of a state of the lane's two rows and of x, from its first one on
  int64_t b0, first_state[2], first_x[2];  // of the lane's two rows
  int first_node[2], first_slot[2], live_bit[2], first_staged, first_staged_x;
  int no_preds;             // twice 16 bits
  const int32_t* pred_ptr;  // of the direction
  int4* records;  // by position: node | end of the group, slot | most predecessors of the group,
                  // slots of the first three | live rows; 16 bits each; a slot is named by its
                  // first row
  uint4* input_weights;  // [unit of C][unit of H][lane]
  S* projection;         // [position][kTensorLdProjection]
  S* slots;              // [S + 1][row][kLdSlot]
  uint4* exchange;       // [2][tiles][part][lane]
  S* ring;               // [kTensorRing][layout.stage]

  __device__ __forceinline__ TensorTile(const TensorSweep& args, unsigned char* raw) : a(args) {
    d = blockIdx.y;
    lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, warp = threadIdx.x / 32;
    rows = 1 << a.rows_log2, nodes = keep(kUnit >> a.rows_log2);
    first_staged = keep(g * kLd + column(0));
    columns_x = keep(a.C - first_column_x());
    first_staged_x = keep(g * a.layout.ld_x + first_column_x());
    records = array_at<int4>(raw, a.layout.records);
    input_weights = array_at<uint4>(raw, a.layout.input_weights);
    projection = array_at<S>(raw, a.layout.projection);
    slots = array_at<S>(raw, a.layout.slots);
    exchange = array_at<uint4>(raw, a.layout.exchange);
    ring = array_at<S>(raw, a.layout.ring);
    load_records();
    set_to_zero(ring, kTensorRing * a.layout.stage);
    set_to_zero(slots + no_pred() * kLdSlot, rows * kLdSlot);
  }

  template <typename T>
  static __device__ __forceinline__ void set_to_zero(T* to, int64_t count) {
    auto* words = reinterpret_cast<uint4*>(to);
#pragma unroll 1
    for (int i = threadIdx.x; i < static_cast<int>(count * sizeof(T) / sizeof(uint4));
         i += kThreads)
      words[i] = {};
  }

  static __device__ __forceinline__ void sync() {
    if constexpr (kWarps > 1)
      __syncthreads();
    else
      __syncwarp();
  }

  // A slot's first row; where there is no predecessor, a slot beyond the others, full of zeros.
  __device__ __forceinline__ int first_row(int slot) const { return slot << a.rows_log2; }
  __device__ __forceinline__ int no_pred() const {
    return first_row(static_cast<int>(a.program.S));
  }

  __device__ __forceinline__ void load_records() const {
    const Program& p = a.program;
#pragma unroll 1
    for (int i = threadIdx.x; i < p.N; i += kThreads) {
      const int32_t* range = p.pred_ptr + d * (p.N + 1) + i;
      const int begin = range[0], count = range[1] - begin;
      const int32_t* pred = p.pred_slot + begin;
      const auto pred_row = [&](int k) { return k < count ? first_row(pred[k]) : no_pred(); };
      const int slot = p.num_succ[d * p.N + i] ? first_row(p.slot[d * p.N + i]) : kNoSlot;
      records[i] = {p.node[d * p.N + i], slot, pred_row(0) | pred_row(1) << 16, pred_row(2)};
    }
    sync();
#pragma unroll 1
    for (int group = threadIdx.x; group < p.G; group += kThreads) {
      const int32_t* bounds = p.group_ptr + d * (p.G + 1) + group;
      const int32_t* pred_ptr = p.pred_ptr + d * (p.N + 1);
      const int begin = bounds[0], end = bounds[1];
      int most = 0;
#pragma unroll 1
      for (int i = begin; i < end; ++i) most = max(most, pred_ptr[i + 1] - pred_ptr[i]);
      const int clamped = min(most, kNoSlot);
#pragma unroll 1
      for (int i = begin; i < end; ++i) records[i].x |= end << 16, records[i].y |= clamped << 16;
    }
  }

  // A column of ones beside those of x, C < 16: the sum of a product's rows.
  __device__ __forceinline__ void add_ones() const {
    sync();  // the ring is zero
#pragma unroll 1
    for (int i = threadIdx.x; i < kTensorRing * a.tiles * kUnit; i += kThreads) {
      const int at = i / (a.tiles * kUnit), row = i % (a.tiles * kUnit);
      staged_x(at, 0)[row * a.layout.ld_x + a.C] = from_acc<S>(1.f);
    }
  }

  // weight (D, K, N), zero beyond K and, for the last product's sake, beyond N.
  __device__ __forceinline__ void load_projection(const void* weight, int K) const {
    const int N = static_cast<int>(a.N);
    const S* from = static_cast<const S*>(weight) + static_cast<int64_t>(d) * K * N;
#pragma unroll 1
    for (int e = threadIdx.x; e < (N + kUnit - 1) * kTensorMaxK; e += kThreads) {
      const int k = e % kTensorMaxK, i = e / kTensorMaxK;
      const bool is_there = i < N && k < K;
      projection[i * kTensorLdProjection + k] =
          is_there ? from[static_cast<int64_t>(k) * N + a.program.node[d * a.N + i]]
                   : from_acc<S>(0.f);
    }
  }
  // Where the projection's weights of an item of a product are, whose first node is `begin`.
  __device__ __forceinline__ const S* projected(int begin, int item) const {
    return projection + (begin + (item >> a.rows_log2)) * kTensorLdProjection;
  }
  // The part of a unit that belongs to row r of the tile: products with sums of their own.
  __device__ __forceinline__ Operand of_row(int r, Piece low, Piece high) const {
    if (kProjectedRows > 1 && row_of(0) != r) low = Piece{};
    if (kProjectedRows > 1 && row_of(1) != r) high = Piece{};
    return Core::operand(low, high);
  }
  // Whether a state of a product's items is not finite, in any lane of the warp.
  static __device__ __forceinline__ bool some_unfinite(const Piece (&states)[2][kOwn]) {
    uint32_t none = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int own = 0; own < kOwn; ++own)
#pragma unroll
        for (const uint32_t word : states[half][own].w) none = add_none(word, none, S{});
    return __ballot_sync(kAllLanes, none & 0x7fff7fff) != 0;  // not the signs of zeros
  }
  // Adds to s what of a unit is not finite, under the weights that are not zero: a product would
  // make NaN of the others.
  __device__ __forceinline__ void add_unfinite(const Operand& x, int begin,
                                               float (&s)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll 1
      for (int i = 0; i < 8; ++i) {
        const S* const weight = projected(begin, i + 8 * half) + 2 * q;
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const float value = Core::value(x, t, half, i);
          if (isfinite(value)) continue;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float w = to_acc(weight[8 * (e / 2) + e % 2]);
            if (w != 0) s[e / 2][2 * t + e % 2] += w * value;
          }
        }
      }
  }

  // Turns to the rows from first_row on.
  __device__ __forceinline__ void begin(int64_t first_row) {
    b0 = first_row;
    tile_rows = static_cast<int>(a.B - b0 < rows ? a.B - b0 : rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t b = b0 + row_of(half);
      first_x[half] = keep(b * a.N * a.C + first_column_x());
      first_state[half] = keep((b * a.N * a.D + d) * a.H + column(0));
      first_slot[half] = keep(row_of(half) * kLdSlot + kUnit * unit(0) * kBlocks + kPiece * q);
      columns[half] = keep(row_of(half) < tile_rows ? a.H - column(0) : 0);
      first_node[half] = keep((g + 8 * half) >> a.rows_log2);
      live_bit[half] = keep(1 << (16 + row_of(half)));
    }
    no_preds = keep(no_pred() | no_pred() << 16);
    pred_ptr = keep(a.program.pred_ptr + d * (a.N + 1));
    sync();  // the records are there, the tile before is done
#pragma unroll 1
    for (int i = threadIdx.x; i < a.N; i += kThreads) {
      const int n = records[i].x & 0xffff;
      int live = 0;
      for (int r = 0; r < tile_rows; ++r) live |= !a.mask || a.mask[row(r, n)] ? 1 << r : 0;
      records[i].w = (records[i].w & 0xffff) | live << 16;
    }
    sync();
  }

  __device__ __forceinline__ int unit(int own) const { return warp * kOwn + own; }
  __device__ __forceinline__ int column(int own) const { return unit(own) * kUnit + kPiece * q; }
  // Of x, which the lane copies: as many at a time as the rows are aligned to, but at least a
  // piece.
  __device__ __forceinline__ int first_column_x() const {
    return (4 * warp + q) * (a.alignment_x == 16 ? kWide : kPiece);
  }
  __device__ __forceinline__ int64_t row(int r, int n) const { return (b0 + r) * a.N + n; }
  // All items g + 8 * half of a lane are of one row.
  __device__ __forceinline__ int row_of(int half) const { return (g + 8 * half) & (rows - 1); }

  __device__ __forceinline__ TensorChunk chunk(int begin) const {
    const int N = static_cast<int>(a.N);
    if (begin >= N) return {N, N, 0};
    const int end = high(records[begin].x), most = high(records[begin].y);
    return {begin, min(end, begin + a.tiles * nodes), most};
  }
  static __device__ __forceinline__ int low(int both) { return both & 0xffff; }
  static __device__ __forceinline__ int high(int both) {
    return static_cast<int>(static_cast<unsigned>(both) >> 16);
  }

  // Whether a product whose first node is `begin` has an item g + 8 * half for any lane.
  __device__ __forceinline__ bool has_items(const TensorChunk& c, int begin, int half) const {
    return half == 0 || (c.end - begin) << a.rows_log2 > 8;
  }
  // The lane's item g + 8 * half of that product. One that is not there has no predecessors.
  __device__ __forceinline__ TensorItem item(const TensorChunk& c, int begin, int half) const {
    const int i = begin + first_node[half];
    TensorItem item;
    item.is_there = i < c.end;
    item.position = min(i, c.end - 1);
    const int4 r = records[item.position];
    const int first = item.is_there ? r.z : no_preds, third = item.is_there ? r.w : no_preds;
    item.node = low(r.x), item.slot = low(r.y);
    item.pred[0] = low(first), item.pred[1] = high(first), item.pred[2] = low(third);
    item.state = first_state[half] + uint64_t{static_cast<uint32_t>(item.node)} * a.state_stride;
    item.columns = item.is_there ? columns[half] : 0;
    item.is_live = item.is_there && (r.w & live_bit[half]);
    return item;
  }

  __device__ __forceinline__ S* slot(int index, int half) const {
    return slots + (first_slot[half] + index * kLdSlot);
  }
  // A stream's items of a tile in stage `at` of the ring, and the lane's columns of one.
  __device__ __forceinline__ S* staged_rows(int at, int stream, int tile) const {
    return ring + at * a.layout.stage + stream * a.layout.stream + tile * kUnit * kLd;
  }
  __device__ __forceinline__ S* staged(int at, int stream, int tile, int half) const {
    return lane_row(at, tile, half) + stream * a.layout.stream;
  }
  __device__ __forceinline__ S* lane_row(int at, int tile, int half) const {
    return ring + at * a.layout.stage + (tile * kUnit + 8 * half) * kLd + first_staged;
  }
  // A result's values of one half.
  template <int kCount>
  static __device__ __forceinline__ void values(const float (&acc)[kCount][2][4], int half,
                                                float (&v)[kCount * kPiece]) {
#pragma unroll
    for (int i = 0; i < kCount * kPiece; ++i)
      v[i] = acc[i / kPiece][i % kPiece / 2][2 * half + i % 2];
  }
  // A stream's values of a product, in the order of its result.
  __device__ __forceinline__ void staged_values(int at, int stream, int tile,
                                                float (&to)[kOwn][2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const S* const from = staged(at, stream, tile, half);
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        float v[kPiece];
        Core::values(Core::load(from + own * kUnit), v);
#pragma unroll
        for (int e = 0; e < kPiece; ++e) to[own][e / 2][2 * half + e % 2] = v[e];
      }
    }
  }
  __device__ __forceinline__ S* staged_x(int at, int tile) const {
    return ring + at * a.layout.stage + a.layout.x + tile * kUnit * a.layout.ld_x;
  }

  // Starts the copies of a chunk's inputs: each lane what it will read itself, but x by all. What
  // is not there is not copied: the ring began as zeros, so a product's item or column of nothing
  // is zero or what an earlier item left, and meets only zeros or results that nobody reads.
  __device__ __forceinline__ void stage(const TensorChunk& c, int at) const {
#pragma unroll 1
    for (int tile = 0, begin = c.begin; begin < c.end; ++tile, begin += nodes)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!has_items(c, begin, half)) break;
        const TensorItem item = this->item(c, begin, half);
        if (a.alignment >= kPieceBytes<S>)
          stage_states<true>(item, at, tile, half);
        else
          stage_states<false>(item, at, tile, half);
        if (a.C && !is_x_late() && item.is_live) stage_x(item, at, tile, half);
      }
    cp_async_commit();
  }
  template <bool kIsAligned>
  __device__ __forceinline__ void stage_states(const TensorItem& item, int at, int tile,
                                               int half) const {
    constexpr int kAtOnce = kIsAligned && kStreams < 5 ? kStreams : 1;  // or too few registers
#pragma unroll(kAtOnce)
    for (int i = 0; i < kStreams; ++i) {
      if (!a.input[i]) continue;
      S* const to = lane_row(at, tile, half) + i * a.layout.stream;
      const S* from = static_cast<const S*>(a.input[i]) + item.state;
      if (kStreams > 2) from += (a.blocks[i] - 1) * (item.state - column(0));
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int valid = item.columns - own * kUnit;
        if (valid > 0)
          copy_piece(to + own * kUnit, from + own * kUnit, valid,
                     kIsAligned ? kPieceBytes<S> : a.alignment);
      }
    }
  }
  // From the lane's first column on.
  __device__ __forceinline__ const S* row_x(const TensorItem& item, int half) const {
    return static_cast<const S*>(a.x) + first_x[half] +
           uint64_t{static_cast<uint32_t>(item.node)} * static_cast<uint32_t>(a.C);
  }
  // A row by 4 lanes of each warp, 16 bytes at a time where the rows of x are aligned to them.
  __device__ __forceinline__ void stage_x(const TensorItem& item, int at, int tile,
                                          int half) const {
    S* const to = staged_x(at, tile) + 8 * half * a.layout.ld_x + first_staged_x;
    const S* const from = row_x(item, half);
    if (a.alignment_x == 16) {
#pragma unroll 1
      for (int column = 0; column < columns_x; column += 4 * kWarps * kWide)
        cp_async<16>(to + column, from + column);
    } else {
#pragma unroll 1
      for (int column = 0; column < columns_x; column += 4 * kWarps * kPiece)
        copy_piece(to + column, from + column, columns_x - column, a.alignment_x);
    }
  }
  // Narrow rows of x that cp.async does not take, for they are aligned to 2 bytes, of a warp alone,
  // whose chunks are one product: loaded where others are staged, kept over the product, and put
  // into the ring after it.
  struct LateX {
    S x[2][kPiece];
  };
  __device__ __forceinline__ bool is_x_late() const {
    return kWarps == 1 && a.C && a.alignment_x < 4 && a.C <= kUnit;
  }
  __device__ __forceinline__ void load_x(const TensorChunk& c, LateX& late) const {
    if (!is_x_late()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TensorItem item = this->item(c, c.begin, half);
      const S* from = row_x(item, half);
#pragma unroll
      for (int e = 0; e < kPiece; ++e)
        late.x[half][e] = item.is_live && e < columns_x ? from[e] : from_acc<S>(0.f);
    }
  }
  __device__ __forceinline__ void store_x(int at, const LateX& late) const {
    if (!is_x_late()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < kPiece; ++e)
        if (e < columns_x)
          staged_x(at, 0)[8 * half * a.layout.ld_x + first_staged_x + e] = late.x[half][e];
  }

  // The sums of a product's predecessors; extra(item, half, sums, tile, most) may change an item's.
  template <typename Extra>
  __device__ __forceinline__ void gather(const TensorChunk& c, int tile, int begin,
                                         const Extra& extra, Operand (&sums)[kParts]) const {
    Piece pieces[2][kParts] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!has_items(c, begin, half)) break;
      const TensorItem item = this->item(c, begin, half);
      if (c.most > 3) {
        gather_many(item, half, pieces[half]);
      } else {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          if (c.most > 0) pieces[half][part] = state_in(item.pred[0], half, part);
          if (c.most > 1)
            pieces[half][part] = Core::sum(
                pieces[half][part],
                Core::sum(state_in(item.pred[1], half, part), state_in(item.pred[2], half, part)));
        }
      }
      extra(item, half, pieces[half], tile, c.most);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      sums[part] = Core::operand(pieces[0][part], pieces[1][part]);
  }
  __device__ __forceinline__ Piece state_in(int index, int half, int part) const {
    return Core::load(slot(index, half) + part * kUnit);
  }
  // Calls f with the slot of each predecessor, however many there are.
  template <typename F>
  __device__ __forceinline__ void for_each_pred(const TensorItem& item, const F& f) const {
    const int32_t* range = pred_ptr + item.position;
    const int begin = __ldg(range), end = item.is_there ? __ldg(range + 1) : begin;
#pragma unroll 1
    for (int e = begin; e < end; ++e) f(first_row(__ldg(a.program.pred_slot + e)));
  }
  // Any number of predecessors, added up in float32.
  __device__ __forceinline__ void gather_many(const TensorItem& item, int half,
                                              Piece (&pieces)[kParts]) const {
    float sum[kParts][kPiece] = {};
    for_each_pred(item, [&](int index) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float v[kPiece];
        Core::values(state_in(index, half, part), v);
        add(sum[part], v);
      }
    });
#pragma unroll
    for (int part = 0; part < kParts; ++part) pieces[part] = Core::piece(sum[part]);
  }

  // The pass's own: from v to the states of an item, which go to its slot, too.
  template <typename Pass>
  __device__ __forceinline__ void finish(const Pass& pass, const TensorItem& item, int half,
                                         float (&v)[kOwn * kPiece], const float (&h)[kOwn * kPiece],
                                         Piece (&states)[kOwn]) const {
    with_pieces(item,
                [&](const auto& units) { pass.finish(units, item.state, !item.is_live, v, h); });
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      states[own] = Core::piece(v, own);
      if (is_kept(item))
        *reinterpret_cast<Piece*>(slot(item.slot, half) + own * kUnit) = states[own];
    }
  }
  // Calls f with the lane's columns of an item: twice, since tests of the alignment cost a third of
  // what a pass does.
  template <typename F>
  __device__ __forceinline__ void with_pieces(const TensorItem& item, const F& f) const {
    if (a.alignment >= kPieceBytes<S>)
      f(OwnPieces<S, kOwn, true>{item.columns, 0});
    else
      f(OwnPieces<S, kOwn, false>{item.columns, a.alignment});
  }
  static __device__ __forceinline__ bool is_kept(const TensorItem& item) {
    return item.is_there && item.slot != kNoSlot;
  }

  __device__ __forceinline__ uint4* exchanged(int parity, int tile, int part) const {
    return exchange + ((parity * a.tiles + tile) * kSteps * kBlocks + part) * 32 + lane;
  }
  static __device__ __forceinline__ void put(uint4* to, const Operand& x) {
    *to = {x.r[0], x.r[1], x.r[2], x.r[3]};
  }
  static __device__ __forceinline__ Operand get(const uint4* from) {
    const uint4 v = *from;
    return {{v.x, v.y, v.z, v.w}};
  }

  // The 4 columns from 4q on of a row of a 16 x 16 block of gate `gate` of direction d of
  // (D, gates H, width).
  __device__ __forceinline__ Piece block_row(const void* matrix, int block, int block_column,
                                             int width, int i, int gate = 0, int gates = 1) const {
    const int row = block * kUnit + i, column = block_column * kUnit + kPiece * q;
    const S* from = static_cast<const S*>(matrix) +
                    (static_cast<int64_t>(d * gates + gate) * a.H + row) * width + column;
    return load_piece(from, row < a.H ? width - column : 0,
                      alignment_of(matrix, width * static_cast<int64_t>(sizeof(S))));
  }

  // W of (D, gates H, H): of the own columns' rows or, transposed, of their columns.
  template <bool kIsTransposed, int kTerms, int kResults>
  __device__ __forceinline__ void load_weights(const void* matrix,
                                               Weight (&weights)[kTerms][kResults]) const {
    constexpr int kGates = kTerms / kSteps * kResults / kOwn;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      // Or too many loads are under way for the registers.
      if constexpr (kSteps > (kGates > 1 ? 2 : 8)) __syncwarp();
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate)
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
          const auto row = [&](int i) {
            return block_row(matrix, kIsTransposed ? k : unit(own), kIsTransposed ? unit(own) : k,
                             a.H, i, gate, kGates);
          };
          if constexpr (kIsTransposed)
            weights[k * kGates + gate][own] = Core::weight_transposed(row);
          else
            weights[k][gate * kOwn + own] = Core::weight(row);
        }
    }
  }

  // The sweep over a tile of rows. extra as above; start(begin, at, tile, acc) says what the
  // product of the nodes from `begin` on is added to; finish(at, tile, half, item, sums, acc) takes
  // the result of half its items, and after(begin, at, tile, sums) follows. at: stage of the ring;
  // sums: of the own columns.
  template <int kTerms, int kResults, typename Extra, typename Start, typename Finish,
            typename After>
  __device__ __forceinline__ void sweep(const Weight (&weights)[kTerms][kResults],
                                        const Extra& extra, const Start& start,
                                        const Finish& finish, const After& after) const {
    static_assert(kTerms == kSteps * kBlocks);
    TensorChunk next[kTensorRing - 1] = {}, ahead = chunk(0);  // under way; the one to be staged
    const auto stage_ahead = [&](int at, LateX& late) {
      load_x(ahead, late);
      stage(ahead, at);
#pragma unroll
      for (int s = 0; s < kTensorRing - 2; ++s) next[s] = next[s + 1];
      next[kTensorRing - 2] = ahead;
      ahead = chunk(ahead.end);
    };
#pragma unroll 1
    for (int s = 0; s < kTensorRing - 1; ++s) {
      LateX late;
      stage_ahead(s, late);
      store_x(s, late);
    }
    unsigned at = 0, parity = 0;
    while (next[0].begin < next[0].end) {
      const TensorChunk now = next[0];
      Operand sums[kParts];
#pragma unroll 1
      for (int tile = 0, begin = now.begin; begin < now.end; ++tile, begin += nodes) {
        gather(now, tile, begin, extra, sums);
        if constexpr (kWarps > 1) {
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            put(exchanged(parity, tile, warp * kParts + part), sums[part]);
        }
      }
      cp_async_wait<kTensorRing - 2>();  // this chunk's inputs are there
      sync();
      const unsigned last = (at + kTensorRing - 1) % kTensorRing;
      LateX late;
#pragma unroll 1
      for (int tile = 0, begin = now.begin; begin < now.end; ++tile, begin += nodes) {
        float acc[kResults][2][4];
        start(begin, at, tile, acc);
        // Few columns are few mma that do not wait for each other: the products of odd units go to
        // sums of their own, if there are registers for them.
        constexpr bool kSplits = kWarps > 1 && (kResults == 1 || (kResults == 2 && kTerms <= 8));
        constexpr float kZero[2][4] = {};
        float odd[kResults][2][4];
#pragma unroll
        for (int k = 0; k < kTerms; ++k) {
          const Operand sum = kWarps > 1 ? get(exchanged(parity, tile, k)) : sums[k % kParts];
#pragma unroll
          for (int i = 0; i < kResults; ++i) {
            auto& to = kSplits && k % 2 ? odd[i] : acc[i];
            if (kSplits && k == 1)
              Core::multiply(to, sum, weights[k][i], kZero);
            else
              Core::multiply(to, sum, weights[k][i]);
          }
        }
        if (tile == 0) stage_ahead(last, late);  // while the products go on
        if constexpr (kWarps > 1)
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            sums[part] = get(exchanged(parity, tile, warp * kParts + part));
        if constexpr (kSplits)
#pragma unroll
          for (int i = 0; i < kResults; ++i)
#pragma unroll
            for (int e = 0; e < 8; ++e) acc[i][e / 4][e % 4] += odd[i][e / 4][e % 4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (has_items(now, begin, half))
            finish(at, tile, half, item(now, begin, half), sums, acc);
        after(begin, at, tile, sums);
      }
      store_x(last, late);
      __syncwarp();  // the slots are there
      at = (at + 1) % kTensorRing;
      parity ^= 1;
    }
  }
};

template <typename Pass>
struct TensorArgs {
  Pass pass;
  TensorSweep sweep;
};

// C: columns of x, or 0 if it is not read. add() says what is staged.
template <typename Pass>
TensorArgs<Pass> tensor_args(const Pass& pass, const Plan& plan, int64_t C) {
  constexpr auto kElement = static_cast<int64_t>(sizeof(typename Pass::Storage));
  const auto& a = pass.a;
  const TensorPlan& t = std::get<TensorPlan>(plan.kind);
  TensorSweep sweep{};
  sweep.program = a.program;
  sweep.B = a.B, sweep.N = a.N, sweep.D = a.D;
  sweep.H = static_cast<int>(a.H), sweep.state_stride = static_cast<uint32_t>(a.D * a.H);
  sweep.rows_log2 = t.rows_log2, sweep.tiles = t.tiles;
  sweep.num_tiles = (a.B + (1 << t.rows_log2) - 1) >> t.rows_log2;
  sweep.C = static_cast<int>(C), sweep.x = a.x;
  sweep.alignment_x = alignment_of(a.x, C * kElement);
  sweep.layout = t.layout;
  sweep.mask = a.mask;
  sweep.alignment = 16;
  for (const void* array : pass.arrays())
    sweep.alignment = std::min(sweep.alignment, alignment_of(array, a.H * kElement));
  return {pass, sweep};
}

// Stages the blocks of H of an array's rows, as streams from `at` on.
template <typename S>
void add_streams(const void* from, int blocks, int at, TensorSweep& sweep) {
  for (int s = 0; from && s < blocks; ++s) {
    sweep.input[at + s] = static_cast<const S*>(from) + s * sweep.H;
    sweep.blocks[at + s] = blocks;
  }
}

// Calls f with the shape (kOwn, kSteps) of a plan.
template <bool kIsBackward, typename F>
void with_tensor_shape(const Plan& plan, const F& f) {
  const auto call = [&](auto steps) {
    f(std::integral_constant<int, tensor_own(decltype(steps)::value, kIsBackward)>{}, steps);
  };
  switch (std::get<TensorPlan>(plan.kind).steps) {
    case 1:
      return call(std::integral_constant<int, 1>{});
    case 2:
      return call(std::integral_constant<int, 2>{});
    case 4:
      return call(std::integral_constant<int, 4>{});
    case 8:
      return call(std::integral_constant<int, 8>{});
    default:
      return call(std::integral_constant<int, 16>{});
  }
}

}  // namespace strnn::cuda
