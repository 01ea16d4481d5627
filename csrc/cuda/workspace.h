// Scratch in global memory, taken from one allocation of the caller. A layout is run twice: over
// nothing, to learn its size, and over the allocation.
#pragma once
#include <cstdint>

#include "planner.h"

namespace strnn::cuda {

class Workspace {
 public:
  Workspace(void* base, Dtype dtype) : base_(static_cast<unsigned char*>(base)), dtype_(dtype) {}

  // Of the storage type, of the type that is computed in, of float.
  void* take(int64_t count) { return bytes(count * storage_bytes(dtype_)); }
  void* take_computed(int64_t count) { return bytes(count * (dtype_ == Dtype::kFloat64 ? 8 : 4)); }
  float* take_floats(int64_t count) { return static_cast<float*>(bytes(count * 4)); }
  // Null if there are none.
  void* bytes(int64_t count) {
    const int64_t at = size_;
    size_ += (count + 255) / 256 * 256;
    return base_ && count ? base_ + at : nullptr;
  }
  int64_t size() const { return size_; }

 private:
  unsigned char* base_;
  Dtype dtype_;
  int64_t size_ = 0;
};

}  // namespace strnn::cuda
