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
      m.fail("async race: " + byte() + " has a cp.async under way that nobody waited for", w, i,
             lane);
    const bool is_known = last.warp == w.number ? last.clock < w.clock || last.lane == lane
                                                : w.knows(last.warp, last.clock);
    const auto races = [&](const char* verb, int with) {
      m.fail(string("shared race: ") + verb + " " + byte() + ", warp " + to_string(with) +
                 " of the cluster did too, nothing between",
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
                         : !w.knows(reader->number, r.clock))
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

Cta& peer(Machine& m, Warp& w, const Ins& i, int lane, u32 rank) {
  if (rank >= m.ctas.size())
    m.fail("shared memory of rank " + to_string(rank) + " of the cluster", w, i, lane);
  Cta& c = *m.ctas[rank];
  if (&c == w.cta) return c;
  const auto one = [&](const auto& is) { return std::any_of(c.warps.begin(), c.warps.end(), is); };
  if (!one([&](const Warp* o) { return w.seen[o->number] > 0; }))
    m.fail("shared memory of a CTA that may not have started", w, i, lane);
  if (!one([](const Warp* o) { return o->state != Warp::kDone; }))
    m.fail("shared memory of a CTA that has exited", w, i, lane);
  c.remote[w.number] = w.clock;
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

}  // namespace

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
  Cta* c = w.cta;  // an address of another CTA has its rank + 1 in the high byte
  if (space == kCluster && at >> 24) c = &peer(m, w, i, lane, (at >> 24) - 1), at &= 0xffffff;
  if (at + size > c->memory.size())
    m.fail("out of bounds: " + to_string(size) + " bytes at " + to_string(at) + " of " +
               to_string(c->memory.size()) + " of shared memory",
           w, i, lane);
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
