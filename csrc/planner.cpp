// The planner: from predecessor lists to the program that every backend follows.
//
// A graph of N nodes in D directions is a pair of int32 arrays, pred_ptr (D, N + 1) and pred (E):
// the predecessors of node n in direction d are pred[pred_ptr[d][n]] .. pred[pred_ptr[d][n + 1]].
// strnn_kernels/planner.py is the readable twin: same functions, same results, same exceptions.
// The algorithms below take and return plain vectors; Python is met at the end of the file only.
// Everything is linear in N + E but for the sets of free slots and ready nodes (see MinSet).

#include "cuda/planner.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace strnn::planner {
namespace {

using Ints = std::vector<int32_t>;

constexpr int64_t kMaxEdges = std::numeric_limits<int32_t>::max();
// A cycle longer than this is cut in the error message.
constexpr size_t kCycleShown = 8;

// One direction of a graph; does not own its arrays.
struct Lists {
  int64_t N;
  const int32_t* ptr;   // (N + 1,)
  const int32_t* item;  // (E,) of all directions: ptr holds global offsets

  const int32_t* begin(int64_t n) const { return item + ptr[n]; }
  const int32_t* end(int64_t n) const { return item + ptr[n + 1]; }
  int32_t size(int64_t n) const { return ptr[n + 1] - ptr[n]; }
};

// A set of integers below a bound that gives back its smallest member. Bit i of a word says that
// word i of the layer below is not empty, so both operations touch log64(bound) words.
class MinSet {
 public:
  explicit MinSet(int64_t bound) {
    do {
      bound = (bound + 63) / 64;
      layers_.emplace_back(static_cast<size_t>(bound), 0);
    } while (bound > 1);
  }

  bool empty() const { return layers_.back()[0] == 0; }

  void insert(int32_t value) {
    size_t i = static_cast<size_t>(value);
    for (auto& layer : layers_) {
      layer[i / 64] |= uint64_t{1} << (i % 64);
      i /= 64;
    }
  }

  // The set must not be empty.
  int32_t pop_min() {
    size_t i = 0;
    for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) {
      i = i * 64 + static_cast<size_t>(lowest_bit((*layer)[i]));
    }
    const auto value = static_cast<int32_t>(i);
    for (auto& layer : layers_) {
      layer[i / 64] &= ~(uint64_t{1} << (i % 64));
      if (layer[i / 64] != 0) break;
      i /= 64;
    }
    return value;
  }

 private:
  static int lowest_bit(uint64_t word) {
    int bit = 0;
    for (int half = 32; half > 0; half /= 2) {
      if ((word & ((uint64_t{1} << half) - 1)) == 0) {
        word >>= half;
        bit += half;
      }
    }
    return bit;
  }

  std::vector<std::vector<uint64_t>> layers_;  // from the members up
};

// Writes the successor lists of one direction: succ_ptr (N + 1,) with offsets into succ from
// `base`.
void transpose(const Lists& pred, int32_t base, int32_t* succ_ptr, int32_t* succ) {
  const int64_t N = pred.N;
  Ints next(static_cast<size_t>(N) + 1, 0);
  for (const int32_t* p = pred.begin(0); p != pred.end(N - 1); ++p) ++next[*p + 1];
  next[0] = base;
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::copy(next.begin(), next.end(), succ_ptr);
  for (int64_t n = 0; n < N; ++n) {
    for (const int32_t* p = pred.begin(n); p != pred.end(n); ++p) {
      succ[next[*p]++] = static_cast<int32_t>(n);
    }
  }
}

// The successor lists of one direction, with offsets of its own.
struct Successors {
  explicit Successors(const Lists& pred)
      : ptr(static_cast<size_t>(pred.N) + 1),
        item(static_cast<size_t>(pred.ptr[pred.N] - pred.ptr[0])),
        lists{pred.N, ptr.data(), item.data()} {
    transpose(pred, 0, ptr.data(), item.data());
  }
  Successors(const Successors&) = delete;
  Successors& operator=(const Successors&) = delete;

  Ints ptr, item;
  Lists lists;
};

// Each node left over has a predecessor left over, so walking back must meet itself.
std::string cycle_message(int64_t d, const Lists& pred, const Ints& waits_for) {
  const auto is_left = [&](int32_t n) { return waits_for[n] != 0; };
  auto n = static_cast<int32_t>(std::find_if(waits_for.begin(), waits_for.end(),
                                             [](int32_t waiting) { return waiting != 0; }) -
                                waits_for.begin());
  Ints walk;
  Ints step_of(static_cast<size_t>(pred.N), -1);
  while (step_of[n] < 0) {
    step_of[n] = static_cast<int32_t>(walk.size());
    walk.push_back(n);
    n = *std::find_if(pred.begin(n), pred.end(n), is_left);
  }
  const Ints cycle(walk.begin() + step_of[n], walk.end());
  std::string text = "Topology: direction " + std::to_string(d) + " has a cycle: ";
  for (size_t i = 0; i < std::min(cycle.size(), kCycleShown); ++i) {
    text += std::to_string(cycle[i]) + " <- ";
  }
  if (cycle.size() > kCycleShown) text += "... (" + std::to_string(cycle.size()) + " nodes) <- ";
  return text + std::to_string(n);
}

// level[n] = 0 without predecessors, else 1 + the highest level of a predecessor.
void compute_levels(int64_t d, const Lists& pred, const Lists& succ, int32_t* level) {
  const int64_t N = pred.N;
  std::fill(level, level + N, 0);
  Ints waits_for(static_cast<size_t>(N)), ready;
  ready.reserve(static_cast<size_t>(N));
  for (int64_t n = 0; n < N; ++n) {
    waits_for[n] = pred.size(n);
    if (waits_for[n] == 0) ready.push_back(static_cast<int32_t>(n));
  }
  for (size_t i = 0; i < ready.size(); ++i) {
    const int32_t n = ready[i];
    for (const int32_t* s = succ.begin(n); s != succ.end(n); ++s) {
      level[*s] = std::max(level[*s], level[n] + 1);
      if (--waits_for[*s] == 0) ready.push_back(*s);
    }
  }
  if (static_cast<int64_t>(ready.size()) < N) {
    throw std::invalid_argument(cycle_message(d, pred, waits_for));
  }
}

// Nodes by level, then by number: a counting sort.
Ints by_level(int64_t d, const Lists& pred, const Lists& succ) {
  Ints level(static_cast<size_t>(pred.N));
  compute_levels(d, pred, succ, level.data());
  const int32_t num_levels = *std::max_element(level.begin(), level.end()) + 1;
  Ints next(static_cast<size_t>(num_levels) + 1, 0);
  for (const int32_t l : level) ++next[l + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  Ints node(level.size());
  for (size_t n = 0; n < level.size(); ++n) node[next[level[n]]++] = static_cast<int32_t>(n);
  return node;
}

// Always the smallest of the nodes whose predecessors have all been visited.
Ints smallest_ready_first(int64_t d, const Lists& pred, const Lists& succ) {
  Ints waits_for(static_cast<size_t>(pred.N)), node;
  node.reserve(static_cast<size_t>(pred.N));
  MinSet ready(pred.N);
  for (int64_t n = 0; n < pred.N; ++n) {
    waits_for[n] = pred.size(n);
    if (waits_for[n] == 0) ready.insert(static_cast<int32_t>(n));
  }
  while (!ready.empty()) {
    const int32_t n = ready.pop_min();
    node.push_back(n);
    for (const int32_t* s = succ.begin(n); s != succ.end(n); ++s) {
      if (--waits_for[*s] == 0) ready.insert(*s);
    }
  }
  if (static_cast<int64_t>(node.size()) < pred.N) {
    throw std::invalid_argument(cycle_message(d, pred, waits_for));
  }
  return node;
}

// Greedy runs of nodes none of which depends on another of its run: where each starts, then N.
Ints compute_groups(const Ints& node, const Lists& pred) {
  Ints position(node.size());
  for (size_t i = 0; i < node.size(); ++i) position[node[i]] = static_cast<int32_t>(i);
  Ints group_ptr = {0};
  for (size_t i = 0; i < node.size(); ++i) {
    const int32_t start = group_ptr.back();
    if (std::any_of(pred.begin(node[i]), pred.end(node[i]),
                    [&](int32_t p) { return position[p] >= start; })) {
      group_ptr.push_back(static_cast<int32_t>(i));
    }
  }
  group_ptr.push_back(static_cast<int32_t>(node.size()));
  return group_ptr;
}

// The part of the program's table that belongs to one direction.
struct Rows {
  int32_t *node, *slot, *num_succ, *pred_ptr;  // (N,) (N,) (N,) (N + 1,)
  int32_t *pred_slot, *pred_node;              // (E,) of all directions
};

// Fills all rows but the groups, returns the number of slots. A predecessor seen for the last time
// frees its slot before the node takes one, the lowest that is free. A node that nothing follows
// frees its own when its group ends: the nodes of a group may be stored at once.
int32_t fill_rows(const Ints& node, const Ints& group_ptr, const Lists& pred, const Rows& rows) {
  const auto N = static_cast<size_t>(pred.N);
  Ints num_succ(N, 0), slot_of(N);
  for (const int32_t* p = pred.begin(0); p != pred.end(pred.N - 1); ++p) ++num_succ[*p];
  Ints uses = num_succ;
  MinSet free(pred.N);
  int32_t num_slots = 0;
  int32_t edge = pred.ptr[0];
  Ints unread;  // slots of this group's nodes that nothing follows
  size_t group = 0;
  for (size_t i = 0; i < N; ++i) {
    const int32_t n = node[i];
    if (static_cast<int32_t>(i) == group_ptr[group]) {
      for (const int32_t slot : unread) free.insert(slot);
      unread.clear();
      ++group;
    }
    rows.pred_ptr[i] = edge;
    for (const int32_t* p = pred.begin(n); p != pred.end(n); ++p, ++edge) {
      rows.pred_node[edge] = *p;
      rows.pred_slot[edge] = slot_of[*p];
      if (--uses[*p] == 0) free.insert(slot_of[*p]);
    }
    slot_of[n] = free.empty() ? num_slots++ : free.pop_min();
    if (num_succ[n] == 0) unread.push_back(slot_of[n]);
    rows.node[i] = n;
    rows.slot[i] = slot_of[n];
    rows.num_succ[i] = num_succ[n];
  }
  rows.pred_ptr[N] = edge;
  return num_slots;
}

// Cells by position: one number per cell, with room on both sides of a row so that no neighbour
// wraps round.
struct Cells {
  int64_t room, width;
  std::vector<int64_t> key;  // ascending
  Ints node;                 // node with that key
};

Cells sort_cells(int64_t N, const int32_t* row, const int32_t* col, int64_t room) {
  Cells cells;
  cells.room = room;
  cells.width = int64_t{*std::max_element(col, col + N)} + 1 + 2 * room;
  int64_t most;
  if (__builtin_mul_overflow(int64_t{*std::max_element(row, row + N)} + 2 + room, cells.width,
                             &most)) {
    throw std::invalid_argument("Topology: positions and offsets are too far apart for 64 bits");
  }
  const auto key = [&](int64_t n) { return row[n] * cells.width + col[n] + room; };
  cells.node.resize(static_cast<size_t>(N));
  std::iota(cells.node.begin(), cells.node.end(), 0);
  const auto before = [&](int32_t a, int32_t b) { return key(a) < key(b); };
  // The cells of a grid come in order already.
  if (!std::is_sorted(cells.node.begin(), cells.node.end(), before)) {
    std::stable_sort(cells.node.begin(), cells.node.end(), before);
  }
  cells.key.reserve(static_cast<size_t>(N));
  for (const int32_t n : cells.node) {
    if (!cells.key.empty() && cells.key.back() == key(n)) {
      const int32_t first = cells.node[cells.key.size() - 1];
      throw std::invalid_argument("Topology: nodes " + std::to_string(first) + " and " +
                                  std::to_string(n) + " have the same position (" +
                                  std::to_string(row[n]) + ", " + std::to_string(col[n]) + ")");
    }
    cells.key.push_back(key(n));
  }
  return cells;
}

// Appends one direction's predecessors to pred and writes its offsets. A neighbour's key is the
// cell's key plus a constant, so one pass over the sorted keys finds the neighbours of all cells.
void append_neighbours(const Cells& cells, const int32_t* offsets, int64_t P, int32_t* pred_ptr,
                       Ints& pred) {
  const size_t N = cells.key.size();
  Ints found(N * static_cast<size_t>(P), -1);  // (N, P)
  for (int64_t p = 0; p < P; ++p) {
    const int64_t shift = offsets[2 * p] * cells.width + offsets[2 * p + 1];
    size_t j = 0;
    for (size_t i = 0; i < N; ++i) {
      while (j < N && cells.key[j] < cells.key[i] + shift) ++j;
      if (j < N && cells.key[j] == cells.key[i] + shift) {
        found[static_cast<size_t>(cells.node[i]) * P + p] = cells.node[j];
      }
    }
  }
  for (size_t n = 0; n < N; ++n) {
    pred_ptr[n] = static_cast<int32_t>(pred.size());
    const auto own = found.begin() + static_cast<std::ptrdiff_t>(n) * P;
    std::sort(own, own + P);
    std::copy(std::upper_bound(own, own + P, -1), own + P, std::back_inserter(pred));
  }
  if (static_cast<int64_t>(pred.size()) > kMaxEdges) {
    throw std::invalid_argument("Topology: " + std::to_string(pred.size()) +
                                " edges are more than " + std::to_string(kMaxEdges));
  }
  pred_ptr[N] = static_cast<int32_t>(pred.size());
}

using Array = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

Array int_array(const py::object& values, const std::string& name) {
  const auto array = py::array::ensure(values);
  if (!array || (array.dtype().kind() != 'i' && array.dtype().kind() != 'u')) {
    PyErr_Clear();
    throw py::type_error("Topology: " + name + " must be an array of integers");
  }
  if (!array.dtype().is(py::dtype::of<int32_t>())) {
    using Wide = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
    const Wide wide = Wide::ensure(array);  // what has no place in it comes out negative
    const bool is_unsigned = array.dtype().kind() == 'u';
    if (std::any_of(wide.data(), wide.data() + wide.size(), [&](int64_t i) {
          return i < (is_unsigned ? 0 : std::numeric_limits<int32_t>::min()) ||
                 i > std::numeric_limits<int32_t>::max();
        })) {
      throw std::invalid_argument("Topology: " + name + " must be integers of 32 bits");
    }
  }
  return Array::ensure(array);
}

// The graph as given by Python, checked so that nothing below can leave its arrays.
struct Graph {
  Graph(int64_t num_nodes, const py::object& pred_ptr, const py::object& pred)
      : N(num_nodes), ptr(int_array(pred_ptr, "pred_ptr")), item(int_array(pred, "pred")) {
    if (N < 1 || ptr.ndim() != 2 || ptr.shape(0) < 1 || ptr.shape(1) - 1 != N) {
      throw std::invalid_argument(
          "Topology: pred_ptr must have shape (D, N + 1) with D >= 1 and N >= 1");
    }
    if (item.ndim() != 1 || item.size() > kMaxEdges) {
      throw std::invalid_argument("Topology: pred must have shape (E,) with E < 2**31");
    }
    D = ptr.shape(0);
    E = item.size();
    const int32_t* offset = ptr.data();
    bool ok = offset[0] == 0 && offset[D * (N + 1) - 1] == E &&
              std::is_sorted(offset, offset + D * (N + 1));
    for (int64_t d = 1; d < D; ++d) ok = ok && offset[d * (N + 1)] == offset[d * (N + 1) - 1];
    if (!ok) {
      throw std::invalid_argument("Topology: pred_ptr must rise from 0 to E without gaps");
    }
    if (std::any_of(item.data(), item.data() + E, [&](int32_t p) { return p < 0 || p >= N; })) {
      throw std::invalid_argument("Topology: a predecessor is outside 0 .. " +
                                  std::to_string(N - 1));
    }
    directions.reserve(static_cast<size_t>(D));
    for (int64_t d = 0; d < D; ++d) {
      directions.push_back({N, offset + d * (N + 1), item.data()});
    }
  }

  int64_t N, D = 0, E = 0;
  Array ptr, item;
  std::vector<Lists> directions;
};

py::tuple py_cell_predecessors(const py::object& row_values, const py::object& col_values,
                               const py::object& offset_values) {
  const Array row = int_array(row_values, "row"), col = int_array(col_values, "col");
  const Array offsets = int_array(offset_values, "offsets");
  const int64_t N = row.size();
  if (row.ndim() != 1 || col.ndim() != 1 || col.size() != N || N == 0) {
    throw std::invalid_argument("Topology: row and col must have one shape (N,) with N >= 1");
  }
  if (offsets.ndim() != 3 || offsets.shape(2) != 2) {
    throw std::invalid_argument("Topology: offsets must have shape (D, P, 2)");
  }
  const auto is_negative = [](int32_t i) { return i < 0; };
  if (std::any_of(row.data(), row.data() + N, is_negative) ||
      std::any_of(col.data(), col.data() + N, is_negative)) {
    throw std::invalid_argument("Topology: row and col must not be negative");
  }
  const int64_t D = offsets.shape(0), P = offsets.shape(1);
  Array pred_ptr({D, N + 1});
  int32_t* const ptr = pred_ptr.mutable_data();
  Ints pred;
  {
    py::gil_scoped_release release;
    int64_t room = 0;
    for (int64_t i = 0; i < offsets.size(); ++i) {
      room = std::max(room, std::abs(static_cast<int64_t>(offsets.data()[i])));
    }
    const Cells cells = sort_cells(N, row.data(), col.data(), room);
    for (int64_t d = 0; d < D; ++d) {
      append_neighbours(cells, offsets.data() + d * P * 2, P, ptr + d * (N + 1), pred);
    }
  }
  return py::make_tuple(pred_ptr, Array(static_cast<py::ssize_t>(pred.size()), pred.data()));
}

py::tuple py_transpose(int64_t num_nodes, const py::object& pred_ptr, const py::object& pred) {
  const Graph graph(num_nodes, pred_ptr, pred);
  Array succ_ptr({graph.D, graph.N + 1}), succ(graph.E);
  int32_t *const ptr = succ_ptr.mutable_data(), *const item = succ.mutable_data();
  {
    py::gil_scoped_release release;
    for (int64_t d = 0; d < graph.D; ++d) {
      const Lists& lists = graph.directions[d];
      transpose(lists, lists.ptr[0], ptr + d * (graph.N + 1), item);
    }
  }
  return py::make_tuple(succ_ptr, succ);
}

Array py_compute_levels(int64_t num_nodes, const py::object& pred_ptr, const py::object& pred) {
  const Graph graph(num_nodes, pred_ptr, pred);
  Array level({graph.D, graph.N});
  int32_t* const out = level.mutable_data();
  {
    py::gil_scoped_release release;
    for (int64_t d = 0; d < graph.D; ++d) {
      const Successors succ(graph.directions[d]);
      compute_levels(d, graph.directions[d], succ.lists, out + d * graph.N);
    }
  }
  return level;
}

py::dict py_compile_program(int64_t num_nodes, const py::object& pred_ptr, const py::object& pred,
                            const std::string& order) {
  if (order != "levels" && order != "raster") {
    throw std::invalid_argument("Topology: order must be \"levels\" or \"raster\", got \"" + order +
                                "\"");
  }
  const Graph graph(num_nodes, pred_ptr, pred);
  const int64_t N = graph.N, D = graph.D, E = graph.E;

  // The size of the table depends on the number of groups: first the orders, then the rest.
  std::vector<Ints> node, group_ptr;
  int64_t G = 0;
  {
    py::gil_scoped_release release;
    for (int64_t d = 0; d < D; ++d) {
      const Lists& lists = graph.directions[d];
      const Successors succ(lists);
      node.push_back(order == "levels" ? by_level(d, lists, succ.lists)
                                       : smallest_ready_first(d, lists, succ.lists));
      group_ptr.push_back(compute_groups(node.back(), lists));
      G = std::max(G, static_cast<int64_t>(group_ptr.back().size()) - 1);
    }
  }

  Array table(D * (3 * N + (G + 1) + (N + 1)) + 2 * E);
  py::dict program;
  int32_t* next = table.mutable_data();
  const auto take = [&](const char* name, std::vector<py::ssize_t> shape) {
    int32_t* const begin = next;
    const Array view(shape, begin, table);
    program[name] = view;
    next += view.size();
    return begin;
  };
  int32_t* const nodes = take("node", {D, N});
  int32_t* const slots = take("slot", {D, N});
  int32_t* const num_succ = take("num_succ", {D, N});
  int32_t* const groups = take("group_ptr", {D, G + 1});
  int32_t* const offsets = take("pred_ptr", {D, N + 1});
  int32_t* const pred_slot = take("pred_slot", {E});
  int32_t* const pred_node = take("pred_node", {E});

  int32_t num_slots = 0;
  {
    py::gil_scoped_release release;
    for (int64_t d = 0; d < D; ++d) {
      int32_t* const groups_end = groups + (d + 1) * (G + 1);
      std::fill(std::copy(group_ptr[d].begin(), group_ptr[d].end(), groups + d * (G + 1)),
                groups_end, static_cast<int32_t>(N));
      const Rows rows = {nodes + d * N,         slots + d * N, num_succ + d * N,
                         offsets + d * (N + 1), pred_slot,     pred_node};
      num_slots = std::max(num_slots, fill_rows(node[d], group_ptr[d], graph.directions[d], rows));
    }
  }
  program["num_groups"] = G;
  program["num_slots"] = num_slots;
  program["table"] = table;
  return program;
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#elif defined(_MSC_VER)
  info["compiler"] = "msvc " + std::to_string(_MSC_VER);
#else
  info["compiler"] = "unknown";
#endif
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  return info;
}

// The CUDA backend's choice of kernels; csrc/cuda/planner.h. Free of CUDA, so it answers on any
// machine.
py::dict plan_cuda_sweep(int64_t B, int64_t N, int64_t D, int64_t C, int64_t H, int64_t K,
                         int64_t groups, int64_t slots, const std::string& dtype, bool is_backward,
                         std::array<int64_t, 4> device, int64_t max_cluster, int cell, bool mean,
                         std::array<int64_t, 4> clusters) {
  // Divided by, or not; and so few that no product of sizes wraps round.
  constexpr int64_t kMost = int64_t{1} << 31;
  const auto outside = [](int64_t least) {
    return [least](int64_t size) { return size < least || size >= kMost; };
  };
  const int64_t some[] = {N, D, H, groups, slots, device[1]};
  const int64_t any[] = {B,           C,           K,           device[0],   device[2],  device[3],
                         max_cluster, clusters[0], clusters[1], clusters[2], clusters[3]};
  if (std::any_of(std::begin(some), std::end(some), outside(1)) ||
      std::any_of(std::begin(any), std::end(any), outside(0)) ||
      double(B) * N * D * (C + H + K) * H > 0x1p62) {
    throw py::value_error(
        "plan_cuda_sweep: N, D, H, groups, slots and the number of multiprocessors must be in 1 .. "
        "2**31 - 1, B, C, K and the other limits in 0 .. 2**31 - 1, B N D (C + H + K) H up to "
        "2**62");
  }
  const std::pair<const char*, Dtype> dtypes[] = {{"float32", Dtype::kFloat32},
                                                  {"float64", Dtype::kFloat64},
                                                  {"bfloat16", Dtype::kBFloat16},
                                                  {"float16", Dtype::kFloat16}};
  for (const auto& [name, value] : dtypes) {
    if (dtype != name) continue;
    const cuda::SweepSizes sizes{B, N, D, C, H, K, groups, slots, value, is_backward, cell, mean};
    const cuda::Device limits{
        device[0], device[1], device[2], device[3], device[0] < 90 ? 0 : max_cluster, -1, clusters};
    const cuda::Plan plan = cuda::plan_sweep(sizes, limits);
    py::dict found;
    found["family"] = cuda::family_name(plan.family());
    found["threads"] = plan.threads;
    found["ctas"] = plan.ctas;
    found["shared_bytes"] = plan.shared_bytes;
    found["takes_x"] = plan.takes_x;
    found["projects"] = plan.projects;
    found["cluster"] = 1;
    if (plan.family() == cuda::Family::kRow || plan.family() == cuda::Family::kTensorCore) {
      found["registers"] = cuda::registers_of(sizes, plan);
      found["ctas_per_sm"] = cuda::ctas_per_sm(sizes, plan, limits);
    }
    if (const auto* row = std::get_if<cuda::RowPlan>(&plan.kind)) {
      found["rows"] = row->rows;
    } else if (const auto* tile = std::get_if<cuda::TensorPlan>(&plan.kind)) {
      found["rows"] = 1 << tile->rows_log2;
    } else if (const auto* cluster = std::get_if<cuda::ClusterPlan>(&plan.kind)) {
      found["cluster"] = cluster->size;
      found["rows"] = cluster->rows;
      found["nodes"] = cluster->nodes;
    }
    return found;
  }
  throw py::value_error(
      "plan_cuda_sweep: dtype must be float32, float64, bfloat16 or float16, got " + dtype);
}

}  // namespace
}  // namespace strnn::planner

PYBIND11_MODULE(_planner, m) {
  using namespace strnn::planner;
  m.doc() = "The compiled planner; strnn_kernels.planner documents its functions.";
  m.def("build_info", &build_info);
  m.def("cell_predecessors", &py_cell_predecessors, py::arg("row"), py::arg("col"),
        py::arg("offsets"));
  m.def("transpose", &py_transpose, py::arg("num_nodes"), py::arg("pred_ptr"), py::arg("pred"));
  m.def("compute_levels", &py_compute_levels, py::arg("num_nodes"), py::arg("pred_ptr"),
        py::arg("pred"));
  m.def("compile_program", &py_compile_program, py::arg("num_nodes"), py::arg("pred_ptr"),
        py::arg("pred"), py::arg("order"));
  m.def("plan_cuda_sweep", &plan_cuda_sweep, py::kw_only(), py::arg("B"), py::arg("N"),
        py::arg("D"), py::arg("C"), py::arg("H"), py::arg("K"), py::arg("groups"), py::arg("slots"),
        py::arg("dtype"), py::arg("is_backward"), py::arg("device"),
        py::arg("max_cluster") = strnn::cuda::kMaxCluster, py::arg("cell") = 0,
        py::arg("mean") = false, py::arg("clusters") = std::array<int64_t, 4>{});
}
