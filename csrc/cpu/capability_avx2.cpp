#include "prelude.h"

#if defined(__x86_64__)
STRNN_BEGIN_TARGET("avx2,fma,f16c,bmi,bmi2")

#define STRNN_CAPABILITY avx2
#define STRNN_VEC_BYTES 32
#include "kernels.h"

namespace strnn::cpu {
const Capability kAvx2{"avx2",
                       avx2::kVecBytes,
                       avx2::sweep,
                       avx2::sweep_backward,
                       avx2::sparse_projection,
                       avx2::sparse_projection_backward};
}  // namespace strnn::cpu

STRNN_END_TARGET
#endif
