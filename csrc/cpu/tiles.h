// The registers of tiles (AMX) of a processor that has them: 16 rows of 64 bytes. Instructions in
// words: the compilers' intrinsics take no template's argument for a register, and g++ 12's do not
// say that they read memory.

#if defined(STRNN_TILES)
class Tiles {
 public:
  static constexpr int kRows = 16, kTerms = 16;

  // Every register whole, for the thread, as long as this lives.
  Tiles() {
    struct {
      uint8_t palette = 1, unused[15] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows};
    } shape;
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  STRNN_INLINE static void clear() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile, typename E>
  STRNN_INLINE static void load(const E* p, int64_t pitch) {
    const int64_t bytes = pitch * sizeof(E);
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(p), "r"(bytes) : "memory");
  }
  template <int kTile>
  STRNN_INLINE static void store(float* p, int64_t pitch) {
    const int64_t bytes = pitch * sizeof(float);
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(p), "r"(bytes) : "memory");
  }
  // sums += a b.
  template <int kSums, int kA, int kB>
  STRNN_INLINE static void add_product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
  }
};
#else
struct Tiles {
  static constexpr int kRows = 1, kTerms = 1;
};
#endif
