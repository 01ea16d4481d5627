#include "prelude.h"

#if defined(__aarch64__)
#define STRNN_CAPABILITY neon
#define STRNN_VEC_BYTES 16
#include "kernels.h"

namespace strnn::cpu {
const Capability kNeon{"neon",
                       neon::kVecBytes,
                       neon::sweep,
                       neon::sweep_backward,
                       neon::sparse_projection,
                       neon::sparse_projection_backward};
}  // namespace strnn::cpu
#endif
