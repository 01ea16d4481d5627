// Fibers, blocks, clusters, barriers, warp collectives and asynchronous copies of the emulator.
// Compiled without -fsanitize=thread.
#include <dlfcn.h>
#include <sys/mman.h>

#include <map>
#include <set>

#include "runtime.h"

#if defined(__x86_64__)
asm(R"(.text
.type emu_switch,@function
emu_switch:
 push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
 mov %rsp,(%rdi); mov %rsi,%rsp
 pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
 ret
)");
#endif

namespace emu {

Grid grid;

namespace {

constexpr unsigned kResidentBlocks = 4;  // in flight together: enough to see blocks interfere
constexpr unsigned kMaxCluster = 16;

std::string report;
std::set<std::string> noted;
Context main_context;
unsigned seed = 0;
uint64_t random_state = 1;

uint32_t draw() {
  random_state ^= random_state << 13, random_state ^= random_state >> 7,
      random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 16);
}

// Fibers that can run.
class ReadyQueue {
 public:
  void reset(size_t num_warps) {
    all_.clear(), warps_.assign(seed < 2 ? 0 : num_warps, {}), active_.clear(), current_ = kNone;
  }

  void push(Fiber* f) {
    if (seed < 2) return all_.push_back(f);
    const unsigned warp = f->block->index * ((grid.block_size + 31) / 32) + f->index / 32;
    if (warps_[warp].empty()) active_.push_back(warp);
    warps_[warp].push_back(f);
  }

  Fiber* pop() {
    if (seed < 2) {
      if (all_.empty()) return nullptr;
      Fiber* f = seed == 0 ? all_.front() : all_.back();
      if (seed == 0)
        all_.pop_front();
      else
        all_.pop_back();
      return f;
    }
    if (active_.empty()) return nullptr;
    if (current_ == kNone || warps_[current_].empty() || seed % 2 == 1)
      current_ = active_[draw() % active_.size()];
    std::vector<Fiber*>& queue = warps_[current_];
    std::swap(queue[draw() % queue.size()], queue.back());
    Fiber* f = queue.back();
    queue.pop_back();
    if (queue.empty()) active_.erase(std::find(active_.begin(), active_.end(), current_));
    return f;
  }

 private:
  static constexpr unsigned kNone = ~0u;
  std::deque<Fiber*> all_;
  std::vector<std::vector<Fiber*>> warps_;
  std::vector<unsigned> active_;
  unsigned current_ = kNone;
} ready;

void leave() { grid.self->context.switch_to(main_context); }

void block_on(const char* state, void* pc) {
  Fiber* f = grid.self;
  f->state = state, f->pc = pc;
  leave();
  f->state = "ready";
}

void wake(std::vector<Fiber*>& waiting) {
  for (Fiber* f : waiting) ready.push(f);
  waiting.clear();
}

void join(Clock& to, const Clock& from) {
  to.resize(std::max(to.size(), from.size()));
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

void arrive(Barrier& barrier, int expected, const char* state, void* pc) {
  Fiber* f = grid.self;
  if (grid.is_checked) join(barrier.joined, f->clock);
  barrier.waiting.push_back(f);
  if (++barrier.arrived < expected) return block_on(state, pc);
  if (grid.is_checked) {
    for (Fiber* w : barrier.waiting) w->clock = barrier.joined, ++w->clock[clock_index(w)];
    barrier.joined.assign(barrier.joined.size(), 0);
  }
  barrier.waiting.pop_back();  // the last to arrive goes on
  barrier.arrived = 0;
  wake(barrier.waiting);
}

void entry() {
  grid.kernel(grid.context);
  Fiber* f = grid.self;
  if (!f->open.empty() || !f->groups.empty())
    note("exit", "EXIT: copies never waited for by " + name_of(f));
  if (f->has_arrived)
    note("exit cluster", "EXIT: a barrier of the cluster never waited for by " + name_of(f));
  f->is_done = true, f->state = "done";
  leave();
}

std::vector<char*> free_stacks;  // of fibers that ended: a new mapping costs more than a kernel

char* take_stack() {
  if (free_stacks.empty())
    return static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  char* stack = free_stacks.back();
  free_stacks.pop_back();
  return stack;
}

void start(Block& block, unsigned index) {
  const dim3 g = grid.launch.grid, t = grid.launch.block;
  block.index = index;
  block.position = dim3(index % g.x, index / g.x % g.y, index / (g.x * g.y));
  const size_t bytes = (grid.launch.smem + kMaxCarved * kGap + 127) / 128 * 128;
  block.allocation = block.shared = static_cast<unsigned char*>(aligned_alloc(128, bytes));
  std::memset(block.shared, 0xff, bytes);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(block.shared);
  grid.regions.emplace_back(new Region{begin, begin + bytes, "shared", 3, &block, {}});
  block.region = grid.regions.back().get();
  if (grid.is_checked) {
    block.region->cells.assign(bytes / kGranule + 1, Cell{});
    forbid(block.region, 0, bytes);
  }
  block.fibers.resize(grid.block_size);
  block.warps.resize((grid.block_size + 31) / 32);
  block.live = grid.block_size;
  block.is_up = true;
  block.cluster = &grid.clusters[index / grid.cluster_size];
  if (grid.is_checked) block.peers.assign(clock_size(), 0);
  for (unsigned i = 0; i < grid.block_size; ++i) {
    Fiber& f = block.fibers[i];
    f.block = &block, f.index = i;
    f.thread = dim3(i % t.x, i / t.x % t.y, i / (t.x * t.y));
    f.stack = take_stack();
    if (grid.is_checked) f.clock.assign(clock_size(), 0), f.clock[clock_index(&f)] = 1;
    f.context.make(f.stack, kStackBytes - global_index(&f) % 61 * 192,
                   entry);  // stacks at different places of the cache
    ready.push(&f);
  }
}

void stop(Block& block) {
  for (const Fiber& f : block.fibers) free_stacks.push_back(f.stack);
  block.fibers.clear();
  std::free(block.allocation);
  block.region->cells.clear();
  block.region->begin = block.region->end = 0;
  block.is_up = false;
}

// The last thread of a block is done. Its shared memory must not go while a peer may still use it.
void end(Block& block) {
  for (uint32_t t = 0; t < block.peers.size(); ++t) {
    uint32_t known = 0;
    for (const Fiber& f : block.fibers) known = std::max(known, f.clock[t]);
    if (block.peers[t] > known) {
      const uint32_t thread = block.index / grid.cluster_size * clock_size() + t;
      note("exit of a block", "CLUSTER: block " + std::to_string(block.index) +
                                  " may exit before its shared memory is used by block " +
                                  std::to_string(thread / grid.block_size) + " thread " +
                                  std::to_string(thread % grid.block_size));
    }
  }
  if (--block.cluster->live > 0) return;
  const unsigned first = block.index / grid.cluster_size * grid.cluster_size;
  for (unsigned i = 0; i < grid.cluster_size; ++i) stop(grid.blocks[first + i]);
}

void report_deadlock() {
  std::map<std::string, std::pair<int, std::string>> groups;
  bool is_stuck = false;
  for (Block& block : grid.blocks)
    if (block.is_up)
      for (Fiber& f : block.fibers) {
        auto& group = groups[std::string(f.state) + (f.is_done ? "" : " " + place(f.pc))];
        if (!group.first++) group.second = name_of(&f);
        is_stuck |= !f.is_done;
      }
  if (!is_stuck) return;
  std::string message = "DEADLOCK:";
  for (const auto& [state, group] : groups)
    message += "\n    " + std::to_string(group.first) + " threads " + state +
               " (first: " + group.second + ")";
  note("deadlock", message);
}

}  // namespace

void note(const std::string& key, const std::string& message) {
  if (noted.insert(key).second && ++grid.findings <= 40) report += message + "\n";
}

void fail(const std::string& message) {
  note(message, message);
  grid.is_aborted = true;
  leave();
  std::abort();  // never resumed
}

std::string place(void* pc) {
  Dl_info info;
  char text[512];
  if (pc && dladdr(pc, &info) && info.dli_fname)
    std::snprintf(
        text, sizeof text, "[%s+0x%zx]", info.dli_fname,
        static_cast<size_t>(static_cast<char*>(pc) - static_cast<char*>(info.dli_fbase)) - 1);
  else
    std::snprintf(text, sizeof text, "[%p]", pc);
  return text;
}

std::string name_of(const Fiber* f) {
  return "block " + std::to_string(f->block->index) + " thread " + std::to_string(f->index);
}

int launch_raw(const Launch& launch, void (*kernel)(const void*), const void* context) {
  grid = Grid{};
  report.clear(), noted.clear();
  grid.launch = launch, grid.kernel = kernel, grid.context = context;
  grid.block_size = launch.block.x * launch.block.y * launch.block.z;
  grid.num_blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  grid.cluster_size = launch.cluster;
  grid.is_checked = is_instrumented();
  random_state = seed * 7919ull + 12345;
  ready.reset(static_cast<size_t>(grid.num_blocks) * ((grid.block_size + 31) / 32));
  reset_checker();
  if (grid.block_size == 0 || grid.block_size > 1024)
    return note("size", "LIMIT: a block has 1 to 1024 threads"), grid.findings;
  if (launch.smem > 227 * 1024)
    return note("size", "LIMIT: more than 227 KB of shared memory"), grid.findings;
  if (launch.cluster == 0 || launch.cluster > kMaxCluster || launch.grid.x % launch.cluster)
    return note("size", "LIMIT: a cluster has 1 to 16 blocks and divides the grid's x"),
           grid.findings;
  for (const Region& r : user_regions()) grid.regions.emplace_back(new Region(r));
  grid.blocks.resize(grid.num_blocks);
  const unsigned size = launch.cluster, num_clusters = grid.num_blocks / size;
  grid.clusters.resize(num_clusters);
  std::vector<unsigned> order(num_clusters);
  for (unsigned i = 0; i < num_clusters; ++i) order[i] = seed == 1 ? num_clusters - 1 - i : i;
  if (seed > 1)
    for (unsigned i = num_clusters; i-- > 1;) std::swap(order[i], order[draw() % (i + 1)]);
  const unsigned resident = std::max(1u, kResidentBlocks / size);
  unsigned next = 0, up = 0;
  while (!grid.is_aborted) {
    for (; up < resident && next < num_clusters; ++up, ++next) {
      grid.clusters[order[next]].live = size;
      for (unsigned i = order[next] * size; i < (order[next] + 1) * size; ++i)
        start(grid.blocks[i], i);
    }
    Fiber* f = ready.pop();
    if (!f) break;
    grid.self = f;
    main_context.switch_to(f->context);
    grid.self = nullptr;
    Block& block = *f->block;
    if (f->is_done && --block.live == 0) {
      end(block);
      if (block.cluster->live == 0) --up;
    }
  }
  if (!grid.is_aborted) report_deadlock();
  for (Block& block : grid.blocks)
    if (block.is_up) stop(block);
  keep_initialised();
  return grid.findings;
}

dim3 thread_idx() { return grid.self->thread; }
dim3 block_idx() { return grid.self->block->position; }
dim3 block_dim() { return grid.launch.block; }
dim3 grid_dim() { return grid.launch.grid; }
unsigned lane() { return grid.self->index % 32; }
unsigned char* dyn_smem() { return grid.self->block->shared; }

// The offset on the device advances by the rounded size, the one here also by the gap, which stays
// forbidden.
void* carve(size_t bytes) {
  Fiber* f = grid.self;
  const size_t rounded = (bytes + 127) / 128 * 128;
  if (f->carved_device + rounded > grid.launch.smem)
    fail("SHARED: the kernel takes at least " + std::to_string(f->carved_device + rounded) +
         " bytes, the launch asked for " + std::to_string(grid.launch.smem));
  unsigned char* taken = f->block->shared + f->carved_host;
  if (grid.is_checked)
    for (size_t i = 0; i < (bytes + kGranule - 1) / kGranule; ++i)
      f->block->region->cells[f->carved_host / kGranule + i].flags &= ~kForbidden;
  f->carved_device += rounded;
  f->carved_host += rounded + kGap;
  return taken;
}

void block_sync(int line) {
  Barrier& barrier = grid.self->block->barrier;
  void* pc = __builtin_return_address(0);
  if (barrier.arrived && barrier.line != line)
    note("line" + std::to_string(line),
         "DIVERGENT: a barrier is reached at line " + std::to_string(barrier.line) + " and, by " +
             name_of(grid.self) + ", at line " + std::to_string(line) + " " + place(pc));
  barrier.line = line;
  arrive(barrier, static_cast<int>(grid.block_size), "at __syncthreads", pc);
}

void warp_sync(unsigned mask) {
  Fiber* f = grid.self;
  if (!(mask >> lane() & 1)) fail("MASK: __syncwarp without the calling lane, " + name_of(f));
  auto& barriers = f->block->warps[f->index / 32].barriers;
  for (auto& [known, barrier] : barriers)
    if (known == mask)
      return arrive(*barrier, __builtin_popcount(mask), "at __syncwarp",
                    __builtin_return_address(0));
  barriers.emplace_back(mask, new Barrier);
  arrive(*barriers.back().second, __builtin_popcount(mask), "at __syncwarp",
         __builtin_return_address(0));
}

void exchange(const char* what, unsigned mask, const void* mine, size_t bytes, Exchanged& all) {
  Fiber* f = grid.self;
  if (!(mask >> lane() & 1))
    fail(std::string("MASK: ") + what + " without the calling lane, " + name_of(f));
  auto& known = f->block->warps[f->index / 32].collectives;
  Collective* c = nullptr;
  for (auto& k : known)
    if (k->mask == mask) c = k.get();
  if (!c) {
    known.emplace_back(new Collective);
    c = known.back().get();
    c->mask = mask;
  }
  if (c->arrived && std::strcmp(c->what, what) != 0)
    fail(std::string("DIVERGENT: ") + name_of(f) + " calls " + what +
         " while others of its warp are in " + c->what);
  const unsigned half = c->generation % 2;
  c->what = what;
  std::memcpy(c->lanes[half][lane()], mine, bytes);
  c->arrived |= 1u << lane();
  if (c->arrived == mask) {
    c->arrived = 0;
    ++c->generation;
    wake(c->waiting);
  } else {
    c->waiting.push_back(f);
    block_on(what, __builtin_return_address(0));
  }
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) std::memcpy(all.of[l], c->lanes[half][l], bytes);
}

void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
  void* pc = __builtin_return_address(0);
  if (grid.is_checked) check(reinterpret_cast<uintptr_t>(row), 16, Access::kRead, pc);
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("ALIGN: ldmatrix " + place(pc));
  Exchanged all;
  unsigned char values[16];
  std::memcpy(values, row, sizeof values);
  exchange("ldmatrix", ~0u, values, sizeof values, all);
  for (int m = 0; m < 4; ++m)
    std::memcpy(&to[m], all.of[8 * m + lane() / 4] + 4 * (lane() % 4), sizeof to[m]);
}

unsigned cluster_rank() { return grid.self->block->index % grid.cluster_size; }
unsigned cluster_size() { return grid.cluster_size; }

void cluster_arrive() {
  Fiber* f = grid.self;
  Cluster& c = *f->block->cluster;
  if (f->has_arrived)
    fail("CLUSTER: " + name_of(f) + " arrives twice and has not waited " +
         place(__builtin_return_address(0)));
  f->has_arrived = true;
  f->awaited = c.generation;
  if (grid.is_checked) join(c.joined[c.generation % 2], f->clock), ++f->clock[clock_index(f)];
  if (++c.arrived < static_cast<int>(clock_size())) return;
  c.arrived = 0;
  ++c.generation;
  c.joined[c.generation % 2].clear();
  wake(c.waiting);
}

void cluster_wait() {
  Fiber* f = grid.self;
  Cluster& c = *f->block->cluster;
  void* pc = __builtin_return_address(0);
  if (!f->has_arrived) fail("CLUSTER: " + name_of(f) + " waits and has not arrived " + place(pc));
  if (c.generation == f->awaited) {
    c.waiting.push_back(f);
    block_on("at the cluster's barrier", pc);
  }
  f->has_arrived = false;
  if (grid.is_checked) join(f->clock, c.joined[f->awaited % 2]);
}

void* cluster_map(const void* p, unsigned rank) {
  Fiber* f = grid.self;
  const Block& own = *f->block;
  void* pc = __builtin_return_address(0);
  if (rank >= grid.cluster_size)
    fail("CLUSTER: no block of rank " + std::to_string(rank) + " " + place(pc));
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (at < own.region->begin || at >= own.region->end)
    fail("CLUSTER: not an address of one's own shared memory " + place(pc));
  const Block& peer = grid.blocks[own.index - cluster_rank() + rank];
  if (peer.live == 0)
    fail("CLUSTER: block " + std::to_string(peer.index) + " has exited when " + name_of(f) +
         " reaches for its shared memory " + place(pc));
  return peer.shared + (at - own.region->begin);
}

// A copy arrives when it is waited for; until then its destination is NaN.
void cp_async(void* to, const void* from, int bytes, int source_bytes) {
  Fiber* f = grid.self;
  void* pc = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    fail("ALIGN: cp.async " + place(pc));
  if (grid.is_checked) {
    if (source_bytes) check(reinterpret_cast<uintptr_t>(from), source_bytes, Access::kRead, pc);
    check(reinterpret_cast<uintptr_t>(to), bytes, Access::kCopyIssue, pc);
  }
  std::memset(to, 0xff, bytes);
  f->open.push_back({to, from, bytes, source_bytes, pc});
}

void cp_commit() {
  grid.self->groups.push_back(std::move(grid.self->open));
  grid.self->open.clear();
}

void cp_wait(int pending) {
  Fiber* f = grid.self;
  while (static_cast<int>(f->groups.size()) > pending) {
    for (const Copy& c : f->groups.front()) {
      if (grid.is_checked)
        check(reinterpret_cast<uintptr_t>(c.to), c.bytes, Access::kCopyDone, c.pc);
      std::memcpy(c.to, c.from, c.source_bytes);
      std::memset(static_cast<char*>(c.to) + c.source_bytes, 0, c.bytes - c.source_bytes);
    }
    f->groups.pop_front();
  }
}

}  // namespace emu

extern "C" {
const char* emu_report() { return emu::report.c_str(); }
void emu_seed(unsigned value) { emu::seed = value; }
}
