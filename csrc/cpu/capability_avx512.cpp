#include "prelude.h"

#if defined(__x86_64__)
STRNN_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2")

#define STRNN_CAPABILITY avx512
#define STRNN_VEC_BYTES 64
#include "kernels.h"

STRNN_END_TARGET
#endif
