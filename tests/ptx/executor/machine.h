// The machine: lanes, warps, CTAs and the clocks by which accesses are ordered. README.md says what
// is modelled.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

// Storage of 16-bit floats; they are calculated with in double, which is exact, and rounded once.
struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};

template <class To, class From>
To as(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

inline double value_of(f16 x) { return static_cast<double>(as<_Float16>(x)); }
inline double value_of(bf16 x) { return as<f32>(static_cast<u32>(x.bits) << 16); }
inline f32 value_of(f32 x) { return x; }
inline f64 value_of(f64 x) { return x; }

template <class T>
T rounded(double x) {
  if constexpr (std::is_same_v<T, f16>) {
    return x != x ? f16{0x7fff} : as<f16>(static_cast<_Float16>(x));
  } else if constexpr (std::is_same_v<T, bf16>) {
    f32 y = static_cast<f32>(x);
    if (y != y) return {0x7fff};
    u32 bits = as<u32>(y);
    if (y != x && std::isfinite(y)) {  // to odd, or the second rounding could fall on a tie
      if (std::fabs(static_cast<double>(y)) > std::fabs(x)) --bits;
      bits |= 1;
    }
    return {static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else {
    return static_cast<T>(x);
  }
}

template <class T>
constexpr bool kIsFloat =
    std::is_floating_point_v<T> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

// Flags of an instruction; decode.py has the same numbers.
enum Flag {
  kFtz = 1,
  kSat = 2,
  kWide = 4,
  kRelaxed = 8,
  kOfCta = 16,
  kAligned = 64,
  kMasked = 128,
  kNonCoherent = 256
};

// One instruction as decode.py writes it.
struct Record {
  s64 imm;
  s32 op, guard, is_negated, flags, dests, sources, first, target, line, width;
};

struct Cta;
struct Machine;
struct Warp;
struct Ins;
using Op = void (*)(Machine&, Warp&, const Ins&, u32 lanes);

struct Ins : Record {
  const s32 *d, *s;  // registers (of 32 lanes) or predicates
  std::string text;
  Op run;
};

// What the scheduler itself does.
enum class Control {
  kNone,
  kBranch,
  kExit,
  kTrap,
  kBarrier,
  kArrive,
  kWait,
  kTryWait,
  kWarpBarrier,
  kSync
};

struct Kernel {
  std::vector<s32> operands;
  std::vector<Ins> code;
  std::vector<Control> control;
  struct Constant {
    s32 at, width;
    u64 value;
  };
  std::vector<Constant> constants;
  struct Special {
    s32 kind, at;
  };
  std::vector<Special> specials;
  int registers, predicates, local, grain;
};

// Every access happens at the clock of its warp, which counts that warp's synchronisations. Bytes
// that st.async brought belong to their mbarrier: its number follows those of the warps, its clock
// counts its phases from 1.
struct Clocks {
  std::vector<u32> seen;  // of warps and mbarriers: what they did until then is visible
  std::vector<u32> over;  // it is over: who writes disturbs no reader of it

  static void join(std::vector<u32>& to, const std::vector<u32>& from) {
    if (to.size() < from.size()) to.resize(from.size());
    for (size_t n = 0; n < from.size(); ++n) to[n] = std::max(to[n], from[n]);
  }
  void join(const Clocks& other) { join(seen, other.seen), join(over, other.over); }
  void learn(u32 who, u32 when) {
    for (std::vector<u32>* v : {&seen, &over}) {
      if (v->size() <= who) v->resize(who + 1);
      (*v)[who] = std::max((*v)[who], when);
    }
  }
};
struct Write {  // the last one to a grain of shared memory
  u32 clock = 0;
  u16 warp = 0;
  u8 lane = 0, is_pending = 0;  // pending: by a copy that nobody waited for
};
struct Read {
  u32 clock = 0;
  u8 lane = 0, by_many = 0;
};
struct GlobalAccess {
  u32 cluster = 0, clock = 0;  // of the order in which clusters run, over all launches
  u16 warp = 0;
  u8 lane = 0, by_many = 0;
};
struct Word {  // two bytes of global memory
  GlobalAccess write, read;
  bool is_written = false;
};
struct Buffer {
  u64 base, size;
  std::string name;
  bool is_writable;
  std::vector<Word> words;
};

struct Copy {  // cp.async under way
  u32 lane, to, size, valid;
  u64 group, from;
  const Ins* ins;
};

struct Barrier {  // mbarrier
  u32 at, number, count, pending;
  s64 bytes = 0;               // tx-count
  u32 phase = 0, brought = 0;  // how many ended; the last that bytes came in, from 1
  bool is_waited_for = true;   // the phase before
  bool is_foreign = false, was_foreign = false;  // bytes of this phase, of the phase before
  Clocks arrived = {}, before = {};  // of who arrived in them, and of the bytes' senders
};
struct Sent {  // st.async under way
  Warp* from;
  Cta* to;
  Barrier* barrier;
  u32 at, size, lane;
  u8 bytes[16];
  std::shared_ptr<const std::vector<u32>> over;  // for its sender, before its last synchronisation
  const Ins* ins;
};

struct Cta {
  u32 rank, x, y, z;
  int grain;
  std::vector<u8> memory;
  std::vector<Write> writes;
  std::vector<Read> reads;  // of each warp of this CTA, and one for all others
  std::vector<u32> remote;  // clocks of the last access from each warp of the cluster
  std::vector<Warp*> warps;
  std::list<Barrier> barriers;

  bool has_exited() const;
};

struct Split {  // lanes that are at the same place
  int at;
  u32 lanes;
  bool is_waiting, is_suspended = false;  // for other lanes; for an mbarrier
};

struct Warp {
  enum State { kRuns, kAtBarrier, kAtCluster, kSuspended, kDone };
  Cta* cta;
  int id, number;  // in the CTA, in the cluster
  State state = kRuns;
  u32 all, exited = 0;  // lanes
  std::vector<Split> splits;
  int current = 0, barrier = 0;
  u32 clock = 1;
  Clocks clocks;        // that happened before
  Clocks at_arrive[2];  // when it last arrived at the cluster's barrier
  Clocks observed;      // by a relaxed wait, for a fence to come
  u64 arrived = 0, waited = 0;
  std::vector<Copy> copies;
  u64 committed[32] = {};
  std::vector<u32> registers, predicates;
  std::vector<u8> local;

  u32* reg(s32 index) { return registers.data() + 32 * static_cast<size_t>(index); }
  u32& pred(s32 index) { return predicates[index]; }
  void set(s32 index, u32 lanes, u32 value) {
    pred(index) = (pred(index) & ~lanes) | (value & lanes);
  }
  u32 live() const { return all & ~exited; }
  void wake();  // an mbarrier's phase has ended, or its wait has lasted long enough
  void tick() { clocks.learn(number, ++clock); }
  static bool reaches(const std::vector<u32>& v, u32 who, u32 when) {
    return who < v.size() && v[who] >= when;
  }
  bool knows(u32 who, u32 when) const { return reaches(clocks.seen, who, when); }
  bool knows_over(u32 who, u32 when) const { return reaches(clocks.over, who, when); }
};

inline bool Cta::has_exited() const {
  return std::all_of(warps.begin(), warps.end(), [](Warp* w) { return w->state == Warp::kDone; });
}

struct Fault {
  std::string text;
};

struct Machine {
  const Kernel* kernel;
  u32 grid[3], block[3], cluster, shared_bytes;
  std::vector<u8> params;
  std::mt19937_64 random;
  bool is_shuffled;
  u32 first_cluster, this_cluster;  // numbers over all launches
  std::vector<Cta*> ctas;
  std::vector<Warp*> warps;
  const u8* stored = nullptr;  // what the store under way writes
  std::vector<Sent> sent;
  u32 barriers = 0;

  [[noreturn]] void fail(const std::string& what, const Warp& w, const Ins& i, int lane) {
    const Cta& c = *w.cta;
    const int at[] = {int(c.x), int(c.y), int(c.z), int(c.rank), w.id, lane};
    std::string where;
    for (const int x : at) where += (where.empty() ? "" : " ") + std::to_string(x);
    throw Fault{what + "; line " + std::to_string(i.line) + ": " + i.text +
                " [CTA x y z, rank, warp, lane: " + where + "]"};
  }
};

std::map<std::string, Op>& ops();
template <class F>  // a lambda without captures
void define(const std::string& name, F f) {
  ops()[name] = f;
}

inline std::string hex(u64 x) {
  char text[20];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

// Registers of 8 bytes take two of 32 lanes.
template <class T>
T get(const u32* r, int lane) {
  T value;
  if constexpr (sizeof(T) == 8)
    memcpy(&value, reinterpret_cast<const u8*>(r) + 8 * lane, 8);
  else
    memcpy(&value, r + lane, sizeof value);
  return value;
}
template <class T>
void put(u32* r, int lane, T value) {
  if constexpr (sizeof(T) == 8) {
    memcpy(reinterpret_cast<u8*>(r) + 8 * lane, &value, 8);
  } else {
    r[lane] = 0;
    if constexpr (std::is_same_v<T, s16> || std::is_same_v<T, s8>)
      r[lane] = static_cast<u32>(static_cast<s32>(value));
    else
      memcpy(r + lane, &value, sizeof value);
  }
}

template <class F>
void for_lanes(u32 lanes, const F& f) {
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) f(l);
}
// The destination of lane l becomes f(l); all are read before one is written.
template <class T, class F>
void assign(Warp& w, const Ins& i, u32 lanes, const F& f) {
  u32* d = w.reg(i.d[0]);
  T made[32];
  if (lanes == ~0u) {
    for (int l = 0; l < 32; ++l) made[l] = f(l);
    for (int l = 0; l < 32; ++l) put<T>(d, l, made[l]);
  } else {
    for_lanes(lanes, [&](int l) { put<T>(d, l, f(l)); });
  }
}

// memory.cpp
enum Space { kGeneric, kGlobal, kShared, kParam, kLocal, kCluster };
enum Stage { kPlain, kIssued, kLanded };  // of an asynchronous copy
u8* resolve(Machine&, Warp&, const Ins&, int lane, Space, u64 address, u32 size, bool is_write,
            Stage = kPlain);
void addresses(Warp&, const Ins&, int operand, s64 offset, u64* to);
void deliver(Machine&);  // one st.async, any

// What each file defines.
void define_arithmetic();
void define_memory();
void define_tensor_cores();

}  // namespace ptx
