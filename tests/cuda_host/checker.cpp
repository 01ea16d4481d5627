// The checker of memory accesses: kernels are compiled with -fsanitize=thread, and the calls that
// the compiler inserts are answered here instead of by libtsan. Two accesses are a race if neither
// happens before the other: barriers of a warp, a block and a cluster order threads, nothing orders
// clusters.
// Reported too: accesses outside every buffer or array, misaligned ones, reads of what nobody
// wrote, writes to inputs, and use of memory to which an asynchronous copy is under way. Compiled
// without -fsanitize=thread.
#include <dlfcn.h>

#include "runtime.h"

namespace emu {
namespace {

bool instrumented = false;
std::vector<Region> registered;
std::vector<Clock> reader_clocks;                      // entry 0 is not used
std::vector<std::pair<uintptr_t, uintptr_t>> ignored;  // the program's own constants

void* full(uint32_t low, void* like) {
  return low ? reinterpret_cast<void*>(
                   (reinterpret_cast<uintptr_t>(like) & ~uintptr_t{0xffffffff}) | low)
             : nullptr;
}
uint32_t low(void* pc) { return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc)); }

std::string who(uint32_t thread) {
  return "block " + std::to_string((thread - 1) / grid.block_size) + " thread " +
         std::to_string((thread - 1) % grid.block_size);
}

void race(const char* kind, const Region& r, uintptr_t p, uint32_t other, uint32_t other_pc,
          void* pc) {
  note(kind + std::to_string(other_pc) + "-" + std::to_string(low(pc)),
       std::string("RACE ") + kind + " at " + r.name + "+" + std::to_string(p - r.begin) + ": " +
           name_of(grid.self) + " " + place(pc) + " and " + who(other) + " " +
           place(full(other_pc, pc)));
}

[[noreturn]] void out_of_bounds(const char* what, uintptr_t p, size_t bytes, Access access,
                                void* pc) {
  std::string message = std::string("BOUNDS: ") + (access == Access::kRead ? "read" : "write") +
                        " of " + std::to_string(bytes) + " bytes " + what + " by " +
                        name_of(grid.self) + " " + place(pc);
  for (const auto& r : grid.regions)
    if (r->end && p + 4096 > r->begin && p < r->end + 4096)
      message += "; offset " + std::to_string(static_cast<ptrdiff_t>(p - r->begin)) + " of " +
                 r->name + " (" + std::to_string(r->end - r->begin) + " bytes)";
  fail(message);
}

Region* find(uintptr_t p) {
  Region* own = grid.self->block->region;
  if (p >= own->begin && p < own->end) return own;
  for (const auto& r : grid.regions)
    if (p >= r->begin && p < r->end) return r.get();
  return nullptr;
}

// True for constants of the compiled code, which need no check.
bool is_ignored(uintptr_t p) {
  for (const auto& [begin, end] : ignored)
    if (p >= begin && p < end) return true;
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(p), &info) || !info.dli_fbase) return false;
  ignored.emplace_back(p & ~uintptr_t{4095}, (p & ~uintptr_t{4095}) + 4096);
  return true;
}

bool is_ordered(uint32_t thread, uint32_t clock) {  // before the thread that runs now
  const Fiber* f = grid.self;
  return (thread - 1) / clock_size() == global_index(f) / clock_size() &&
         f->clock[(thread - 1) % clock_size()] >= clock;
}

void check_read(Cell& c, const Region& r, uintptr_t p, void* pc) {
  Fiber* f = grid.self;
  const uint32_t me = global_index(f) + 1, mine = clock_index(f), now = f->clock[mine];
  if (!(c.flags & kInitialised))
    note("uninitialised" + place(pc), "UNWRITTEN: read of " + r.name + "+" +
                                          std::to_string(p - r.begin) + " by " + name_of(f) + " " +
                                          place(pc));
  c.read_pc = low(pc);
  if (c.readers) {
    reader_clocks[c.readers][mine] = now;
  } else if (!c.reader || c.reader == me || is_ordered(c.reader, c.read_clock)) {
    c.reader = me, c.read_clock = now;
  } else if ((c.reader - 1) / clock_size() != (me - 1) / clock_size()) {
    c.flags |= kReadByClusters;
  } else {
    c.readers = static_cast<uint32_t>(reader_clocks.size());
    reader_clocks.emplace_back(clock_size(), 0);
    reader_clocks.back()[(c.reader - 1) % clock_size()] = c.read_clock;
    reader_clocks.back()[mine] = now;
  }
}

void check_write(Cell& c, const Region& r, uintptr_t p, void* pc, Access access) {
  Fiber* f = grid.self;
  const uint32_t me = global_index(f) + 1, mine = clock_index(f);
  if (c.readers) {
    Clock& clocks = reader_clocks[c.readers];
    for (uint32_t t = 0; t < clocks.size(); ++t)
      if (t != mine && clocks[t] > f->clock[t]) {
        race("write after read", r, p, me - mine + t, c.read_pc, pc);
        break;
      }
  } else if ((c.flags & kReadByClusters) ||
             (c.reader && c.reader != me && !is_ordered(c.reader, c.read_clock))) {
    race("write after read", r, p, c.reader, c.read_pc, pc);
  }
  c.readers = c.reader = 0;
  c.writer = me, c.write_clock = f->clock[mine], c.write_pc = low(pc);
  c.flags = access == Access::kCopyIssue ? kInFlight : kInitialised;
}

// Access to another block's shared memory: of the own cluster, after it has started, and remembered
// until it exits.
void use_peer(Block& peer, uintptr_t p, size_t bytes, Access access, void* pc) {
  Fiber* f = grid.self;
  if (peer.cluster != f->block->cluster)
    out_of_bounds("in the shared memory of a block outside the cluster", p, bytes, access, pc);
  if (access == Access::kCopyIssue || access == Access::kCopyDone)
    out_of_bounds("by cp.async in another block's shared memory", p, bytes, access, pc);
  if (peer.live == 0) out_of_bounds("in the memory of a block that exited", p, bytes, access, pc);
  if (f->clock[clock_index(&peer.fibers[0])] == 0)
    note("start" + place(pc), "CLUSTER: block " + std::to_string(peer.index) +
                                  " may not have started when " + name_of(f) +
                                  " uses its shared memory " + place(pc));
  peer.peers[clock_index(f)] = f->clock[clock_index(f)];
}

}  // namespace

bool is_instrumented() { return instrumented; }
std::vector<Region>& user_regions() { return registered; }

void reset_checker() {
  reader_clocks.assign(1, {});
  ignored.clear();
}

void forbid(Region* region, size_t begin, size_t end) {
  for (size_t i = begin / kGranule; i < end / kGranule; ++i) region->cells[i].flags |= kForbidden;
}

// What a launch wrote is initialised for the next one.
void keep_initialised() {
  if (!grid.is_checked) return;
  for (size_t i = 0; i < registered.size(); ++i)
    for (size_t j = 0; j < registered[i].cells.size(); ++j)
      registered[i].cells[j].flags = grid.regions[i]->cells[j].flags & kInitialised;
}

void check(uintptr_t p, size_t bytes, Access access, void* pc) {
  Fiber* f = grid.self;
  if (p - reinterpret_cast<uintptr_t>(f->stack) < kStackBytes) return;
  Region* r = find(p);
  if (!r) {
    if (is_ignored(p) || p == reinterpret_cast<uintptr_t>(grid.context)) return;
    // The kernel's arguments live where the launch captured them.
    if (p - reinterpret_cast<uintptr_t>(grid.context) < 4096) return;
    out_of_bounds("outside every buffer", p, bytes, access, pc);
  }
  const bool is_write = access != Access::kRead;
  if (p + bytes > r->end) out_of_bounds("past the end", p, bytes, access, pc);
  if (bytes > 1 && bytes <= 16 && p % bytes) out_of_bounds("misaligned", p, bytes, access, pc);
  if (r->block && r->block != f->block) use_peer(*r->block, p, bytes, access, pc);
  if (is_write && !(r->flags & 2)) out_of_bounds("into an input", p, bytes, access, pc);
  if (!r->block && r->flags == 1) return;  // nobody writes it
  for (size_t i = (p - r->begin) / kGranule; i <= (p + bytes - 1 - r->begin) / kGranule; ++i) {
    Cell& c = r->cells[i];
    if (c.flags & kForbidden) out_of_bounds("between two shared arrays", p, bytes, access, pc);
    if ((c.flags & kInFlight) && access != Access::kCopyDone) {
      race(is_write ? "write to a copy under way" : "read of a copy under way", *r, p, c.writer,
           c.write_pc, pc);
      if (!is_write) continue;
    }
    if (c.writer && c.writer != global_index(f) + 1 && !is_ordered(c.writer, c.write_clock))
      race(is_write ? "write after write" : "read after write", *r, p, c.writer, c.write_pc, pc);
    if (is_write)
      check_write(c, *r, p, pc, access);
    else
      check_read(c, *r, p, pc);
  }
}

}  // namespace emu

using namespace emu;

static void hook(void* p, size_t bytes, bool is_write, void* pc) {
  if (grid.self)
    check(reinterpret_cast<uintptr_t>(p), bytes, is_write ? Access::kWrite : Access::kRead, pc);
}
static void hook_range(void* p, size_t bytes, bool is_write, void* pc) {
  for (size_t i = 0; i < bytes; i += kGranule)
    hook(static_cast<char*>(p) + i, std::min(kGranule, bytes - i), is_write, pc);
}

extern "C" {
void emu_register(const void* p, size_t bytes, const char* name, int flags) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p);
  registered.push_back(Region{begin, begin + bytes, name, flags, nullptr, {}});
  if (instrumented)
    registered.back().cells.assign(
        bytes / kGranule + 1,
        Cell{0, 0, 0, 0, 0, 0, 0, static_cast<uint8_t>(flags & 1 ? kInitialised : 0)});
}
void emu_unregister_all() { registered.clear(); }

void __tsan_init() { instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define EMU_HOOKS(N)                                                                         \
  void __tsan_read##N(void* p) { hook(p, N, false, __builtin_return_address(0)); }           \
  void __tsan_write##N(void* p) { hook(p, N, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##N(void* p) { hook(p, N, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##N(void* p) { hook(p, N, true, __builtin_return_address(0)); }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) {
  hook_range(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  hook_range(p, bytes, true, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
