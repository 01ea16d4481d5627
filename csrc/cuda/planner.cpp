#include "planner.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace strnn::cuda {

int64_t storage_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    default:
      return 2;
  }
}

namespace {

constexpr int64_t kRowsPerSplit =
    64;  // below this a part of a sum over rows costs more than it brings
constexpr int64_t kMaxThreads = 256;
constexpr int64_t kMaxItems = 32;
constexpr int kMaxRowsLog2 = 4;
constexpr int64_t kTensorMaxTiles = 4;   // products of a chunk
constexpr int64_t kTensorMaxWarps = 16;  // of an SM at a time, for want of registers

int64_t acc_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 4; }
int64_t array_bytes(int64_t count, int64_t element) { return (count * element + 127) / 128 * 128; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A full block of threads, each with kItemsPerThread items of one hidden unit; fewer for a narrow
// or short problem.
void choose_items(const SweepSizes& z, Plan& plan) {
  const int64_t rows = int64_t{1} << plan.rows_log2;
  const int64_t width = ceil_div(z.N, z.G) * rows;  // items of an average group
  const int64_t full = std::max<int64_t>(1, kMaxThreads / z.H) * kItemsPerThread;
  const int64_t wanted = std::clamp<int64_t>(std::min(full, width),
                                             std::max<int64_t>(rows, kItemsPerThread), kMaxItems);
  plan.items = static_cast<int>(ceil_div(wanted, rows) * rows);
  const int64_t threads = ceil_div(plan.items, kItemsPerThread) * z.H;
  plan.threads = static_cast<int>(std::clamp<int64_t>(ceil_div(threads, 32) * 32, 64, kMaxThreads));
}

bool may_be(Family family, const Device& device) {
  return device.only < 0 || device.only == static_cast<int64_t>(family);
}

// False if it cannot; rows of a CTA (warps) and of a warp, one after the other, if it can.
bool plan_warp_per_row(const SweepSizes& z, const Device& device, Plan& plan) {
  if (!may_be(Family::kWarpPerRow, device)) return false;
  if (z.dtype != Dtype::kFloat32 || z.H > kWarpMaxH || z.C > kWarpMaxC || z.is_gated) return false;
  for (int warps_log2 = 2; warps_log2 >= 0; --warps_log2)
    for (const bool projects : {true, false}) {
      const int warps = 1 << warps_log2;
      plan.projects = projects && z.K > 0 && z.K <= kWarpMaxK;
      plan.warp = WarpLayout::of(z, warps, plan.projects);
      plan.shared_bytes = plan.warp.bytes();
      // Two CTAs to an SM at least, or the latency of a step is not hidden.
      if (2 * (plan.shared_bytes + 1024) > device.shared_per_sm ||
          plan.shared_bytes > device.shared_per_block)
        continue;
      plan.family = Family::kWarpPerRow;
      plan.threads = 32 * warps;
      plan.rows_log2 = warps_log2;
      const int64_t most_parts =
          std::max<int64_t>(1, 8 * device.num_sms / std::max<int64_t>(1, z.D));
      plan.items = z.is_backward
                       ? static_cast<int>(std::max<int64_t>(1, ceil_div(z.B, warps * most_parts)))
                       : 1;
      plan.weights_in_shared = false;  // in registers
      plan.slots_in_shared = true;
      return true;
    }
  return false;
}

// What a chunk of the tensor_core family costs, in cycles: predictions, which only choose between
// tiles. The serial chain (gather, exchange, first products, activation), and what a warp issues
// for 8 items of a unit of columns, with each mma of 16 x 8 x 16 taking the tensor core 8 cycles.
constexpr int64_t kTensorChain = 400;
constexpr int64_t kTensorIssue = 80;
constexpr int64_t kTensorMma = 8;
// And the projection as a kernel of its own: a launch, and the states once more, bytes per cycle.
constexpr int64_t kTensorLaunch = 5000;
constexpr int64_t kTensorBytesPerSm = 32;

bool plan_tensor_core(const SweepSizes& z, const Device& device, Plan& plan) {
  const int64_t units = ceil_div(z.H, 16), width = ceil_div(z.N, std::max<int64_t>(1, z.G));
  if (!may_be(Family::kTensorCore, device)) return false;
  if (storage_bytes(z.dtype) != 2 || device.architecture < 80 || units > kTensorMaxSteps ||
      z.N < 1 || z.N > kTensorMaxNodes || z.S > kTensorMaxNodes)
    return false;
  plan.steps = units <= 1 ? 1 : units <= 2 ? 2 : units <= 4 ? 4 : units <= 8 ? 8 : 16;
  plan.own = tensor_own(plan.steps, z.is_backward);
  const int warps = plan.steps / plan.own;
  plan.threads = 32 * warps;
  plan.slots_in_shared = true;
  plan.sums_input =
      z.is_backward && z.C > 0 && z.C <= kTensorSumsC && plan.steps <= kTensorSumsSteps;
  const int64_t mma = plan.steps * kTensorMma;
  const int64_t issue = plan.own * (kTensorIssue + mma);  // of half a product
  int64_t best = -1;
  Plan candidate = plan;
  for (int rows_log2 = kMaxRowsLog2; rows_log2 >= 0; --rows_log2) {
    const int64_t rows = int64_t{1} << rows_log2;
    if (rows_log2 && rows / 2 >= z.B) continue;
    // A warp alone keeps its sums in registers; several wait for each other once a chunk.
    const int64_t wanted = warps == 1 || z.N == z.G ? 1 : ceil_div(2 * width * rows, 16);
    const bool can_project =
        z.K > 0 && z.K <= kTensorMaxK && rows <= tensor_projected_rows(plan.own, plan.steps);
    for (int64_t tiles = std::min<int64_t>(wanted, kTensorMaxTiles); tiles >= 1; --tiles) {
      candidate.rows_log2 = rows_log2, candidate.items = static_cast<int>(tiles);
      const auto fits = [&](bool projects) {
        candidate.projects = projects;
        candidate.tensor = TensorLayout::of(z, candidate);
        candidate.shared_bytes = candidate.tensor.bytes(z.dtype);
        return candidate.shared_bytes <= device.shared_per_block;
      };
      if (!(can_project && fits(true)) && !fits(false)) continue;
      // A product of which only one half has items costs half.
      const int64_t halves = ceil_div(width * rows, 8), chunks = z.G * ceil_div(halves, 2 * tiles);
      const int64_t of_chunk = std::min(halves, 2 * tiles);
      const int64_t resident =
          std::clamp<int64_t>(device.shared_per_sm / (candidate.shared_bytes + 1024), 1,
                              kTensorMaxWarps / warps) *
          device.num_sms;
      const int64_t ctas = std::max<int64_t>(1, ceil_div(z.B, rows) * z.D);
      const int64_t waves = ceil_div(ctas, resident);
      const int64_t in_turn = ceil_div(std::min(ctas, resident) * warps, 4 * device.num_sms);
      const int64_t states = z.B * z.N * z.D * z.H * storage_bytes(z.dtype);
      const int64_t projection = z.K > 0 && !candidate.projects
                                     ? kTensorLaunch + states / (kTensorBytesPerSm * device.num_sms)
                                     : 0;
      const int64_t cost =
          projection +
          waves * chunks * std::max(kTensorChain + of_chunk * issue, of_chunk * issue * in_turn);
      if (best >= 0 && cost >= best) continue;
      best = cost;
      plan = candidate;
      plan.parts = std::min(ceil_div(z.B, rows), std::max<int64_t>(1, resident / z.D));
    }
  }
  plan.family = Family::kTensorCore;
  return best >= 0;
}

// False if it cannot. As few CTAs as hold W, as many nodes to a chunk as an average group has.
bool plan_cluster(const SweepSizes& z, const Device& device, Plan& plan) {
  if (!may_be(Family::kCluster, device) || (device.only < 0 && z.H < kClusterMinH)) return false;
  if (storage_bytes(z.dtype) != 2 || z.H > kClusterMaxH) return false;
  plan.cluster = 2;
  while (plan.cluster * kClusterSlice < z.H) plan.cluster *= 2;
  if (plan.cluster > device.max_cluster) return false;
  plan.family = Family::kCluster;
  plan.threads = kClusterThreads;
  // Half a tile takes little more than half the time of a step, if it has an SM of its own.
  const bool is_half = ceil_div(z.B, kClusterRows / 2) * z.D * plan.cluster <= device.num_sms;
  plan.rows_log2 = is_half ? kMaxRowsLog2 - 1 : kMaxRowsLog2;
  plan.slots_in_shared = true;
  for (int64_t nodes = std::clamp<int64_t>(ceil_div(z.N, z.G), 1, kClusterMaxNodes); nodes > 0;
       --nodes) {
    plan.items = static_cast<int>(nodes * kClusterRows);
    plan.shared_bytes = ClusterLayout::of(z, plan).bytes();
    if (plan.shared_bytes <= device.shared_per_block) return true;
  }
  return false;
}

// Predicted, not measured, in nanoseconds; they only choose between general and level.
constexpr int64_t kLaunch = 2500;    // a launch behind another one
constexpr int64_t kStep = 500;       // barriers and latencies of a chunk
constexpr int64_t kCachePerSm = 40;  // bytes per ns of the second-level cache, of an SM
constexpr int64_t kFmaPerSm = 200;   // per ns
constexpr int64_t kLoad = 400;       // latency of a block of k

// general with W outside of shared memory: every CTA fetches it for every kItemsPerThread items.
int64_t general_time(const SweepSizes& z, const Plan& plan, const Device& device) {
  const int64_t rows = int64_t{1} << plan.rows_log2, width = ceil_div(z.N, z.G) * rows;
  const int64_t items = std::min<int64_t>(plan.items, width);
  const int64_t bytes = z.H * z.H * storage_bytes(z.dtype) * ceil_div(items, kItemsPerThread);
  const int64_t waves = ceil_div(ceil_div(z.B, rows) * z.D, device.num_sms);
  return waves * z.G * ceil_div(width, items) * (bytes / kCachePerSm + kStep);
}

int64_t level_tiles(const SweepSizes& z) {  // of a direction and an average group
  return ceil_div(ceil_div(z.N, z.G) * z.B, kLevelTile) * ceil_div(z.H, kLevelTile);
}

int64_t level_time(const SweepSizes& z, const Device& device) {
  const int64_t waves = ceil_div(level_tiles(z) * z.D, device.num_sms);
  const int64_t block =
      kLevelDepth * kLevelTile * kLevelTile * (z.dtype == Dtype::kFloat64 ? 2 : 1);
  return z.G * (kLaunch + waves * ceil_div(z.H, kLevelDepth) * (block / kFmaPerSm + kLoad));
}

// False if it cannot.
bool plan_level(const SweepSizes& z, const Device& device, Plan& plan) {
  if (!may_be(Family::kLevel, device) || z.N * z.B > INT32_MAX) return false;
  const int64_t t = acc_bytes(z.dtype);
  plan = Plan{};
  plan.family = Family::kLevel;
  plan.cluster = 1;
  plan.threads = static_cast<int>(kMaxThreads);
  plan.items = kLevelTile;
  plan.slots_in_shared = true;  // there are none
  plan.shared_bytes = 2 * array_bytes(kLevelDepth * kLevelLd, t) +
                      array_bytes(4 * kLevelTile * kLevelLd, t) + array_bytes(kLevelTile, 24);
  plan.parts = std::clamp<int64_t>(
      level_tiles(z), 1, std::max<int64_t>(1, 4 * device.num_sms / std::max<int64_t>(1, z.D)));
  return plan.shared_bytes <= device.shared_per_block;
}

}  // namespace

TensorLayout TensorLayout::of(const SweepSizes& z, const Plan& plan) {
  const int64_t rows = int64_t{1} << plan.rows_log2;
  const int items = 16 * plan.items;
  const int units_x = z.is_backward ? plan.sums_input : static_cast<int>(ceil_div(z.C, 16));
  TensorLayout l{};
  const int ld = tensor_ld(plan.steps);
  l.ld_x = tensor_ld_x(units_x);
  l.records = z.N;
  l.input_weights = z.is_backward ? 0 : 32 * units_x * plan.steps;
  l.projection = plan.projects ? (z.N + 15) * kTensorLdProjection : 0;
  l.slots = (z.S + 1) * rows * ld;  // and one full of zeros
  l.exchange = plan.steps > plan.own ? 2 * plan.items * plan.steps * 32 : 0;
  const bool keeps_sums = plan.steps <= kTensorSumsSteps;
  const bool is_there[kTensorStreams] = {z.is_backward ? !z.is_gated || keeps_sums : z.C == 0,
                                         z.is_backward || z.is_gated, z.is_backward && z.is_gated,
                                         z.is_backward && z.is_gated};
  for (int s = 0; s < kTensorStreams; ++s) {
    l.stream[s] = l.stage;
    l.stage += is_there[s] ? items * ld : 0;
  }
  l.x = l.stage;
  l.stage += units_x ? items * l.ld_x : 0;
  l.ring = int64_t{kTensorRing} * l.stage;
  return l;
}

int64_t TensorLayout::bytes(Dtype dtype) const {
  const int64_t s = storage_bytes(dtype);
  return array_bytes(records, 16) + array_bytes(input_weights, 16) + array_bytes(projection, s) +
         array_bytes(slots, s) + array_bytes(exchange, 16) + array_bytes(ring, s);
}

int64_t cluster_slice(int64_t H, int cluster) { return ceil_div(ceil_div(H, cluster), 16) * 16; }

ClusterLayout ClusterLayout::of(const SweepSizes& z, const Plan& plan) {
  ClusterLayout l{};
  l.ld = static_cast<int>(ceil_div(z.H, 16) * 16 + 8);  // rows of an ldmatrix in different banks
  l.sums = 2 * plan.items * l.ld;
  l.parts = 2 * 4 * kClusterRows * kClusterLdParts;
  l.staged = 2 * 2 * (plan.items / kClusterRows) * kClusterThreads * 4;
  l.slots = z.S * kClusterThreads * 4;
  return l;
}

int64_t ClusterLayout::bytes() const {
  return array_bytes(sums, 2) + array_bytes(parts, 4) + array_bytes(staged, 2) +
         array_bytes(slots, 2);
}

WarpLayout WarpLayout::of(const SweepSizes& z, int warps, bool projects) {
  const int64_t width_x = z.C == 0 ? 0 : z.C <= 8 ? 8 : 32;
  const int64_t width = z.is_backward ? 64 + width_x : width_x ? width_x : 32;
  WarpLayout l{};
  l.records = 2 * z.N;
  l.projection = projects ? z.N * kWarpMaxK : 0;
  l.slots = z.S * 32 * warps;
  l.vectors = 2 * 2 * 32 * warps;
  l.rings = kWarpRing * width * warps;
  l.masks = ceil_div(z.N, 32) * warps;
  l.total = z.is_backward ? 32 * (32 + width_x + 1) : 0;
  return l;
}

int64_t WarpLayout::bytes() const {
  return array_bytes(records, 16) + array_bytes(projection, 4) + array_bytes(slots, 4) +
         array_bytes(vectors, 4) + array_bytes(rings, 4) + array_bytes(masks, 4) +
         array_bytes(total, 4);
}

GeneralLayout GeneralLayout::of(const SweepSizes& z, const Plan& plan) {
  const int64_t rows = int64_t{1} << plan.rows_log2, items = plan.items;
  const int64_t width0 = z.C && !z.is_backward ? z.C : z.H;
  GeneralLayout l{};
  l.ld_sum = ceil_div(z.H, 4) * 4;
  l.ld_weights = z.H | 1;  // odd: a column is written without bank conflicts
  l.weights = plan.weights_in_shared ? (z.H + (z.is_backward ? 0 : z.C)) * l.ld_weights : 0;
  l.sum = items * l.ld_sum;
  l.input0 = 2 * items * width0;
  l.input1 = z.is_backward || z.is_gated ? 2 * items * z.H : 0;
  l.slots = plan.slots_in_shared ? z.S * rows * z.H : 0;
  l.state = plan.projects ? items * z.H : 0;
  l.projected = plan.projects ? z.K * rows * z.H : 0;
  return l;
}

int64_t GeneralLayout::bytes(Dtype dtype) const {
  const int64_t s = storage_bytes(dtype), t = acc_bytes(dtype);
  return array_bytes(weights, s) + array_bytes(sum, t) + array_bytes(input0, s) +
         array_bytes(input1, s) + array_bytes(slots, t) + array_bytes(state, t) +
         array_bytes(projected, t);
}

Plan plan_sweep(const SweepSizes& z, const Device& device) {
  Plan plan{};
  plan.cluster = 1;
  if (plan_warp_per_row(z, device, plan) || plan_tensor_core(z, device, plan) ||
      plan_cluster(z, device, plan))
    return plan;
  Plan level{};
  const bool has_level = plan_level(z, device, level);
  if (has_level && device.only >= 0) return level;
  if (!may_be(Family::kGeneral, device))
    throw std::runtime_error("strnn_cuda: the kernels asked for do not take a sweep with H = " +
                             std::to_string(z.H));
  plan = Plan{};
  plan.cluster = 1;
  plan.family = Family::kGeneral;
  // Rows: as many as fill a block with the nodes of an average group, as long as every SM has a
  // tile.
  const int64_t width = ceil_div(z.N, z.G);
  while (plan.rows_log2 < kMaxRowsLog2 &&
         (width << plan.rows_log2) * z.H < kMaxThreads * kItemsPerThread &&
         ceil_div(z.B, int64_t{2} << plan.rows_log2) * z.D >= device.num_sms)
    ++plan.rows_log2;
  const auto fits = [&](bool weights, bool slots, bool projects) {
    plan.weights_in_shared = weights, plan.slots_in_shared = slots,
    plan.projects = projects && z.K > 0 && !z.is_backward;
    choose_items(z, plan);
    const int rows = 1 << plan.rows_log2;
    for (;; plan.items = std::max(rows, plan.items / 2 / rows * rows)) {
      plan.shared_bytes = GeneralLayout::of(z, plan).bytes(z.dtype);
      if (plan.shared_bytes <= device.shared_per_block) return true;
      if (weights || slots || plan.items == rows)
        return false;  // fewer items at a time only when nothing else is left
    }
  };
  // What leaves shared memory first: rows, then the fused projection, then slots, then the weights,
  // which every step reads in full.
  const int wanted_log2 = plan.rows_log2;
  for (const bool weights : {true, false})
    for (const bool slots : {true, false})
      for (const bool projects : {true, false})
        // Weights from global memory are read again by every tile: at least as many rows as share
        // one load of a weight.
        for (plan.rows_log2 = weights ? wanted_log2 : std::max(wanted_log2, kItemsPerThreadLog2);
             plan.rows_log2 >= 0; --plan.rows_log2)
          if (fits(weights, slots, projects))
            return !weights && has_level && level_time(z, device) < general_time(z, plan, device)
                       ? level
                       : plan;
  plan.rows_log2 = 0;
  fits(false, false, false);
  if (has_level) return level;
  throw std::runtime_error(
      "strnn_cuda: a sweep with H = " + std::to_string(z.H) + " and C = " + std::to_string(z.C) +
      " needs " + std::to_string(plan.shared_bytes) + " bytes of shared memory, the device has " +
      std::to_string(device.shared_per_block));
}

const char* family_name(Family family) {
  switch (family) {
    case Family::kWarpPerRow:
      return "warp_per_row";
    case Family::kTensorCore:
      return "tensor_core";
    case Family::kCluster:
      return "cluster";
    case Family::kLevel:
      return "level";
    default:
      return "general";
  }
}

int64_t choose_splits(int64_t tiles, int64_t rows, const Device& device) {
  const int64_t wanted = ceil_div(2 * device.num_sms, std::max<int64_t>(1, tiles));
  return std::clamp<int64_t>(std::min(wanted, ceil_div(rows, kRowsPerSplit)), 1, 256);
}

}  // namespace strnn::cuda
