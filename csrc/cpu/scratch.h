// Scratch memory that a thread keeps between calls: one block, aligned to a cache line, grown when
// a call needs more.
//
// The layout of a call is written once, as a function that takes its buffers from a Scratch; it
// runs first on an empty Scratch, which only counts, then on one that owns the memory.

class Scratch {
 public:
  // Returns count elements of T; null while counting.
  template <typename T>
  T* take(int64_t count) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * (int64_t)sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return p;
  }

  // Runs layout(scratch) on memory of this thread that is valid until the thread's next call with
  // the same owner.
  template <typename Layout>
  static void with(ThreadBlock& block, const Layout& layout) {
    Scratch counter;
    layout(counter);
    Scratch scratch;
    scratch.base_ = block.at_least(counter.used_);
    layout(scratch);
  }

 private:
  static constexpr int64_t kAlign = 64;
  char* base_ = nullptr;
  int64_t used_ = 0;
};
