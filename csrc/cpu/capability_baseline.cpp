#include "prelude.h"

#if !defined(__aarch64__)  // all of those have what capability_neon.cpp needs
#define STRNN_CAPABILITY baseline
#define STRNN_VEC_BYTES 16
#include "kernels.h"
#endif
