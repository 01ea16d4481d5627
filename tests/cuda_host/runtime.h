// Inside of the emulator: fibers and their blocks (scheduler.cpp) and the checker of memory
// accesses (checker.cpp).
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "context.h"
#include "cuda_host.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emu {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kMaxCarved = 64;  // arrays of shared memory per block
constexpr size_t kGap = 128;       // forbidden bytes behind each
constexpr size_t kGranule =
    2;  // bytes of a cell of the checker: the smallest element that a kernel writes

// Of the threads of a cluster (a block, if there are no clusters): how far each is known to have
// got.
using Clock = std::vector<uint32_t>;

struct Block;

struct Copy {
  void* to;
  const void* from;
  int bytes, source_bytes;
  void* pc;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  unsigned index = 0;  // in its block
  Block* block = nullptr;
  dim3 thread;
  bool is_done = false;
  const char* state = "ready";
  void* pc = nullptr;
  Clock clock;
  std::vector<Copy> open;  // copies not yet committed
  std::deque<std::vector<Copy>> groups;
  size_t carved_device = 0, carved_host = 0;
  bool has_arrived = false;  // at the cluster's barrier, and has not waited there yet
  unsigned awaited = 0;      // the generation of that barrier
};

struct Barrier {
  int arrived = 0, line = 0;
  Clock joined;
  std::vector<Fiber*> waiting;
};

// A collective of the lanes of one mask; two generations, since a lane may start the next one
// before all have read this one.
struct Collective {
  unsigned mask, arrived = 0, generation = 0;
  const char* what = "";
  unsigned char lanes[2][32][kMaxExchange];
  std::vector<Fiber*> waiting;
};

struct Warp {
  std::vector<std::unique_ptr<Collective>> collectives;
  std::vector<std::pair<unsigned, std::unique_ptr<Barrier>>> barriers;
};

// What the checker knows of a granule of memory. Threads are counted through the grid from 1; 0:
// nobody.
struct Cell {
  uint32_t writer, write_clock, write_pc;
  uint32_t reader, read_clock, read_pc;
  uint32_t readers;  // entry of Checker::reader_clocks once there are several, 0: none
  uint8_t flags;
};
enum CellFlag : uint8_t { kInitialised = 1, kInFlight = 2, kForbidden = 4, kReadByClusters = 8 };

struct Region {
  uintptr_t begin, end;
  std::string name;
  int flags;
  Block* block;  // of shared memory; null: global
  std::vector<Cell> cells;
};

// The blocks that share a barrier and may reach each other's shared memory.
struct Cluster {
  unsigned live = 0;  // blocks
  int arrived = 0;
  unsigned generation = 0;
  Clock joined[2];  // by the parity of the generation: some may not have left the last one yet
  std::vector<Fiber*> waiting;
};

struct Block {
  unsigned index = 0, live = 0;
  Cluster* cluster = nullptr;
  Clock peers;  // the latest access of every thread of another block to this one's shared memory
  dim3 position;
  unsigned char *allocation = nullptr, *shared = nullptr;
  Region* region = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  bool is_up = false;
};

// One launch.
struct Grid {
  Launch launch;
  void (*kernel)(const void*) = nullptr;
  const void* context = nullptr;
  unsigned block_size = 0, num_blocks = 0, cluster_size = 1;
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  std::vector<std::unique_ptr<Region>> regions;
  Fiber* self = nullptr;
  bool is_checked = false, is_aborted = false;
  int findings = 0;
};
extern Grid grid;

// Adds a finding once per key; abort ends the launch.
void note(const std::string& key, const std::string& message);
[[noreturn]] void fail(const std::string& message);
std::string place(void* pc);
std::string name_of(const Fiber* f);
inline uint32_t global_index(const Fiber* f) {
  return f->block->index * grid.block_size + f->index;
}
// Threads of a cluster, and a thread's place among them, which is its entry in a clock.
inline uint32_t clock_size() { return grid.cluster_size * grid.block_size; }
inline uint32_t clock_index(const Fiber* f) { return global_index(f) % clock_size(); }

bool is_instrumented();
void reset_checker();
enum class Access { kRead, kWrite, kCopyIssue, kCopyDone };
void check(uintptr_t p, size_t bytes, Access access, void* pc);
void forbid(Region* region, size_t begin, size_t end);
std::vector<Region>& user_regions();
void keep_initialised();

}  // namespace emu
