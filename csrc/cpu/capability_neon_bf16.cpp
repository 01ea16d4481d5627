#include "prelude.h"

#if defined(__aarch64__)
#if defined(__clang__)
STRNN_BEGIN_TARGET("bf16")
#else
STRNN_BEGIN_TARGET("+bf16")
#endif

#define STRNN_CAPABILITY neon_bf16
#define STRNN_VEC_BYTES 16
#define STRNN_PAIRS
#define STRNN_BASE kNeon
#include "kernels.h"

namespace strnn::cpu {
const Capability kNeonBf16{"neon_bf16",
                           neon_bf16::kVecBytes,
                           neon_bf16::sweep,
                           neon_bf16::sweep_backward,
                           neon_bf16::sparse_projection,
                           neon_bf16::sparse_projection_backward};
}  // namespace strnn::cpu

STRNN_END_TARGET
#endif
