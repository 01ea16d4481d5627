// Memory that is checked: bounds, alignment, what nobody wrote, and the order of accesses.
#include <algorithm>

#include "machine.h"

namespace ptx {
namespace {

using std::string;
using std::to_string;

std::map<u64, Buffer> buffers;

constexpr u64 kSharedWindow = 0x7e0000000000, kWindow = 1ull << 32;  // in generic addresses

Buffer* buffer_at(u64 address) {
  auto it = buffers.upper_bound(address);
  if (it == buffers.begin()) return nullptr;
  Buffer& b = (--it)->second;
  return address - b.base < b.size ? &b : nullptr;
}

string nearest_buffer(u64 address) {
  const Buffer* nearest = nullptr;
  u64 distance = 65536;
  for (const auto& [base, b] : buffers) {
    const u64 d = address < base ? base - address : address - std::min(address, base + b.size);
    if (d < distance) nearest = &b, distance = d;
  }
  if (!nearest) return "";
  return " (" + nearest->name + " of " + to_string(nearest->size) + " bytes, offset " +
         to_string(static_cast<s64>(address - nearest->base)) + ")";
}

// Several threads that store the same value: which of them wins is no matter.
bool stores_the_same(const Machine& m, u64 at, u64 address, u32 size, u32 grain, const u8* now) {
  return m.stored && at >= address && at + grain <= address + size &&
         !memcmp(now, m.stored + (at - address), grain);
}

void check_shared(Machine& m, Warp& w, const Ins& i, int lane, Cta& c, u32 at, u32 size,
                  bool is_write, Stage stage) {
  const u32 grain = c.grain, readers = c.warps.size() + 1;
  const bool is_own = &c == w.cta;
  for (u32 g = at / grain; g <= (at + size - 1) / grain; ++g) {
    Write& last = c.writes[g];
    const auto byte = [&] { return "shared byte " + to_string(g * grain); };
    if (last.is_pending && stage != kLanded)
      m.fail("async race: " + byte() + " has a copy under way that nobody waited for", w, i, lane);
    const bool is_brought = last.warp >= m.warps.size();
    const bool is_known = last.warp == w.number    ? last.clock < w.clock || last.lane == lane
                          : is_write && is_brought ? w.knows_over(last.warp, last.clock)
                                                   : w.knows(last.warp, last.clock);
    const auto races = [&](const char* verb, int with) {
      m.fail(string("shared race: ") + verb + " " + byte() + ", warp " + to_string(with) +
                 " of the cluster, or what brings bytes, did too, nothing between",
             w, i, lane);
    };
    if (!is_write) {
      if (!last.clock) m.fail("unwritten: reads " + byte(), w, i, lane);
      if (!is_known) races("reads", last.warp);
      Read& r = c.reads[g * readers + (is_own ? w.id : readers - 1)];
      if (r.clock == w.clock)
        r.by_many |= r.lane != lane;
      else
        r = {w.clock, static_cast<u8>(lane), 0};
      continue;
    }
    const bool is_same =
        stage == kPlain && last.clock && !last.is_pending &&
        stores_the_same(m, g * grain, at, size, grain, c.memory.data() + g * grain);
    if (stage != kLanded) {
      if (last.clock && !is_same && !is_known) races("writes", last.warp);
      for (const Warp* reader : c.warps) {
        const Read& r = c.reads[g * readers + reader->id];
        if (!r.clock) continue;
        if (reader == &w ? r.clock == w.clock && (r.by_many || r.lane != lane)
                         : !w.knows_over(reader->number, r.clock))
          races("writes", reader->number);
      }
    }
    if (is_same && !is_known) continue;  // the first of them stays the one to be ordered with
    last = {w.clock, static_cast<u16>(w.number), static_cast<u8>(lane), stage == kIssued};
  }
}

void check_global(Machine& m, Warp& w, const Ins& i, int lane, Buffer& b, u64 at, u32 size,
                  bool is_write) {
  const auto is_of_launch = [&](const GlobalAccess& x) { return x.cluster >= m.first_cluster; };
  const auto is_unordered = [&](const GlobalAccess& x) {
    if (!is_of_launch(x)) return false;
    if (x.cluster != m.this_cluster) return true;
    return x.warp == w.number ? x.clock == w.clock && x.lane != lane : !w.knows(x.warp, x.clock);
  };
  for (u64 n = (at - b.base) / 2; n <= (at - b.base + size - 1) / 2; ++n) {
    Word& x = b.words[n];
    const auto what = [&] { return "byte " + to_string(2 * n) + " of " + b.name; };
    const auto races = [&](const char* verb) {
      m.fail(string("global race: ") + verb + " " + what() +
                 ", another thread of the launch did too, nothing between",
             w, i, lane);
    };
    const GlobalAccess now{m.this_cluster, w.clock, static_cast<u16>(w.number),
                           static_cast<u8>(lane), 0};
    const u64 address = b.base + 2 * n;
    const bool is_same =
        is_write && is_of_launch(x.write) &&
        stores_the_same(m, address, at, size, 2, reinterpret_cast<const u8*>(address));
    if (!is_same && is_unordered(x.write)) races(is_write ? "writes" : "reads");
    if (is_write) {
      if (is_of_launch(x.read) && (x.read.by_many || is_unordered(x.read))) races("writes");
      x.write = now, x.is_written = true;
    } else {
      if ((i.flags & kNonCoherent) && is_of_launch(x.write))
        m.fail("ld.global.nc of " + what() + ", which this launch writes", w, i, lane);
      if (!x.is_written) m.fail("unwritten: reads " + what(), w, i, lane);
      const u8 by_many =
          is_of_launch(x.read) && (x.read.by_many || x.read.cluster != m.this_cluster);
      x.read = now, x.read.by_many = by_many;
    }
  }
}

// The CTA of an address of shared::cluster: one of another CTA has its rank + 1 in the high byte.
Cta& cta_of(Machine& m, Warp& w, const Ins& i, int lane, u64 address, Stage stage) {
  const u64 rank = (address >> 24) - 1;
  if (!(address >> 24)) return *w.cta;
  if (rank >= m.ctas.size())
    m.fail("shared memory of rank " + to_string(rank) + " of the cluster", w, i, lane);
  Cta& c = *m.ctas[rank];
  if (&c == w.cta) return c;
  const auto is_known = [&](const Warp* o) { return w.knows(o->number, 1); };
  if (std::none_of(c.warps.begin(), c.warps.end(), is_known))
    m.fail("shared memory of a CTA that may not have started", w, i, lane);
  if (c.has_exited()) m.fail("shared memory of a CTA that has exited", w, i, lane);
  if (stage == kPlain) c.remote[w.number] = w.clock;
  return c;
}

template <class T, Space kSpace>
void load(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u64 from[32];
  addresses(w, i, 0, i.imm, from);
  for_lanes(lanes, [&](int l) {
    const u8* p = resolve(m, w, i, l, kSpace, from[l], sizeof(T) * i.dests, false);
    for (int k = 0; k < i.dests; ++k) {
      if (i.d[k] < 0) continue;
      T value;
      memcpy(&value, p + k * sizeof(T), sizeof(T));
      if (i.flags & kWide)
        put<s64>(w.reg(i.d[k]), l, static_cast<s64>(value));
      else
        put<T>(w.reg(i.d[k]), l, value);
    }
  });
}
template <class T, Space kSpace>
void store(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u64 to[32];
  addresses(w, i, 0, i.imm, to);
  const u32 count = i.sources - 1, size = sizeof(T) * count;
  const int turn = m.is_shuffled ? m.random() & 31 : 0;  // which of two lanes wins is undefined
  for (int n = 0; n < 32; ++n) {
    const int l = n ^ turn;
    if (!(lanes >> l & 1)) continue;
    u8 now[64];
    for (u32 k = 0; k < count; ++k) {
      const u32* r = w.reg(i.s[1 + k]);
      const T value = i.flags & kWide ? static_cast<T>(get<u64>(r, l)) : get<T>(r, l);
      memcpy(now + k * sizeof(T), &value, sizeof(T));
    }
    m.stored = now;
    memcpy(resolve(m, w, i, l, kSpace, to[l], size, true), now, size);
    m.stored = nullptr;
  }
}
template <Space kSpace>
void accesses(const string& space) {
  const string ld = "ld." + space + ".", st = "st." + space + ".";
  define(ld + "u8", load<u8, kSpace>), define(ld + "s8", load<s8, kSpace>);
  define(ld + "u16", load<u16, kSpace>), define(ld + "s16", load<s16, kSpace>);
  define(ld + "u32", load<u32, kSpace>), define(ld + "s32", load<s32, kSpace>);
  define(ld + "u64", load<u64, kSpace>);
  define(st + "u8", store<u8, kSpace>), define(st + "u16", store<u16, kSpace>);
  define(st + "u32", store<u32, kSpace>), define(st + "u64", store<u64, kSpace>);
}

// The bytes arrive when they are waited for, not before. imm: size; d: offsets of the addresses.
void copy(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u64 to[32], from[32];
  addresses(w, i, 0, i.d[0], to);
  addresses(w, i, 1, i.d[1], from);
  const u32 size = i.imm;
  for_lanes(lanes, [&](int l) {
    const u32 valid = i.sources > 2 ? get<u32>(w.reg(i.s[2]), l) : size;
    if (valid > size) m.fail("cp.async of " + to_string(valid) + " bytes", w, i, l);
    if (from[l] % size) m.fail("misaligned: cp.async from " + hex(from[l]), w, i, l);
    for (u32 at = 0, n; at < valid; at += n) {
      for (n = size; at + n > valid; n /= 2) {
      }
      resolve(m, w, i, l, kGlobal, from[l] + at, n, false);
    }
    resolve(m, w, i, l, kShared, to[l], size, true, kIssued);
    const u32 lane = l, shared = to[l];
    w.copies.push_back({lane, shared, size, valid, w.committed[l] + 1, from[l], &i});
  });
}
// Copies of all but the last `pending` groups of a lane land; of all groups, committed or not.
void land(Machine& m, Warp& w, u32 lanes, u64 pending, bool is_all) {
  std::erase_if(w.copies, [&](const Copy& c) {
    const bool is_due = is_all || c.group + pending <= w.committed[c.lane];
    if (!(lanes >> c.lane & 1) || !is_due) return false;
    u8* to = resolve(m, w, *c.ins, c.lane, kShared, c.to, c.size, true, kLanded);
    memset(to, 0, c.size);
    memcpy(to, reinterpret_cast<const void*>(c.from), c.valid);
    return true;
  });
}

constexpr s64 kMostOfBarrier = (1 << 20) - 1;

void init_barrier(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u64 at[32];
  addresses(w, i, 0, i.imm, at);
  for_lanes(lanes, [&](int l) {
    memset(resolve(m, w, i, l, kShared, at[l], 8, true), 0xff, 8);
    const u32 count = get<u32>(w.reg(i.s[1]), l), place = at[l];
    if (count < 1 || count > kMostOfBarrier) m.fail("mbarrier for " + to_string(count), w, i, l);
    const u32 number = m.warps.size() + m.barriers++;
    w.cta->barriers.push_back({place, number, count, count});
  });
}
Barrier& barrier_at(Machine& m, Warp& w, const Ins& i, int lane, Cta& c, u32 at) {
  for (Barrier& b : c.barriers) {
    if (b.at != at) continue;
    const Write& made = c.writes[at / c.grain];
    if (made.warp == w.number ? made.clock == w.clock && made.lane != lane
                              : !w.knows(made.warp, made.clock))
      m.fail("an mbarrier that may not be there yet", w, i, lane);
    return b;
  }
  m.fail("no mbarrier at shared byte " + to_string(at), w, i, lane);
}
// A phase ends when all have arrived and the bytes that they expected are there, no matter which
// came first.
void count_bytes(Machine& m, Warp& w, const Ins& i, int lane, Cta& c, Barrier& b, s64 bytes) {
  b.bytes += bytes;
  if (std::abs(b.bytes) > kMostOfBarrier)
    m.fail("an mbarrier counts " + to_string(b.bytes) + " bytes", w, i, lane);
  if (b.pending || b.bytes) return;
  ++b.phase, b.pending = b.count, b.is_waited_for = false;
  b.before = b.arrived, b.arrived = {};
  b.was_foreign = b.is_foreign, b.is_foreign = false;
  for (Warp* o : c.warps) o->wake();
}
void arrive(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u64 at[32];
  addresses(w, i, 0, i.imm, at);
  for_lanes(lanes, [&](int l) {
    Barrier& b = barrier_at(m, w, i, l, *w.cta, at[l]);
    if (!b.is_waited_for)
      m.fail("arrives at an mbarrier, nobody waited for the phase before", w, i, l);
    if (!b.pending) m.fail("arrives at an mbarrier more often than it counts", w, i, l);
    --b.pending;
    b.arrived.join(w.clocks);
    count_bytes(m, w, i, l, *w.cta, b, get<u32>(w.reg(i.s[1]), l));
  });
  w.tick();
}
// Of the phase that ended last, or of the one that goes on. What it saw counts at once, or, if it
// is relaxed, from a fence on. Of bytes from other CTAs a wait in the scope of a CTA sees nothing.
void try_wait(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u64 at[32];
  addresses(w, i, 0, i.imm, at);
  u32 yes = 0;
  for_lanes(lanes, [&](int l) {
    Barrier& b = barrier_at(m, w, i, l, *w.cta, at[l]);
    if ((b.phase & 1) == (get<u32>(w.reg(i.s[1]), l) & 1)) return;
    yes |= 1u << l;
    b.is_waited_for = true;
    if (b.was_foreign && (i.flags & kOfCta)) return;
    Clocks& to = i.flags & kRelaxed ? w.observed : w.clocks;
    to.join(b.before), to.learn(b.number, b.phase);
  });
  w.set(i.d[0], lanes, yes);
}
// imm: bytes of a value; d: offsets of the addresses. Whoever has waited for the bytes knows that
// what came before in the sender's order is over, not that what it wrote is visible.
void send(Machine& m, Warp& w, const Ins& i, u32 lanes) {
  u64 to[32], of[32];
  addresses(w, i, 0, i.d[0], to);
  addresses(w, i, 1, i.d[1], of);
  if (m.cluster < 2) m.fail("st.async in a cluster of one CTA", w, i, 0);
  auto over = std::make_shared<std::vector<u32>>(w.clocks.over);
  (*over)[w.number] = w.clock - 1;
  const u32 values = i.sources - 2, bytes = i.imm;
  for_lanes(lanes, [&](int l) {
    resolve(m, w, i, l, kCluster, to[l], bytes * values, true, kIssued);
    Cta& c = cta_of(m, w, i, l, to[l], kIssued);
    if (&c != &cta_of(m, w, i, l, of[l], kIssued))
      m.fail("st.async to one CTA, with an mbarrier of another", w, i, l);
    Barrier& b = barrier_at(m, w, i, l, c, of[l] & 0xffffff);
    const u32 at = to[l] & 0xffffff, lane = l;
    m.sent.push_back({&w, &c, &b, at, bytes * values, lane, {}, over, &i});
    for (u32 k = 0; k < values; ++k)
      memcpy(m.sent.back().bytes + k * bytes,
             reinterpret_cast<const u8*>(w.reg(i.s[2 + k])) + l * bytes, bytes);
  });
}

}  // namespace

void Warp::wake() {
  if (state != kSuspended) return;
  state = kRuns;
  for (Split& s : splits)
    if (s.is_suspended) s.is_waiting = s.is_suspended = false;
}

void deliver(Machine& m) {
  std::swap(m.sent[m.random() % m.sent.size()], m.sent.back());
  const Sent s = m.sent.back();
  m.sent.pop_back();
  Barrier& b = *s.barrier;
  memcpy(s.to->memory.data() + s.at, s.bytes, s.size);
  b.brought = b.phase + 1, b.is_foreign |= s.from->cta != s.to;
  for (u32 g = s.at / s.to->grain; g <= (s.at + s.size - 1) / s.to->grain; ++g)
    s.to->writes[g] = {b.brought, static_cast<u16>(b.number), static_cast<u8>(s.lane), 0};
  Clocks::join(b.arrived.over, *s.over);
  count_bytes(m, *s.from, *s.ins, s.lane, *s.to, b, -static_cast<s64>(s.size));
}

u8* resolve(Machine& m, Warp& w, const Ins& i, int lane, Space space, u64 at, u32 size,
            bool is_write, Stage stage) {
  if (at % size) m.fail("misaligned: " + hex(at) + " for " + to_string(size), w, i, lane);
  if (space == kGeneric) {
    const bool is_shared = at >= kSharedWindow && at < kSharedWindow + kWindow;
    space = is_shared ? kCluster : kGlobal;
    if (is_shared) at -= kSharedWindow;
  }
  if (space == kParam) {
    if (is_write || at + size > m.params.size()) m.fail("parameter " + hex(at), w, i, lane);
    return m.params.data() + at;
  }
  if (space == kGlobal) {
    Buffer* b = buffer_at(at);
    if (!b || at - b->base + size > b->size)
      m.fail("out of bounds: " + to_string(size) + " bytes at " + hex(at) + nearest_buffer(at), w,
             i, lane);
    if (is_write && !b->is_writable) m.fail("writes to input " + b->name, w, i, lane);
    if (stage != kLanded) check_global(m, w, i, lane, *b, at, size, is_write);
    return reinterpret_cast<u8*>(at);
  }
  Cta* c = w.cta;
  if (space == kCluster) c = &cta_of(m, w, i, lane, at, stage), at &= 0xffffff;
  if (at + size > c->memory.size())
    m.fail("out of bounds: " + to_string(size) + " bytes at " + to_string(at) + " of " +
               to_string(c->memory.size()) + " of shared memory",
           w, i, lane);
  for (const Barrier& b : c->barriers)
    if (at < b.at + 8 && b.at < at + size)
      m.fail("touches the mbarrier at shared byte " + to_string(b.at), w, i, lane);
  check_shared(m, w, i, lane, *c, at, size, is_write, stage);
  return c->memory.data() + at;
}

void addresses(Warp& w, const Ins& i, int operand, s64 offset, u64* to) {
  const u32* base = w.reg(i.s[operand]);
  for (int l = 0; l < 32; ++l)  // width: a bit for each operand, whether its base has 64 bits
    to[l] =
        i.width >> operand & 1 ? get<u64>(base, l) + offset : base[l] + static_cast<u32>(offset);
}

void define_memory() {
  accesses<kGeneric>("generic"), accesses<kGlobal>("global"), accesses<kShared>("shared");
  accesses<kCluster>("shared::cluster"), accesses<kParam>("param");
  define("cvta.shared", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<u64>(w, i, lanes, [&](int l) { return get<u64>(w.reg(i.s[0]), l) + kSharedWindow; });
  });
  define("cvta.to.shared", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<u64>(w, i, lanes, [&](int l) { return get<u64>(w.reg(i.s[0]), l) - kSharedWindow; });
  });
  define("mapa.shared::cluster.u32", [](Machine&, Warp& w, const Ins& i, u32 lanes) {
    assign<u32>(w, i, lanes, [&](int l) {
      const u32 at = get<u32>(w.reg(i.s[0]), l), rank = get<u32>(w.reg(i.s[1]), l);
      return (rank + 1) << 24 | (at & 0xffffff);
    });
  });
  define("cp.async", copy);
  define("cp.async.commit_group", [](Machine&, Warp& w, const Ins&, u32 lanes) {
    for_lanes(lanes, [&](int l) { ++w.committed[l]; });
  });
  define("cp.async.wait_group",
         [](Machine& m, Warp& w, const Ins& i, u32 lanes) { land(m, w, lanes, i.imm, false); });
  define("cp.async.wait_all",
         [](Machine& m, Warp& w, const Ins&, u32 lanes) { land(m, w, lanes, 0, true); });
  define("mbarrier.init", init_barrier);
  define("mbarrier.arrive.expect_tx", arrive);
  define("mbarrier.try_wait.parity", try_wait);
  define("st.async", send);
  define("fence.acquire", [](Machine&, Warp& w, const Ins&, u32) { w.clocks.join(w.observed); });
}

}  // namespace ptx

extern "C" {
void ptx_register(ptx::u64 base, ptx::u64 size, const char* name, int is_writable, int is_written) {
  if (!size) return;
  ptx::Buffer b{base, size, name, is_writable != 0, std::vector<ptx::Word>(size / 2 + 1)};
  for (ptx::Word& word : b.words) word.is_written = is_written;
  ptx::buffers[base] = std::move(b);
}
// By the host, between launches.
void ptx_wrote(ptx::u64 at, ptx::u64 size) {
  if (!size) return;
  ptx::Buffer* b = ptx::buffer_at(at);
  if (!b || at + size > b->base + b->size) std::abort();
  for (ptx::u64 word = (at - b->base) / 2; word <= (at + size - 1 - b->base) / 2; ++word)
    b->words[word].is_written = true;
}
void ptx_forget_buffers() { ptx::buffers.clear(); }
}
