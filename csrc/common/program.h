// The sweep program: what a Topology compiles to, and all that a kernel knows of a graph.
//
// One int32 table, written by strnn_kernels/topology.py, holds for each direction d and visit i:
//   node      [D][N]    node visited at position i
//   slot      [D][N]    place in fast memory that keeps its state from its visit to its last use
//   num_succ  [D][N]    how many later nodes read the state; 0: it need not be kept
//   group_ptr [D][G+1]  runs of visits that do not depend on each other (levels), padded with N
//   pred_ptr  [D][N+1]  range in pred_slot and pred_node of the predecessors of visit i
//   pred_slot [E]       slots of the predecessors
//   pred_node [E]       their node numbers
#pragma once
#include <cstdint>
#include <vector>

namespace strnn {

// Steps of the longest chain: node numbers and offsets of edges are int32.
constexpr int64_t kMaxChain = (int64_t{1} << 30) - 1;

struct Program {
  int64_t N, D, G, S, E;  // nodes, directions, groups, slots, edges of all directions
  const int32_t* node;
  const int32_t* slot;
  const int32_t* num_succ;
  const int32_t* group_ptr;
  const int32_t* pred_ptr;
  const int32_t* pred_slot;
  const int32_t* pred_node;

  // Lays the fields over a table of numel entries; E is what is left. E < 0: the sizes do not fit
  // the table, or are none of a program. Sizes may come from anywhere, so each is bounded by the
  // table's length before it is multiplied.
  static Program over(const int32_t* table, int64_t numel, int64_t N, int64_t D, int64_t G,
                      int64_t S) {
    Program p{N, D, G, S, -1, table};
    if (N < 1 || N > numel || G < 1 || G > N || S < 1 || S > N || D < 1) return p;
    const int64_t of_direction = 3 * N + (G + 1) + (N + 1);
    if (D > numel / of_direction || (numel - D * of_direction) % 2) return p;
    p.E = (numel - D * of_direction) / 2;
    p.slot = p.node + D * N;
    p.num_succ = p.slot + D * N;
    p.group_ptr = p.num_succ + D * N;
    p.pred_ptr = p.group_ptr + D * (G + 1);
    p.pred_slot = p.pred_ptr + D * (N + 1);
    p.pred_node = p.pred_slot + p.E;
    return p;
  }

  // True if following the tables (on the host) stays inside them and inside N nodes and S slots.
  bool is_valid() const {
    if (E < 0) return false;
    for (int64_t i = 0; i < D * N; ++i)
      if (node[i] < 0 || node[i] >= N || slot[i] < 0 || slot[i] >= S) return false;
    for (int64_t d = 0; d < D; ++d) {
      const int32_t* group = group_ptr + d * (G + 1);
      const int32_t* pred = pred_ptr + d * (N + 1);
      if (group[0] != 0 || group[G] != N || pred[0] < 0 || pred[N] > E) return false;
      for (int64_t g = 0; g < G; ++g)
        if (group[g] > group[g + 1]) return false;
      for (int64_t i = 0; i < N; ++i)
        if (pred[i] > pred[i + 1]) return false;
    }
    for (int64_t e = 0; e < E; ++e)
      if (pred_slot[e] < 0 || pred_slot[e] >= S || pred_node[e] < 0 || pred_node[e] >= N)
        return false;
    return true;
  }
};

// The table of the chain of N steps in D directions, forward and backward in time, as
// Topology.chain(N, bidirectional=D == 2) or its reverse: a state stays in its one slot.
inline std::vector<int32_t> chain_table(int64_t N, int64_t D, bool is_reversed) {
  std::vector<int32_t> table;
  table.reserve(D * (5 * N + 2) + 2 * D * (N - 1));
  const auto node = [&](int64_t d, int64_t i) {
    return static_cast<int32_t>((d == 1) != is_reversed ? N - 1 - i : i);
  };
  for (int64_t d = 0; d < D; ++d)
    for (int64_t i = 0; i < N; ++i) table.push_back(node(d, i));
  table.resize(table.size() + D * N, 0);  // slot
  for (int64_t d = 0; d < D; ++d)
    for (int64_t i = 0; i < N; ++i) table.push_back(i + 1 < N);  // num_succ
  for (int64_t d = 0; d < D; ++d)
    for (int64_t g = 0; g <= N; ++g) table.push_back(static_cast<int32_t>(g));
  for (int64_t d = 0; d < D; ++d)  // pred_ptr
    for (int64_t i = 0; i <= N; ++i)
      table.push_back(static_cast<int32_t>(d * (N - 1) + (i > 0 ? i - 1 : 0)));
  table.resize(table.size() + D * (N - 1), 0);  // pred_slot
  for (int64_t d = 0; d < D; ++d)
    for (int64_t i = 1; i < N; ++i) table.push_back(node(d, i - 1));
  return table;
}

}  // namespace strnn
