// Which family of kernels runs a sweep, and with which tile: a pure function of the sizes and of
// the device's limits, free of CUDA, so that tests and `python -m strnn_kernels.info` call it on
// any machine.
//
//   row          H <= 128, of gated cells 32, float32: a thread per hidden unit, ceil(H / 32) warps
//   per (direction,
//                row of B), weights in registers.
//   tensor_core  H <= 256, of gated cells 128, 16-bit types: a CTA per (direction, tile of rows of
//                B), products of 16 (node, row) pairs by mma, weights in registers; a single warp
//                where H <= 64, of gated cells 16.
//   cluster      256 < H <= 1024, 16-bit types, sm_90 and later: a cluster per (direction, tile of
//                rows of B), W shared out over the registers of its CTAs.
//   level        all others, any graph, width, dtype: a launch per group, tiles of (node, row)
//                pairs and hidden units.
//
// What of gated cells and of means over predecessors a family does not have goes by levels. Tiles
// are chosen by what an SM holds at a time, its registers and shared memory counted, and what
// clusters the device runs at once.
#pragma once
#include <array>
#include <cstdint>
#include <variant>

#include "../common/dtype.h"
#include "../common/sweep.h"

namespace strnn::cuda {

struct Device {
  int64_t architecture;  // 80, 90, 100
  int64_t num_sms;
  int64_t shared_per_block;  // bytes that one CTA may ask for
  int64_t shared_per_sm;
  int64_t max_cluster;  // CTAs of the largest cluster; 0: the device has none
  int64_t only = -1;    // tests: the one Family that may be chosen, -1: any
  // Clusters of 2, 4, 8 and 16 CTAs that run at once, each CTA on an SM of its own; 0: not asked.
  std::array<int64_t, 4> clusters{};
};

enum class Family { kRow, kTensorCore, kCluster, kLevel };

// What a plan depends on; G and S are the groups and slots of the sweep program that the pass
// follows.
struct SweepSizes {
  int64_t B, N, D, C, H, K, G, S;
  Dtype dtype;
  bool is_backward;
  int cell = 0;
  bool mean = false;
};

// row: the widths that its registers hold, what its tables encode, the nodes of a step and the
// inputs that are under way at a time.
constexpr int64_t kRowMaxH = 128;
constexpr int64_t kRowGatedH = 32;
constexpr int64_t kRowNarrowH = 64;  // up to this sums of the projection and dw_hh are, too
constexpr int64_t kRowMaxC = 32;     // up to this the product with x is made in the sweep
constexpr int64_t kRowMaxNodes = 32767;
constexpr int kRowMaxK = 16;
constexpr int kRowThreads = 128;  // of a CTA, at most
constexpr int kRowNodes = 2;
constexpr int kRowRing = 8;
// Threads of a row of B.
constexpr int row_width(int64_t H) { return static_cast<int>((H + 31) / 32 * 32); }

// Shared memory of a CTA: a layout has where each array starts, in bytes, each aligned to 128.
struct Places {
  int64_t bytes = 0;

  int64_t take(int64_t count, int64_t element_bytes) {
    const int64_t at = bytes;
    bytes += (count * element_bytes + 127) / 128 * 128;
    return at;
  }
};

// row: slots, vectors, the ring and the mask are those of one row of B after the other.
struct RowLayout {
  int64_t records, projection, slots, vectors, ring, mask, own, total, bytes;
  int width;     // threads of a row of B
  int stage, x;  // elements of a stage of the ring, and where x starts in one
  int ld_x;      // elements of a thread's own row, of w_ih or dw_ih: no bank conflicts

  static RowLayout of(const SweepSizes&, const struct Plan&, int rows);
};

// tensor_core: what its registers hold, its tables encode, and the inputs under way at a time.
constexpr int64_t kTensorMaxNodes = 32767;  // and slots: 16 bits each
constexpr int kTensorRing = 3;        // with 4, two CTAs of an image's sweep would not fit on an SM
constexpr int kTensorStreams = 6;     // inputs of blocks of H for each node, at most
constexpr int kTensorSumsSteps = 8;   // most units of a state whose dw_hh stays in registers
constexpr int64_t kTensorSumsC = 15;  // and inputs whose dw_ih does: a unit, with one for dbias

constexpr int kTensorMaxSteps = 16;   // units of 16 columns of a state
constexpr int kTensorGatedSteps = 8;  // of a gated cell: a warp has a unit's weights of all gates

// Units of 16 columns of a warp, of `steps` in all. Forward, one warp has all of them up to H = 64;
// backward its registers also hold its rows of dw_hh.
constexpr int tensor_own(int steps, bool is_backward) {
  if (is_backward) return steps == 1 || steps == 8 ? 1 : 2;
  return steps <= 4 ? steps : 2;
}

// The fused projection: most rows of the sparse weight, elements from node to node of its copy in
// shared memory (no bank conflicts), and rows of B of a tile, each of which has sums of its own.
constexpr int kTensorMaxK = 16;
constexpr int kTensorLdProjection = 24;
constexpr int tensor_projected_rows(int own, int steps) { return steps > 8 ? 1 : 4 / own; }

// Elements of a row of `units` units in shared memory, such that neighbouring rows meet in no bank:
// an odd number of units where lanes read pieces, one of 16 bytes more where ldmatrix reads rows.
constexpr int tensor_ld(int units) { return 16 * (units | 1); }
constexpr int tensor_ld_x(int units) { return 16 * units + 8; }

// tensor_core: records and parts of products 16 bytes each, of gated cells what is carried, factors
// and bias float32, the others in elements of the storage type.
struct TensorLayout {
  int64_t records, input_weights, projection, slots, exchange, ring, carry, carried, factors, bias,
      bytes;
  // Of a stage of the ring: elements, of a stream; where x starts, length of a row of x.
  int stage, stream, x, ld_x;

  static TensorLayout of(const SweepSizes&, const struct Plan&, const struct TensorPlan&);
};
// cluster: a tile's rows (there is room for) are two operands of an mma, a slice is four.
constexpr int kClusterThreads = 256;
constexpr int kClusterRows = 16;
constexpr int64_t kClusterSlice = 64;
constexpr int kClusterMaxNodes = 4;
constexpr int kClusterLdParts = 68;  // a part is written and read without bank conflicts
constexpr int64_t kMaxCluster = 16;  // CTAs
constexpr int64_t kClusterMinH = 257, kClusterMaxH = 1024;

// level: a tile's items and hidden units, and what of the sum is in shared memory at a time.
constexpr int kLevelThreads = 256;
constexpr int kLevelTile = 32;
constexpr int kLevelDepth = 64;
constexpr int kLevelLd = 36;  // of a row of four-element pieces, in different banks
constexpr int kLevelItemBytes = 24;
// Hidden units of a tile: forward a gated cell has four blocks of pre-activations of each.
constexpr int level_units(int cell, bool is_backward) {
  return cell < kNumActivations || is_backward ? kLevelTile : kLevelTile / 4;
}

// Parts are float, the others of the storage type.
struct ClusterLayout {
  int64_t barriers, sums, parts, staged, slots, bytes;
  int ld;  // of a row of sums

  static ClusterLayout of(const SweepSizes&, const struct ClusterPlan&);
};
// Hidden units of a CTA of a cluster.
int64_t cluster_slice(int64_t H, int cluster);

struct RowPlan {
  int rows;  // of B, of a CTA at a time
  RowLayout layout;
};
struct TensorPlan {
  int own, steps;  // units of 16 columns of a warp and of all warps
  int rows_log2;   // rows of a tile
  int tiles;       // products of 16 items between two barriers
  TensorLayout layout;
};
struct ClusterPlan {
  int size;         // CTAs
  int rows, nodes;  // of a tile, of a chunk at most
  ClusterLayout layout;
};
struct LevelPlan {};

struct Plan {
  std::variant<RowPlan, TensorPlan, ClusterPlan, LevelPlan> kind;  // in the order of Family
  int threads;                                                     // of a CTA
  int64_t ctas;  // of a direction; if they are fewer than its tiles, they take them in turn
  int64_t shared_bytes;
  bool takes_x;   // the product with x is made in the sweep; else u is computed before
  bool projects;  // the sparse projection is, too; else a kernel of its own reads h or makes dh
  // Backward: each CTA leaves a part of dw_hh, else q for a product that follows;
  bool sums_states;
  bool sums_input;  // and of dw_ih and dbias, else du

  Family family() const { return static_cast<Family>(kind.index()); }
};

int64_t storage_bytes(Dtype);

// Registers of a thread of the kernel of a row or tensor_core plan, at most, as the compiler took
// them (tests/cuda/budget.json, which a test compares).
int registers_of(const SweepSizes&, const Plan&);
// CTAs of a plan that an SM holds at a time.
int64_t ctas_per_sm(const SweepSizes&, const Plan&, const Device&);

// Throws std::runtime_error with the limit if no tile fits the device.
Plan plan_sweep(const SweepSizes&, const Device&);

const char* family_name(Family);

}  // namespace strnn::cuda
