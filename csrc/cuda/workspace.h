// Scratch in global memory, taken from one allocation of the caller. A layout is run twice: over
// nothing, to learn its size, and over the allocation.
#pragma once
#include <cstdint>

namespace strnn::cuda {

class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t at = size_;
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return base_ && count ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t size() const { return size_; }

 private:
  unsigned char* base_;
  int64_t size_ = 0;
};

}  // namespace strnn::cuda
