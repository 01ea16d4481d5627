#include "prelude.h"

#if !defined(__aarch64__)  // all of those have what capability_neon.cpp needs
#define STRNN_CAPABILITY baseline
#define STRNN_VEC_BYTES 16
#include "kernels.h"

namespace strnn::cpu {
const Capability kBaseline{"baseline",
                           baseline::kVecBytes,
                           baseline::sweep,
                           baseline::sweep_backward,
                           baseline::sparse_projection,
                           baseline::sparse_projection_backward};
}  // namespace strnn::cpu
#endif
