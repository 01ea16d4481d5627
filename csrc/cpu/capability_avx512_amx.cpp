#include "prelude.h"

#if defined(__x86_64__)
STRNN_BEGIN_TARGET(
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c,bmi,bmi2")

#define STRNN_CAPABILITY avx512_amx
#define STRNN_VEC_BYTES 64
#define STRNN_PAIRS
#define STRNN_TILES
#define STRNN_BASE avx512
#include "kernels.h"

STRNN_END_TARGET
#endif
