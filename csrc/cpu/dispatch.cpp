// The choice of an instruction set, once per process.
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "capability.h"

namespace strnn::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  // clang 14 does not know f16c to __builtin_cpu_supports.
  unsigned eax, ebx, ecx, edx;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) &&
         (ecx & bit_F16C);
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
// Asks the system for the tiles' state, which makes the process's signal frames larger.
bool has_avx512_amx() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1 << 22, kTile = 1 << 24;
  constexpr long kAskFor = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  return has_avx512_bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kBf16) &&
         (edx & kTile) && syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
#else
  return false;
#endif
}
#elif defined(__aarch64__)
bool has_neon_bf16() {
#if defined(__linux__)
  return getauxval(AT_HWCAP2) >> 14 & 1;  // HWCAP2_BF16, which older headers do not name
#else
  return false;
#endif
}
#endif
bool has_it_always() { return true; }

struct Candidate {
  const Capability& capability;
  bool (*is_supported)();
  bool is_opt_in = false;  // rounds more than torch's users expect: taken only by its name
};

// The best first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {avx512_amx::kCapability, has_avx512_amx, true},
    {avx512_bf16::kCapability, has_avx512_bf16, true},
    {avx512::kCapability, has_avx512},
    {avx2::kCapability, has_avx2},
#endif
#if defined(__aarch64__)
    {neon_bf16::kCapability, has_neon_bf16, true},
    {neon::kCapability, has_it_always},
#else
    {baseline::kCapability, has_it_always},
#endif
};

const Capability& choose() {
  const char* forced = std::getenv("STRNN_CPU_CAPABILITY");
  const std::string name = forced ? forced : "";
  for (const Candidate& c : kCandidates) {
    if (name.empty() ? c.is_opt_in : name != c.capability.name) continue;
    if (c.is_supported()) return c.capability;
    if (!name.empty())
      throw std::runtime_error("STRNN_CPU_CAPABILITY=" + name + ": this machine does not have it");
  }
  throw std::runtime_error("STRNN_CPU_CAPABILITY must be one of " + capabilities() + ", got " +
                           name);
}

}  // namespace

const Capability& capability() {
  static const Capability& chosen = choose();
  return chosen;
}

std::string capabilities() {
  std::string names;
  for (const Candidate& c : kCandidates)
    names += (names.empty() ? "" : ", ") + std::string(c.capability.name);
  return names;
}

}  // namespace strnn::cpu
