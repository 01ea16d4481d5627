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
#endif

#include "capability.h"

#define STRNN_INLINE inline __attribute__((always_inline))
#define STRNN_NOINLINE __attribute__((noinline))

namespace strnn::cpu {

// A block of memory that belongs to one thread and only grows.
class ThreadBlock {
 public:
  ThreadBlock() = default;
  ThreadBlock(const ThreadBlock&) = delete;
  ThreadBlock& operator=(const ThreadBlock&) = delete;
  ~ThreadBlock() { std::free(memory_); }

  char* at_least(int64_t bytes) {
    if (bytes > size_ || !memory_) {
      std::free(memory_);
      memory_ = nullptr, size_ = 0;
      const int64_t rounded = (std::max<int64_t>(bytes, 1) + kPage - 1) / kPage * kPage;
      memory_ = static_cast<char*>(std::aligned_alloc(kPage, rounded));
      if (!memory_) throw std::bad_alloc();
      size_ = rounded;
    }
    return memory_;
  }

 private:
  static constexpr int64_t kPage = 4096;
  char* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace strnn::cpu
