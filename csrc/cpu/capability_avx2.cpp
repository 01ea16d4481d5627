#include "prelude.h"

#if defined(__x86_64__)
STRNN_BEGIN_TARGET("avx2,fma,f16c,bmi,bmi2")

#define STRNN_CAPABILITY avx2
#define STRNN_VEC_BYTES 32
#include "kernels.h"

STRNN_END_TARGET
#endif
