#include "planner.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace strnn::cuda {
namespace {
// Of an SM; what the system takes of its shared memory for each CTA.
constexpr int64_t kRegisters = 65536, kThreads = 2048, kReserved = 1024;
}  // namespace

int registers_of(const SweepSizes& z, const Plan& plan) {
  const bool is_gated = z.cell >= kNumActivations;
  if (const auto* row = std::get_if<RowPlan>(&plan.kind)) {
    if (is_gated) return z.is_backward ? 256 : 248;
    if (row->layout.width > 64) return 216;
    constexpr int kNarrow[2][2] = {{136, 184}, {184, 248}};
    return kNarrow[z.is_backward][row->layout.width == 64];
  }
  const auto& t = std::get<TensorPlan>(plan.kind);
  int log2 = 0;
  while (1 << log2 < t.steps) ++log2;
  constexpr int kGated[] = {200, 184, 216, 256};
  if (is_gated) return kGated[log2];
  constexpr int kElman[2][2][5] = {{{128, 168, 248, 200, 248}, {152, 184, 256, 232, 248}},
                                   {{128, 200, 232, 232, 232}, {152, 216, 248, 240, 240}}};
  return kElman[z.is_backward][plan.projects][log2];
}

int64_t ctas_per_sm(const SweepSizes& z, const Plan& plan, const Device& device) {
  return std::min({device.shared_per_sm / (plan.shared_bytes + kReserved),
                   kRegisters / (registers_of(z, plan) * plan.threads), kThreads / plan.threads});
}

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

constexpr int kMaxRowsLog2 = 4;
constexpr int64_t kTensorMaxTiles = 4;  // products of a chunk

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t at_least_1(int64_t x) { return std::max<int64_t>(1, x); }

// Each of these is nothing if the family does not take the sweep.

// What a step of the row family costs, in cycles, likewise predicted: its serial chain, and what a
// warp issues.
constexpr int64_t kRowChain = 600;
constexpr int64_t kRowIssue = 500;

std::optional<Plan> plan_row(const SweepSizes& z, const Device& device) {
  const bool is_gated = z.cell >= kNumActivations;
  if (z.dtype != Dtype::kFloat32 || (z.mean && !is_gated) ||
      z.H > (is_gated ? kRowGatedH : kRowMaxH) || z.N > kRowMaxNodes || z.S > kRowMaxNodes)
    return {};
  const int width = row_width(z.H);
  Plan plan{};
  plan.takes_x = !is_gated && z.C > 0 && z.C <= kRowMaxC;
  plan.sums_states = !is_gated && z.is_backward && z.H <= kRowNarrowH;
  plan.sums_input = plan.sums_states && plan.takes_x;
  std::optional<Plan> best;
  int64_t lowest = 0;
  for (int rows = width == 32 ? kRowThreads / 32 : 1; rows > 0; rows /= 2)
    for (const bool projects : {true, false}) {
      plan.projects = projects && !is_gated && z.K > 0 && z.K <= kRowMaxK && z.H <= kRowNarrowH;
      plan.threads = rows * width;
      const RowLayout layout = RowLayout::of(z, plan, rows);
      plan.shared_bytes = layout.bytes;
      plan.kind = RowPlan{rows, layout};
      const int64_t resident = ctas_per_sm(z, plan, device) * device.num_sms;
      if (!resident || plan.shared_bytes > device.shared_per_block) continue;
      const int64_t tiles = ceil_div(z.B, rows), ctas = at_least_1(tiles * z.D);
      const int64_t in_turn =
          ceil_div(std::min(ctas, resident) * plan.threads, 4 * 32 * device.num_sms);
      const int64_t cost = ceil_div(ctas, resident) * std::max(kRowChain, kRowIssue * in_turn);
      if (best && cost >= lowest) break;
      plan.ctas = std::min(tiles, at_least_1(resident / z.D));
      best = plan, lowest = cost;
      break;
    }
  return best;
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

std::optional<Plan> plan_tensor_core(const SweepSizes& z, const Device& device) {
  const int64_t units = ceil_div(z.H, 16), width = ceil_div(z.N, z.G);
  const bool is_gated = z.cell >= kNumActivations;
  if (storage_bytes(z.dtype) != 2 || device.architecture < 80 || (z.mean && !is_gated) ||
      units > (is_gated ? kTensorGatedSteps : kTensorMaxSteps) || z.N > kTensorMaxNodes ||
      z.S > kTensorMaxNodes)
    return {};
  TensorPlan t{};
  t.steps = units <= 1 ? 1 : units <= 2 ? 2 : units <= 4 ? 4 : units <= 8 ? 8 : 16;
  t.own = is_gated ? 1 : tensor_own(t.steps, z.is_backward);
  const int warps = t.steps / t.own;
  Plan plan{};
  plan.threads = 32 * warps;
  plan.takes_x = !is_gated;
  plan.sums_states = z.is_backward && !is_gated && t.steps <= kTensorSumsSteps;
  plan.sums_input = plan.sums_states && z.C > 0 && z.C <= kTensorSumsC;
  const int64_t mma = t.steps * kTensorMma;
  const int64_t issue = gates_of(z.cell) * t.own * (kTensorIssue + mma);  // of half a product
  std::optional<Plan> best;
  int64_t lowest = 0;
  for (t.rows_log2 = kMaxRowsLog2; t.rows_log2 >= 0; --t.rows_log2) {
    const int64_t rows = int64_t{1} << t.rows_log2;
    if (t.rows_log2 && rows / 2 >= z.B) continue;
    // A warp alone keeps its sums in registers; several wait for each other once a chunk.
    const int64_t wanted = warps == 1 || z.N == z.G ? 1 : ceil_div(2 * width * rows, 16);
    const bool can_project =
        !is_gated && z.K > 0 && z.K <= kTensorMaxK && rows <= tensor_projected_rows(t.own, t.steps);
    for (t.tiles = static_cast<int>(std::min(wanted, kTensorMaxTiles)); t.tiles >= 1; --t.tiles) {
      const auto fits = [&](bool projects) {
        plan.projects = projects;
        t.layout = TensorLayout::of(z, plan, t);
        plan.shared_bytes = t.layout.bytes;
        return plan.shared_bytes <= device.shared_per_block;
      };
      if (!(can_project && fits(true)) && !fits(false)) continue;
      // A product of which only one half has items costs half.
      const int64_t halves = ceil_div(width * rows, 8),
                    chunks = z.G * ceil_div(halves, 2 * t.tiles);
      const int64_t of_chunk = std::min<int64_t>(halves, 2 * t.tiles);
      plan.kind = t;
      const int64_t resident = at_least_1(ctas_per_sm(z, plan, device)) * device.num_sms;
      const int64_t tiles = ceil_div(z.B, rows), ctas = at_least_1(tiles * z.D);
      const int64_t waves = ceil_div(ctas, resident);
      const int64_t in_turn = ceil_div(std::min(ctas, resident) * warps, 4 * device.num_sms);
      const int64_t states = z.B * z.N * z.D * z.H * storage_bytes(z.dtype);
      const int64_t projection = z.K > 0 && !plan.projects
                                     ? kTensorLaunch + states / (kTensorBytesPerSm * device.num_sms)
                                     : 0;
      const int64_t cost =
          projection +
          waves * chunks * std::max(kTensorChain + of_chunk * issue, of_chunk * issue * in_turn);
      if (best && cost >= lowest) continue;
      plan.ctas = z.is_backward || is_gated ? std::min(tiles, at_least_1(resident / z.D)) : tiles;
      best = plan, lowest = cost;
    }
  }
  return best;
}

// As few CTAs as hold W, as many nodes to a chunk as an average group has.
std::optional<Plan> plan_cluster(const SweepSizes& z, const Device& device) {
  if (device.only < 0 && z.H < kClusterMinH) return {};
  if (storage_bytes(z.dtype) != 2 || z.H > kClusterMaxH) return {};
  ClusterPlan c{};
  c.size = 2;
  while (c.size * kClusterSlice < z.H) c.size *= 2;
  if (c.size > device.max_cluster) return {};
  // Half a tile takes little more than half the time of a step, if all run at once, on SMs of their
  // own: clusters may leave some of the SMs over.
  const int64_t asked = device.clusters[c.size == 2 ? 0 : c.size == 4 ? 1 : c.size == 8 ? 2 : 3];
  const int64_t at_once = asked ? asked : device.num_sms / c.size;
  const bool is_half = ceil_div(z.B, kClusterRows / 2) * z.D <= at_once;
  c.rows = is_half ? kClusterRows / 2 : kClusterRows;
  Plan plan{};
  plan.threads = kClusterThreads;
  plan.ctas = ceil_div(z.B, c.rows) * c.size;
  c.nodes = static_cast<int>(std::min<int64_t>(ceil_div(z.N, z.G), kClusterMaxNodes));
  for (; c.nodes > 0; --c.nodes) {
    c.layout = ClusterLayout::of(z, c);
    plan.shared_bytes = c.layout.bytes;
    if (plan.shared_bytes > device.shared_per_block) continue;
    plan.kind = c;
    return plan;
  }
  return {};
}

Plan plan_level(const SweepSizes& z, const Device& device) {
  const int64_t tiles =  // of a direction and an average group
      ceil_div(ceil_div(z.N, z.G) * z.B, kLevelTile) *
      ceil_div(z.H, level_units(z.cell, z.is_backward));
  Plan plan{};
  plan.kind = LevelPlan{};
  plan.threads = kLevelThreads;
  plan.ctas = std::clamp<int64_t>(tiles, 1, at_least_1(4 * device.num_sms / z.D));
  Places places;
  places.take(2 * kLevelDepth * kLevelLd, z.dtype == Dtype::kFloat64 ? 8 : 4);
  places.take(kLevelTile, kLevelItemBytes);
  plan.shared_bytes = places.bytes;
  return plan;
}

}  // namespace

TensorLayout TensorLayout::of(const SweepSizes& z, const Plan& plan, const TensorPlan& t) {
  const int64_t rows = int64_t{1} << t.rows_log2, slots = z.S + 1;  // one is full of zeros
  const int items = 16 * t.tiles, ld = tensor_ld(t.steps);
  const int units_x = z.is_backward  ? plan.sums_input
                      : plan.takes_x ? static_cast<int>(ceil_div(z.C, 16))
                                     : 0;
  const bool is_gated = z.cell >= kNumActivations;
  // Blocks of H of a state, and streams.
  const int blocks = z.is_backward ? static_cast<int>(gates_of(z.cell)) : 1;
  const int64_t streams = z.is_backward ? (is_gated ? saved_of(z.cell) : 1) + 1
                          : units_x     ? 0
                                        : gates_of(z.cell);
  const int64_t element = storage_bytes(z.dtype);
  TensorLayout l{};
  l.ld_x = tensor_ld_x(units_x);
  l.stream = items * ld;
  l.x = static_cast<int>(streams) * l.stream;
  l.stage = l.x + items * (units_x ? l.ld_x : 0);
  Places places;
  l.records = places.take(z.N, 16);
  l.input_weights = places.take(z.is_backward ? 0 : 32 * units_x * t.steps, 16);
  l.projection = places.take(plan.projects ? (z.N + 15) * kTensorLdProjection : 0, element);
  l.slots = places.take(slots * rows * tensor_ld(t.steps * blocks), element);
  l.exchange = places.take(t.steps > t.own ? 2 * t.tiles * t.steps * blocks * 32 : 0, 16);
  l.ring = places.take(int64_t{kTensorRing} * l.stage, element);
  l.carry = places.take(is_gated ? slots * rows * ld : 0, 4);
  l.carried = places.take(is_gated ? items * 16 * t.steps : 0, 4);
  l.factors = places.take(is_gated ? z.N : 0, 4);
  l.bias = places.take(is_gated && !z.is_backward ? bias_rows_of(z.cell) * 16 * t.steps : 0, 4);
  l.bytes = places.bytes;
  return l;
}

int64_t cluster_slice(int64_t H, int cluster) { return ceil_div(ceil_div(H, cluster), 16) * 16; }

ClusterLayout ClusterLayout::of(const SweepSizes& z, const ClusterPlan& c) {
  ClusterLayout l{};
  l.ld = static_cast<int>(ceil_div(z.H, 16) * 16 + 8);  // rows of an ldmatrix in different banks
  Places places;
  l.barriers = places.take(2, 8);
  l.sums = places.take(2 * c.nodes * kClusterRows * l.ld, 2);
  l.parts = places.take(2 * 4 * kClusterRows * kClusterLdParts, 4);
  l.staged = places.take(2 * 2 * c.nodes * kClusterThreads * 4, 2);
  l.slots = places.take(z.S * kClusterThreads * 4, 2);
  l.bytes = places.bytes;
  return l;
}

RowLayout RowLayout::of(const SweepSizes& z, const Plan& plan, int rows) {
  RowLayout l{};
  Places places;
  l.width = row_width(z.H);
  const bool is_gated = z.cell >= kNumActivations;
  const int gates = static_cast<int>(gates_of(z.cell)), blocks = z.is_backward ? gates : 1;
  // A row of x in a stage, and of backward's a one beside it, for dbias.
  const bool has_x = z.is_backward ? plan.sums_input : plan.takes_x;
  const int columns = has_x ? static_cast<int>(ceil_div(z.C + z.is_backward, 4) * 4) : 0;
  l.ld_x = columns | 4;
  const int streams = z.is_backward ? 1 + (is_gated ? static_cast<int>(saved_of(z.cell)) : 1)
                      : has_x       ? 0
                                    : gates;
  l.x = streams * l.width;
  l.stage = l.x + columns;
  const int64_t threads = int64_t{rows} * l.width;
  l.records = places.take(z.N, 16 + 4 * is_gated);  // and factors
  l.projection = places.take(plan.projects ? z.N * kRowMaxK : 0, 4);
  l.slots = places.take(z.S * threads * (blocks + is_gated), 4);
  l.vectors = places.take(2 * kRowNodes * threads * blocks, 4);
  l.ring = places.take(int64_t{rows} * kRowRing * l.stage, 4);
  l.mask = places.take(rows * ceil_div(z.N, 32), 4);
  l.own = places.take(has_x ? threads * l.ld_x : 0, 4);
  l.total = places.take(plan.sums_states ? threads * (l.width + 1) : 0, 4);
  l.bytes = places.bytes;
  return l;
}

Plan plan_sweep(const SweepSizes& z, const Device& device) {
  const bool is_gated = z.cell >= kNumActivations;
  const auto may_be = [&](Family family) {
    return (device.only < 0 || device.only == static_cast<int64_t>(family)) &&
           ((!is_gated && !z.mean) || family != Family::kCluster);
  };
  std::optional<Plan> plan;
  if (may_be(Family::kRow)) plan = plan_row(z, device);
  if (!plan && may_be(Family::kTensorCore)) plan = plan_tensor_core(z, device);
  if (!plan && may_be(Family::kCluster)) plan = plan_cluster(z, device);
  if (plan) return *plan;
  if (!may_be(Family::kLevel))
    throw std::runtime_error("strnn_cuda: the kernels asked for do not take a sweep with H = " +
                             std::to_string(z.H) + (is_gated ? " of a gated cell" : "") +
                             (z.mean ? " and a mean over predecessors" : "") + ": level does");
  const Plan level = plan_level(z, device);
  if (z.N * z.B > INT32_MAX)
    throw std::runtime_error("strnn_cuda: a sweep with N = " + std::to_string(z.N) + " and B = " +
                             std::to_string(z.B) + " has more than 2**31 - 1 pairs of them");
  if (level.shared_bytes > device.shared_per_block)
    throw std::runtime_error("strnn_cuda: a sweep with H = " + std::to_string(z.H) + " needs " +
                             std::to_string(level.shared_bytes) +
                             " bytes of shared memory, the device has " +
                             std::to_string(device.shared_per_block));
  return level;
}

const char* family_name(Family family) {
  switch (family) {
    case Family::kRow:
      return "row";
    case Family::kTensorCore:
      return "tensor_core";
    case Family::kCluster:
      return "cluster";
    default:
      return "level";
  }
}

}  // namespace strnn::cuda
