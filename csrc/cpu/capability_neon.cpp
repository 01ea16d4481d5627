#include "prelude.h"

#if defined(__aarch64__)
#define STRNN_CAPABILITY neon
#define STRNN_VEC_BYTES 16
#include "kernels.h"
#endif
