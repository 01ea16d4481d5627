#include "prelude.h"

#if defined(__x86_64__)
STRNN_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,bmi,bmi2")

#define STRNN_CAPABILITY avx512_bf16
#define STRNN_VEC_BYTES 64
#define STRNN_PAIRS
#define STRNN_BASE kAvx512
#include "kernels.h"

namespace strnn::cpu {
const Capability kAvx512Bf16{"avx512_bf16",
                             avx512_bf16::kVecBytes,
                             avx512_bf16::sweep,
                             avx512_bf16::sweep_backward,
                             avx512_bf16::sparse_projection,
                             avx512_bf16::sparse_projection_backward};
}  // namespace strnn::cpu

STRNN_END_TARGET
#endif
