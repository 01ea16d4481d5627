// Runs a launch: clusters one after the other, in random order; the warps of one take turns of
// random length.
#include <algorithm>

#include "machine.h"

namespace ptx {
namespace {

using std::string;
using std::to_string;

constexpr u64 kMostSteps = 1'000'000'000;
u32 next_cluster = 1;

const std::vector<std::pair<string, Control>> kControls = {
    {"bra", Control::kBranch},
    {"exit", Control::kExit},
    {"trap", Control::kTrap},
    {"bar.sync", Control::kBarrier},
    {"barrier.cluster.arrive", Control::kArrive},
    {"barrier.cluster.wait", Control::kWait},
    {"mbarrier.try_wait.parity", Control::kTryWait},
    {"bar.warp.sync", Control::kWarpBarrier},
};

struct Scheduler : Machine {
  u64 steps = 0;
  bool goes_by_address;  // of groups of lanes that diverged, the lowest address runs; or any

  const Ins& next_of(const Warp& w) const {
    return kernel->code[w.splits.empty() ? 0 : w.splits[0].at];
  }

  void merge(Warp& w) {
    auto& s = w.splits;
    for (int a = 0; a < int(s.size()); ++a)
      for (int b = a + 1; b < int(s.size());)
        if (s[a].at == s[b].at) {
          s[a].lanes |= s[b].lanes, s[a].is_waiting = false;
          if (w.current == b) w.current = a;
          if (w.current > b) --w.current;
          s.erase(s.begin() + b);
        } else {
          ++b;
        }
  }
  void pick(Warp& w) {
    std::vector<int> ready;
    for (int n = 0; n < int(w.splits.size()); ++n)
      if (!w.splits[n].is_waiting) ready.push_back(n);
    const auto is_suspended = [](const Split& s) { return s.is_suspended; };
    if (ready.empty() && std::any_of(w.splits.begin(), w.splits.end(), is_suspended)) {
      w.state = Warp::kSuspended;
      return;
    }
    if (ready.empty())
      fail("divergent: lanes wait for each other at " + to_string(w.splits.size()) + " places", w,
           next_of(w), 0);
    const auto is_lower = [&](int a, int b) { return w.splits[a].at < w.splits[b].at; };
    w.current = goes_by_address ? *std::min_element(ready.begin(), ready.end(), is_lower)
                                : ready[random() % ready.size()];
  }

  void pass_barrier(Cta& c) {
    Clocks all;
    int barrier = -1;
    bool has_exited = false;
    for (const Warp* o : c.warps) {
      has_exited |= o->state == Warp::kDone;
      if (o->state == Warp::kDone) continue;
      if (o->state != Warp::kAtBarrier || (barrier >= 0 && o->barrier != barrier)) return;
      barrier = o->barrier;
      all.join(o->clocks);
    }
    for (Warp* o : c.warps)
      if (o->state == Warp::kAtBarrier) {
        if (has_exited) fail("a barrier though warps of the CTA have exited", *o, next_of(*o), 0);
        o->clocks = all, o->state = Warp::kRuns;
        o->tick();
      }
  }
  void pass_cluster() {
    u64 phase = ~0ull;
    for (const Warp* o : warps)
      if (o->state != Warp::kDone) phase = std::min(phase, o->arrived);
    for (Warp* o : warps)
      if (o->state == Warp::kAtCluster && o->waited < phase) {
        for (const Warp* q : warps)
          if (q->arrived > o->waited || q->state == Warp::kDone)
            o->clocks.join(q->at_arrive[o->waited & 1]);
        ++o->waited, o->state = Warp::kRuns;
        o->tick();
      }
  }
  // The last warp of a CTA exits: nobody may use its shared memory any more.
  void leave(Warp& w, const Ins& i) {
    const Cta& c = *w.cta;
    const auto is_known = [&](u32 who, u32 when) {
      const auto knows = [&](const Warp* o) { return o->knows_over(who, when); };
      return std::any_of(c.warps.begin(), c.warps.end(), knows);
    };
    for (u32 peer = 0; peer < c.remote.size(); ++peer)
      if (c.remote[peer] && !is_known(peer, c.remote[peer]))
        fail("exits while warp " + to_string(peer) + " of the cluster may use its shared memory", w,
             i, 0);
    if (std::any_of(sent.begin(), sent.end(), [&](const Sent& s) { return s.to == &c; }))
      fail("exits while bytes are under way to its shared memory", w, i, 0);
    for (const Barrier& b : c.barriers)
      if (b.bytes || (b.brought && !is_known(b.number, b.brought)))
        fail("exits though nobody waited for all bytes of an mbarrier", w, i, 0);
  }
  void finish(Warp& w, const Ins& i) {
    w.state = Warp::kDone;
    w.at_arrive[0] = w.at_arrive[1] = w.clocks;
    if (!w.copies.empty()) fail("exits while copies are under way", w, i, 0);
    if (w.cta->has_exited()) leave(w, i);
    pass_barrier(*w.cta);
    pass_cluster();
  }

  // The lanes that must be there before an instruction of all runs; 0: it is skipped.
  u32 needed(Warp& w, const Ins& i, Control control, u32 lanes, u32 group) {
    if (!lanes) return 0;
    if (control != Control::kWarpBarrier && !(i.flags & kMasked)) {
      if (lanes != group) fail("divergent: an aligned instruction under a predicate", w, i, 0);
      return w.live();
    }
    const int first = __builtin_ctz(lanes);
    const u32 asked = get<u32>(w.reg(i.s[i.sources - 1]), first);
    if (asked & w.exited) fail("mask " + hex(asked) + " names lanes that have exited", w, i, first);
    if (lanes & ~asked) fail("a lane that mask " + hex(asked) + " lacks", w, i, first);
    if (lanes != group && (lanes & asked & w.live()) != (asked & w.live()))
      fail("divergent: a part of the mask is predicated off", w, i, first);
    return asked & w.live();
  }

  // Returns whether the warp can go on.
  bool synchronise(Warp& w, const Ins& i, Control control, u32 lanes) {
    switch (control) {
      case Control::kBarrier:
        w.state = Warp::kAtBarrier, w.barrier = static_cast<int>(i.imm);
        pass_barrier(*w.cta);
        break;
      case Control::kArrive:
        if (w.arrived != w.waited) fail("arrives twice at the cluster's barrier", w, i, 0);
        w.at_arrive[w.arrived++ & 1] = w.clocks;
        w.tick();
        pass_cluster();
        break;
      case Control::kWait:
        if (w.arrived != w.waited + 1)
          fail("waits at the cluster's barrier, has not arrived", w, i, 0);
        w.state = Warp::kAtCluster;
        pass_cluster();
        break;
      case Control::kWarpBarrier:  // of some lanes only: counts for all
        w.tick();
        break;
      default:
        i.run(*this, w, i, lanes);
    }
    return w.state == Warp::kRuns;
  }

  void run(Warp& w, u64 budget) {
    pick(w);
    while (w.state == Warp::kRuns && budget-- > 0) {
      Split* s = &w.splits[w.current];
      const Ins& i = kernel->code.at(s->at);
      const Control control = kernel->control[s->at];
      u32 lanes = s->lanes;
      if (i.guard >= 0) lanes &= i.is_negated ? ~w.pred(i.guard) : w.pred(i.guard);
      if (++steps > kMostSteps) fail("does not end", w, i, 0);
      switch (control) {
        case Control::kNone:
          if (lanes) i.run(*this, w, i, lanes);
          ++s->at;
          break;
        case Control::kBranch:
          if (lanes == s->lanes) {
            s->at = i.target;
          } else {
            ++s->at;
            if (!lanes) break;
            s->lanes &= ~lanes;
            w.splits.push_back({i.target, lanes, false});
            merge(w);
            pick(w);
            continue;
          }
          break;
        case Control::kExit:
          ++s->at;
          if (!lanes) break;
          w.exited |= lanes, s->lanes &= ~lanes;
          if (s->lanes) continue;
          w.splits.erase(w.splits.begin() + w.current);
          if (w.splits.empty()) return finish(w, i);
          for (Split& o : w.splits) o.is_waiting = false;
          pick(w);
          continue;
        case Control::kTrap:
          if (lanes) fail("trap", w, i, 0);
          ++s->at;
          break;
        case Control::kTryWait:
          ++s->at;
          if (!lanes) break;
          i.run(*this, w, i, lanes);
          if (w.pred(i.d[0]) & lanes) break;
          s->is_waiting = s->is_suspended = true;
          pick(w);
          continue;
        default:
          if (const u32 need = needed(w, i, control, lanes, s->lanes); (lanes & need) != need) {
            s->is_waiting = true;
            pick(w);
            continue;
          }
          ++s->at;
          if (lanes && !synchronise(w, i, control, lanes)) return;
      }
      if (w.splits.size() > 1) {
        merge(w);
        if (goes_by_address || (control == Control::kBranch && random() % 4 == 0)) pick(w);
      }
    }
  }

  void start(Warp& w, u32 threads) {
    const Kernel& k = *kernel;
    w.clocks = {}, w.clocks.learn(w.number, 1);
    w.at_arrive[0] = w.at_arrive[1] = w.clocks;
    const u32 count = std::min(32u, threads - 32 * w.id);
    w.all = count == 32 ? ~0u : (1u << count) - 1;
    w.splits.push_back({0, w.all, false});
    w.registers.assign(32 * static_cast<size_t>(k.registers), ~0u);
    w.predicates.assign(k.predicates, 0xa5a5a5a5);
    w.pred(0) = 0, w.pred(1) = ~0u;
    for (const auto& [at, width, value] : k.constants)
      for (int l = 0; l < 32; ++l)
        width == 64 ? put<u64>(w.reg(at), l, value) : put<u32>(w.reg(at), l, value);
    const Cta& c = *w.cta;
    for (const auto& [kind, at] : k.specials)
      for (u32 l = 0; l < 32; ++l) {
        const u32 t = 32 * w.id + l;
        const u32 values[] = {// decode.py, SPECIAL
                              t % block[0],
                              t / block[0] % block[1],
                              t / block[0] / block[1],
                              block[0],
                              block[1],
                              block[2],
                              c.x,
                              c.y,
                              c.z,
                              grid[0],
                              grid[1],
                              grid[2],
                              l,
                              u32(w.id),
                              c.rank,
                              cluster,
                              (1u << l) - 1,
                              1u << l};
        put<u32>(w.reg(at), l, values[kind]);
      }
  }

  void run_cluster(u64 index) {
    this_cluster = next_cluster++;
    const u32 across = grid[0] / cluster, threads = block[0] * block[1] * block[2];
    const u32 x = index % across, y = index / across % grid[1], z = index / across / grid[1];
    const int count = (threads + 31) / 32;
    std::vector<Cta> own_ctas(cluster);
    std::vector<Warp> own_warps(cluster * count);
    ctas.clear(), warps.clear(), sent.clear();
    barriers = 0;
    for (u32 rank = 0; rank < cluster; ++rank) {
      Cta& c = own_ctas[rank];
      c.rank = rank, c.x = x * cluster + rank, c.y = y, c.z = z, c.grain = kernel->grain;
      const size_t grains = shared_bytes / c.grain + 1;
      c.memory.assign(shared_bytes, 0xff);
      c.writes.assign(grains, {}), c.reads.assign(grains * (count + 1), {});
      c.remote.assign(own_warps.size(), 0);
      for (int id = 0; id < count; ++id) {
        Warp& w = own_warps[rank * count + id];
        w.cta = &c, w.id = id, w.number = rank * count + id;
        c.warps.push_back(&w), warps.push_back(&w);
      }
      ctas.push_back(&c);
    }
    for (Warp* w : warps) start(*w, threads);
    for (std::vector<Warp*> ready;;) {
      if (!sent.empty() && random() % 4 == 0)  // bytes arrive late and in any order
        for (u64 n = random() % (sent.size() + 1); n > 0; --n) deliver(*this);
      ready.clear();
      const Warp* waits = nullptr;
      for (Warp* w : warps) {
        if (w->state == Warp::kRuns) ready.push_back(w);
        if (w->state != Warp::kDone) waits = w;
      }
      if (ready.empty() && !sent.empty()) {
        deliver(*this);
        continue;
      }
      if (ready.empty() && waits) fail("deadlock: all warps wait", *waits, next_of(*waits), 0);
      if (ready.empty()) return;
      if (barriers && random() % 8 == 0)  // a wait may end before its phase does
        warps[random() % warps.size()]->wake();
      static constexpr u32 kTurns[] = {8, 64, 64, 64, 512, 512, 512, 1 << 17};
      run(*ready[random() % ready.size()], 1 + random() % kTurns[random() % 8]);
    }
  }
};

}  // namespace
}  // namespace ptx

extern "C" {
using namespace ptx;

// The number of an operation, -1: there is none of that name.
int ptx_op(const char* name) {
  if (ops().empty()) {
    define_arithmetic(), define_memory(), define_tensor_cores();
    define("nop", [](Machine&, Warp&, const Ins&, u32) {});
    for (const auto& [of, control] : kControls) ops().try_emplace(of, nullptr);
  }
  const auto it = ops().find(name);
  return it == ops().end() ? -1 : static_cast<int>(std::distance(ops().begin(), it));
}

void* ptx_kernel(const Record* code, int count, const s32* operands, int operand_count,
                 const char* texts, const Kernel::Constant* constants, int constant_count,
                 const Kernel::Special* specials, int special_count, int registers, int predicates,
                 int grain) {
  auto* k = new Kernel{};
  k->operands.assign(operands, operands + operand_count);
  k->constants.assign(constants, constants + constant_count);
  k->specials.assign(specials, specials + special_count);
  k->registers = registers, k->predicates = predicates, k->grain = grain;
  std::vector<std::pair<string, Op>> by_number(ops().begin(), ops().end());
  for (const Record* r = code; r < code + count; ++r) {
    const auto& [name, op] = by_number.at(r->op);
    const s32* d = k->operands.data() + r->first;
    k->code.push_back({*r, d, d + r->dests, texts, op});
    texts += strlen(texts) + 1;
    const auto it = std::find_if(kControls.begin(), kControls.end(),
                                 [&](const auto& c) { return c.first == name; });
    if (it == kControls.end())
      k->control.push_back(r->flags & (kAligned | kMasked) ? Control::kSync : Control::kNone);
    else
      k->control.push_back(it->second);
  }
  return k;
}

// Returns what is wrong, or "".
const char* ptx_run(const void* kernel, const u32* grid, const u32* block, u32 cluster,
                    u32 shared_bytes, const u8* params, int param_bytes, u64 seed) {
  static string report;
  report.clear();
  Scheduler s;
  s.kernel = static_cast<const Kernel*>(kernel);
  memcpy(s.grid, grid, sizeof s.grid), memcpy(s.block, block, sizeof s.block);
  s.cluster = cluster, s.shared_bytes = shared_bytes;
  s.params.assign(params, params + param_bytes);
  s.random.seed(seed);
  s.is_shuffled = seed != 0, s.goes_by_address = seed % 2 == 0;
  s.first_cluster = next_cluster;
  std::vector<u64> order(static_cast<u64>(grid[0]) / cluster * grid[1] * grid[2]);
  for (u64 n = 0; n < order.size(); ++n) order[n] = n;
  std::shuffle(order.begin(), order.end(), s.random);
  try {
    for (const u64 index : order) s.run_cluster(index);
  } catch (const Fault& fault) {
    report = fault.text;
  }
  return report.c_str();
}
}
