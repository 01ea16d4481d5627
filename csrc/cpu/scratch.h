// Scratch memory of a call or of a worker: one block, aligned to a cache line.
//
// Its layout is written once, as a function that takes its buffers from a Scratch; it runs first on
// an empty Scratch, which only counts, then on one that owns the memory, and then does its work.

class Scratch {
 public:
  // Returns count elements of T; null while counting.
  template <typename T>
  T* take(int64_t count) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * (int64_t)sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return p;
  }

  bool is_counting() const { return !base_; }

  // Runs layout(scratch) on a thread's block.
  template <typename Layout>
  static void with(ThreadBlock& block, const Layout& layout) {
    Scratch counter;
    layout(counter);
    struct AtEnd {
      ThreadBlock& block;
      ~AtEnd() { block.give_back(); }
    } at_end{block};
    Scratch scratch;
    scratch.base_ = block.at_least(counter.used_);
    layout(scratch);
  }

 private:
  static constexpr int64_t kAlign = 64;
  char* base_ = nullptr;
  int64_t used_ = 0;
};
