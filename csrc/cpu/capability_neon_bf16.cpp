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
#define STRNN_BASE neon
#include "kernels.h"

STRNN_END_TARGET
#endif
