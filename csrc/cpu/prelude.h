// Included by each capability_<name>.cpp before it sets the compiler's target: the standard library
// and everything that does not depend on the instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "capability.h"

// Functions from STRNN_BEGIN_TARGET to STRNN_END_TARGET, the end of the file, are compiled for
// these features of the processor. g++ instantiates templates after the last line and must not
// leave the target before.
#define STRNN_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define STRNN_QUOTE(x) #x
#define STRNN_NAME(x) STRNN_QUOTE(x)  // what the macro x stands for, as text
#if defined(__clang__)
#define STRNN_BEGIN_TARGET(features) \
  STRNN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define STRNN_END_TARGET STRNN_PRAGMA(clang attribute pop)
#else
#define STRNN_BEGIN_TARGET(features) STRNN_PRAGMA(GCC target(features))
#define STRNN_END_TARGET
#endif

#define STRNN_INLINE inline __attribute__((always_inline))
#define STRNN_NOINLINE __attribute__((noinline))

namespace strnn::cpu {

// A block of memory that belongs to one thread, which keeps it between calls if it is not large.
class ThreadBlock {
 public:
  ThreadBlock() = default;
  ThreadBlock(const ThreadBlock&) = delete;
  ThreadBlock& operator=(const ThreadBlock&) = delete;
  ~ThreadBlock() { release(); }

  char* at_least(int64_t bytes) {
    if (bytes > size_ || !memory_) {
      release();
      memory_ = static_cast<char*>(::operator new(bytes, kPage));
      size_ = bytes;
    }
    return memory_;
  }

  // At the end of a call.
  void give_back() {
    if (size_ > kKept) release();
  }

 private:
  static constexpr std::align_val_t kPage{4096};
  static constexpr int64_t kKept = 16 << 20;

  void release() {
    ::operator delete(memory_, kPage);
    memory_ = nullptr, size_ = 0;
  }

  char* memory_ = nullptr;
  int64_t size_ = 0;
};

// Those of a thread: for the call that it makes, and for its share of the work of any call.
inline ThreadBlock& call_block() {
  static thread_local ThreadBlock block;
  return block;
}
inline ThreadBlock& worker_block() {
  static thread_local ThreadBlock block;
  return block;
}

}  // namespace strnn::cpu
