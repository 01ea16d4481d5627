// The sweep on tensor cores: a CTA per (tile of rows of B, direction), W in registers for the whole
// sweep. 16-bit storage up to H = 256; float32 storage up to H = 128, where the user allows tf32:
// slots, sums and inputs are float32, and rounded as they become operands of a product.
//
// Of the columns, in units of 16 (mma.cuh), each of kSteps / kOwn warps owns kOwn: it alone
// gathers, produces and keeps them. The items of a product are 16 pairs (node, row) of one group of
// the program, which do not depend on each other: 16 rows of a chain's node, or 16 nodes of a
// grid's diagonal of one row. For each chunk of nodes of a group:
//
//   gather  sum of the predecessors' states from the slots of own columns, as an operand; several
//           warps hand it to each other through `exchange` (a warp alone keeps it)
//   -- barrier: the exchange and this chunk's inputs are there; the chunk before is done
//   stage   the inputs of a later chunk on their way (cp.async), kTensorRing - 1 chunks ahead
//   product sum W^T, one mma after the other
//   finish  the pass's own: activation or gate, to the slot and to global memory
//
// The exchange has two halves, so one barrier is enough. A slot is written and read by one warp; a
// slot freed by a node may be taken by a later one of its group, so all of a tile's are read before
// one is written, and a node whose state nobody reads does not write its slot at all. Where lanes
// have fewer predecessors than others of their product, they read a slot of zeros: loads that do
// not wait for branches.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../common/sweep.h"
#include "activation.cuh"
#include "families.h"
#include "launch.cuh"
#include "mma.cuh"
#include "planner.h"
#include "ptx.cuh"
#include "storage.cuh"

namespace strnn::cuda {

constexpr int kNoSlot = 0xffff;

// CTAs that an SM should hold at least: with that many, at most 255 registers; left to itself the
// compiler makes room for more, and spills for it.
constexpr int tensor_blocks(int threads) { return threads >= 256 ? 1 : 256 / threads; }

// What both passes give to the chunk loop.
struct TensorSweep {
  Program program;
  int64_t B, N, D;
  int H, C;              // C = 0: no x
  int rows_log2, tiles;  // rows of B of a CTA; products of 16 items of a chunk
  TensorLayout layout;
  const bool* mask;
  const void* stream[kTensorStreams];  // (B, N, D, H) or null
  const void* x;                       // (B, N, C) or null
  int alignment, alignment_x;          // of rows of H elements and of x, in bytes
};

// Consecutive nodes of one group, by position.
struct TensorChunk {
  int begin, end;
};

// A pair (node, row) as its lane sees it.
struct TensorItem {
  int position, node, count, row;
  int slot, pred[3];  // by their first rows
  int64_t state;      // element of (B, N, D, H) where its state starts
  bool is_inside;     // of the chunk and of the batch: may be read and written
  bool is_live;       // and not masked
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
    if (valid > 0) piece = *reinterpret_cast<const typename TensorCore<S>::Piece*>(from);
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

template <typename S, int kOwn, int kSteps>
struct TensorTile {
  using Core = TensorCore<S>;
  using Piece = typename Core::Piece;
  using Operand = typename Core::Operand;
  using Weight = typename Core::Weight;
  static constexpr int kWarps = kSteps / kOwn, kThreads = 32 * kWarps;
  static constexpr int kQuads = sizeof(Operand) / 16;
  static constexpr int kLd = tensor_ld(kSteps);
  static constexpr int kProjectedRows =
      tensor_projected_rows(kOwn, kSteps, std::is_same_v<S, float>);

  const TensorSweep& a;
  int d, lane, g, q, warp, rows, tile_rows;
  int64_t b0, first_state[2];  // of the lane's two rows
  int first_slot[2];           // and of the first own unit
  int4* records;  // by position: node | end of the group, slot | number of predecessors, slots of
                  // the first three | live rows; 16 bits each; a slot is named by its first row
  uint4* input_weights;  // [unit of C][unit of H][quad][lane]
  S* projection;         // [position][kTensorLdProjection]
  S* slots;              // [S + 1][row][kLd]
  uint4* exchange;       // [2][tiles][unit][quad][lane]
  S* ring;               // [kTensorRing][layout.stage]

  __device__ __forceinline__ TensorTile(const TensorSweep& args, Carver carver) : a(args) {
    d = blockIdx.y;
    lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, warp = threadIdx.x / 32;
    rows = 1 << a.rows_log2;
    records = carver.take<int4>(a.layout.records);
    input_weights = carver.take<uint4>(a.layout.input_weights);
    projection = carver.take<S>(a.layout.projection);
    slots = carver.take<S>(a.layout.slots);
    exchange = carver.take<uint4>(a.layout.exchange);
    ring = carver.take<S>(a.layout.ring);
    load_records();
    set_to_zero(ring, a.layout.ring);
    set_to_zero(slots + no_pred() * kLd, rows * kLd);
  }

  static __device__ __forceinline__ void set_to_zero(S* to, int64_t count) {
    auto* words = reinterpret_cast<uint4*>(to);
#pragma unroll 1
    for (int i = threadIdx.x; i < static_cast<int>(count * sizeof(S) / sizeof(uint4));
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
      records[i] = {p.node[d * p.N + i], slot | count << 16, pred_row(0) | pred_row(1) << 16,
                    pred_row(2)};
    }
    sync();
#pragma unroll 1
    for (int group = threadIdx.x; group < p.G; group += kThreads) {
      const int32_t* bounds = p.group_ptr + d * (p.G + 1) + group;
#pragma unroll 1
      for (int i = bounds[0]; i < bounds[1]; ++i) records[i].x |= bounds[1] << 16;
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
  // Where the projection's weights of an item of a tile are.
  __device__ __forceinline__ const S* projected(const TensorChunk& c, int tile, int item) const {
    return projection + (c.begin + ((tile * kUnit + item) >> a.rows_log2)) * kTensorLdProjection;
  }
  // The part of a unit that belongs to row r of the tile: products with sums of their own.
  __device__ __forceinline__ Operand of_row(int r, Piece low, Piece high) const {
    if (kProjectedRows > 1 && row_of(0) != r) low = Piece{};
    if (kProjectedRows > 1 && row_of(1) != r) high = Piece{};
    return Core::operand(low, high);
  }

  // Turns to the rows from first_row on.
  __device__ __forceinline__ void begin(int64_t first_row) {
    b0 = first_row;
    tile_rows = static_cast<int>(a.B - b0 < rows ? a.B - b0 : rows);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      first_state[half] = (row(row_of(half), 0) * a.D + d) * a.H;
      first_slot[half] = row_of(half) * kLd + column(0);
    }
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
  __device__ __forceinline__ int64_t row(int r, int n) const { return (b0 + r) * a.N + n; }
  // All items g + 8 * half of a lane are of one row.
  __device__ __forceinline__ int row_of(int half) const { return (g + 8 * half) & (rows - 1); }

  __device__ __forceinline__ TensorChunk chunk(int begin) const {
    const int N = static_cast<int>(a.N);
    if (begin >= N) return {N, N};
    const int end = static_cast<int>(static_cast<unsigned>(records[begin].x) >> 16);
    const int most = begin + (a.tiles * kUnit >> a.rows_log2);
    return {begin, end < most ? end : most};
  }
  __device__ __forceinline__ int num_tiles(const TensorChunk& c) const {
    return (((c.end - c.begin) << a.rows_log2) + kUnit - 1) / kUnit;
  }

  // Whether any lane's item g + 8 * half of a tile is inside of the chunk.
  __device__ __forceinline__ bool has_items(const TensorChunk& c, int tile, int half) const {
    return ((c.end - c.begin) << a.rows_log2) > tile * kUnit + 8 * half;
  }
  // The lane's item g + 8 * half of a tile.
  __device__ __forceinline__ TensorItem item(const TensorChunk& c, int tile, int half) const {
    const int index = tile * kUnit + g + 8 * half;
    const int i = c.begin + (index >> a.rows_log2);
    TensorItem item{};
    item.position = i, item.row = row_of(half), item.slot = kNoSlot;
    item.pred[0] = item.pred[1] = item.pred[2] = no_pred();
    if (i >= c.end) return item;
    const int4 r = records[i];
    item.node = r.x & 0xffff;
    item.slot = r.y & 0xffff, item.count = static_cast<int>(static_cast<unsigned>(r.y) >> 16);
    item.pred[0] = r.z & 0xffff, item.pred[1] = static_cast<int>(static_cast<unsigned>(r.z) >> 16);
    item.pred[2] = r.w & 0xffff;
    item.state =
        first_state[half] + static_cast<int64_t>(item.node) * (static_cast<int>(a.D) * a.H);
    item.is_inside = item.row < tile_rows;
    item.is_live = r.w >> (16 + item.row) & 1;
    return item;
  }

  __device__ __forceinline__ S* slot(int own, int index, int half) const {
    return slots + (first_slot[half] + index * kLd + own * kUnit);
  }
  // A stream's items of a tile in stage `at` of the ring, and the lane's columns of one.
  __device__ __forceinline__ S* staged_rows(int at, int stream, int tile) const {
    return ring + at * a.layout.stage + a.layout.stream[stream] + tile * kUnit * kLd;
  }
  __device__ __forceinline__ S* staged(int at, int stream, int tile, int half, int own) const {
    return staged_rows(at, stream, tile) + (g + 8 * half) * kLd + column(own);
  }
  __device__ __forceinline__ S* staged_x(int at, int tile, int half, int unit_x) const {
    return ring + at * a.layout.stage + a.layout.x + (tile * kUnit + g + 8 * half) * a.layout.ld_x +
           unit_x * kUnit + kPiece * q;
  }

  // Starts the copies of a chunk's inputs: each lane what it will read itself, but x by all. What
  // is not there is not copied: the ring began as zeros, so a product's item or column of nothing
  // is zero or what an earlier item left, and meets only zeros or results that nobody reads.
  __device__ __forceinline__ void stage(const TensorChunk& c, int at) const {
    const int tiles = num_tiles(c);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!has_items(c, tile, half)) break;
        const TensorItem item = this->item(c, tile, half);
        if (a.alignment >= kPieceBytes<S>)
          stage_item<true>(item, at, tile, half);
        else
          stage_item<false>(item, at, tile, half);
        if (a.x && !is_x_late())
#pragma unroll 1
          for (int unit_x = warp; unit_x * kUnit < a.C; unit_x += kWarps) {
            const int at_column = unit_x * kUnit + kPiece * q;
            if (item.is_live && at_column < a.C)
              copy_piece(staged_x(at, tile, half, unit_x),
                         static_cast<const S*>(a.x) + row(item.row, item.node) * a.C + at_column,
                         a.C - at_column, a.alignment_x);
          }
      }
    cp_async_commit();
  }
  // Narrow rows of x that cp.async does not take, for they are aligned to 2 bytes, of a warp alone,
  // whose chunks are one product: loaded where others are staged, kept over the product, and put
  // into the ring after it.
  struct LateX {
    S x[2][kPiece];
  };
  __device__ __forceinline__ bool is_x_late() const {
    return kWarps == 1 && sizeof(S) == 2 && a.x && a.alignment_x < 4 && a.C <= kUnit;
  }
  __device__ __forceinline__ void load_x(const TensorChunk& c, LateX& late) const {
    if (!is_x_late()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TensorItem item = this->item(c, 0, half);
      const S* from = static_cast<const S*>(a.x) + row(item.row, item.node) * a.C;
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        const int column = kPiece * q + e;
        late.x[half][e] = item.is_live && column < a.C ? from[column] : from_acc<S>(0.f);
      }
    }
  }
  __device__ __forceinline__ void store_x(int at, const LateX& late) const {
    if (!is_x_late()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < kPiece; ++e) staged_x(at, 0, half, 0)[e] = late.x[half][e];
  }

  template <bool kIsAligned>
  __device__ __forceinline__ void stage_item(const TensorItem& item, int at, int tile,
                                             int half) const {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int valid = a.H - column(own);
      if (!item.is_inside || valid <= 0) continue;
      const int64_t from = item.state + column(own);
#pragma unroll(kIsAligned ? kTensorStreams : 1)
      for (int s = 0; s < kTensorStreams; ++s)
        if (a.stream[s])
          copy_piece(staged(at, s, tile, half, own), static_cast<const S*>(a.stream[s]) + from,
                     valid, kIsAligned ? kPieceBytes<S> : a.alignment);
    }
  }

  __device__ __forceinline__ void add_slot(float (&sum)[kPiece], int own, int index,
                                           int half) const {
    float v[kPiece];
    Core::values(*reinterpret_cast<const Piece*>(slot(own, index, half)), v);
#pragma unroll
    for (int e = 0; e < kPiece; ++e) sum[e] += v[e];
  }

  // The sums of a tile's predecessors; extra(item, column, sum) may add to one.
  template <typename Extra>
  __device__ __forceinline__ void gather(const TensorChunk& c, int tile, const Extra& extra,
                                         Operand (&sums)[kOwn]) const {
    Piece pieces[2][kOwn] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!has_items(c, tile, half)) break;
      const TensorItem item = this->item(c, tile, half);
      float sum[kOwn][kPiece] = {};
#pragma unroll
      for (int p = 0; p < 3; ++p) {
        if (!__any_sync(kAllLanes, p < item.count)) break;
#pragma unroll
        for (int own = 0; own < kOwn; ++own) add_slot(sum[own], own, item.pred[p], half);
      }
      if (item.count > 3) {
        const int32_t* pred =
            a.program.pred_slot + __ldg(a.program.pred_ptr + d * (a.N + 1) + item.position);
#pragma unroll 1
        for (int p = 3; p < item.count; ++p)
#pragma unroll
          for (int own = 0; own < kOwn; ++own)
            add_slot(sum[own], own, first_row(__ldg(pred + p)), half);
      }
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        extra(item, column(own), sum[own]);
        pieces[half][own] = Core::piece(sum[own]);
      }
    }
#pragma unroll
    for (int own = 0; own < kOwn; ++own) sums[own] = Core::operand(pieces[0][own], pieces[1][own]);
  }

  __device__ __forceinline__ uint4* exchanged(int parity, int tile, int unit) const {
    return exchange + ((parity * a.tiles + tile) * kSteps + unit) * kQuads * 32 + lane;
  }
  static __device__ __forceinline__ void put(uint4* to, const Operand& x) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i)
      to[32 * i] = {x.r[4 * i], x.r[4 * i + 1], x.r[4 * i + 2], x.r[4 * i + 3]};
  }
  static __device__ __forceinline__ Operand get(const uint4* from) {
    Operand x;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const uint4 v = from[32 * i];
      x.r[4 * i] = v.x, x.r[4 * i + 1] = v.y, x.r[4 * i + 2] = v.z, x.r[4 * i + 3] = v.w;
    }
    return x;
  }

  // The 4 columns from 4q on of a row of a 16 x 16 block of direction d of (D, H, width).
  __device__ __forceinline__ Piece block_row(const void* matrix, int block, int block_column,
                                             int width, int i) const {
    const int row = block * kUnit + i, column = block_column * kUnit + kPiece * q;
    const S* from =
        static_cast<const S*>(matrix) + (static_cast<int64_t>(d) * a.H + row) * width + column;
    return load_piece(from, row < a.H ? width - column : 0,
                      alignment_of(matrix, width * static_cast<int64_t>(sizeof(S))));
  }

  // The sweep over a tile of rows. extra as above; start(chunk, at, tile, acc) says what the
  // product is added to; finish(at, tile, half, item, sums, acc) takes the result of half a tile's
  // items, and after(chunk, at, tile, sums) follows. at: stage of the ring; sums: of the own
  // columns.
  template <typename Extra, typename Start, typename Finish, typename After>
  __device__ __forceinline__ void sweep(const Weight (&weights)[kSteps][kOwn], const Extra& extra,
                                        const Start& start, const Finish& finish,
                                        const After& after) const {
    TensorChunk now = chunk(0), ahead = now;
#pragma unroll 1
    for (int s = 0; s < kTensorRing - 1; ++s, ahead = chunk(ahead.end)) {
      LateX late;
      load_x(ahead, late);
      stage(ahead, s);
      store_x(s, late);
    }
    int at = 0, parity = 0;
    while (now.begin < now.end) {
      const int tiles = num_tiles(now);
      Operand sums[kOwn];
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        gather(now, tile, extra, sums);
        if constexpr (kWarps > 1) {
#pragma unroll
          for (int own = 0; own < kOwn; ++own) put(exchanged(parity, tile, unit(own)), sums[own]);
        }
      }
      cp_async_wait<kTensorRing - 2>();  // this chunk's inputs are there
      sync();
      const int last = (at + kTensorRing - 1) % kTensorRing;
      LateX late;
      load_x(ahead, late);
      stage(ahead, last);
      ahead = chunk(ahead.end);
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        float acc[kOwn][2][4];
        start(now, at, tile, acc);
        if constexpr (kWarps > 1) {
          // The products of odd units go to sums of their own, if there are registers for them: few
          // columns are few mma that do not wait for each other.
          constexpr bool kSplits = kSteps <= 8;
          float odd[kOwn][2][4] = {};
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
            const Operand sum = get(exchanged(parity, tile, k));
#pragma unroll
            for (int own = 0; own < kOwn; ++own)
              Core::multiply(kSplits && k % 2 ? odd[own] : acc[own], sum, weights[k][own]);
          }
#pragma unroll
          for (int own = 0; own < kOwn; ++own) {
            sums[own] = get(exchanged(parity, tile, unit(own)));
            if constexpr (kSplits) {
#pragma unroll
              for (int e = 0; e < 8; ++e) acc[own][e / 4][e % 4] += odd[own][e / 4][e % 4];
            }
          }
        } else {
#pragma unroll
          for (int k = 0; k < kSteps; ++k)
#pragma unroll
            for (int own = 0; own < kOwn; ++own) Core::multiply(acc[own], sums[k], weights[k][own]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (has_items(now, tile, half)) finish(at, tile, half, item(now, tile, half), sums, acc);
        after(now, at, tile, sums);
      }
      store_x(last, late);
      __syncwarp();  // the slots are there
      now = chunk(now.end);
      at = (at + 1) % kTensorRing;
      parity ^= 1;
    }
    cp_async_wait<0>();
  }
};

// states: all arrays of rows of H elements, null or not.
inline TensorSweep tensor_sweep(const Sweep& a, const Program& program, const Plan& plan,
                                Dtype dtype, std::initializer_list<const void*> states) {
  TensorSweep sweep{};
  sweep.program = program;
  sweep.B = a.B, sweep.N = a.N, sweep.D = a.D;
  sweep.H = static_cast<int>(a.H);
  sweep.rows_log2 = plan.rows_log2, sweep.tiles = plan.items;
  sweep.layout = plan.tensor;
  sweep.mask = a.mask;
  sweep.alignment = 16;
  for (const void* state : states)
    sweep.alignment = std::min(sweep.alignment, alignment_of(state, a.H * storage_bytes(dtype)));
  return sweep;
}

// Calls f(S{}) with the storage type.
template <typename F>
void with_tensor_dtype(Dtype dtype, const F& f) {
  if (dtype == Dtype::kFloat32)
    f(float{});
  else if (dtype == Dtype::kBFloat16)
    f(__nv_bfloat16{});
  else
    f(__half{});
}

// Calls f with the shape (kOwn, kSteps) of a plan.
template <bool kIsBackward, bool kIsTf32, typename F>
void with_tensor_shape(const Plan& plan, const F& f) {
  const auto call = [&](auto steps) {
    constexpr int kSteps = decltype(steps)::value;
    if constexpr (kSteps <= tensor_max_steps(kIsTf32))
      f(std::integral_constant<int, tensor_own(kSteps, kIsBackward, kIsTf32)>{}, steps);
  };
  switch (plan.steps) {
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
