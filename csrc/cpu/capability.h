// One entry point per operation for each instruction set. capability_<name>.cpp compiles the
// kernels once for that set; dispatch.cpp chooses among them at run time. No kernel is compiled for
// the machine that builds the package.
#pragma once
#include <string>

#include "../common/dtype.h"
#include "../common/sparse_projection.h"
#include "../common/sweep.h"

namespace strnn::cpu {

// Runs body(worker) for worker = 0 .. num_workers - 1, in any order, on the threads of the
// framework.
using ParallelFor = void (*)(int64_t num_workers, void (*body)(int64_t worker, void* context),
                             void* context);

struct Capability {
  const char* name;
  int vector_bytes;
  void (*sweep)(const SweepForward&, Dtype, int num_threads, ParallelFor);
  void (*sweep_backward)(const SweepBackward&, Dtype, int num_threads, ParallelFor);
  void (*sparse_projection)(const SparseProjection&, Dtype, int num_threads, ParallelFor);
  void (*sparse_projection_backward)(const SparseProjectionBackward&, Dtype, int num_threads,
                                     ParallelFor);
};

// Of each set, in its namespace; which are compiled depends on the processor.
#define STRNN_DECLARE(name)            \
  namespace name {                     \
  extern const Capability kCapability; \
  }
STRNN_DECLARE(baseline)
STRNN_DECLARE(avx2)
STRNN_DECLARE(avx512)
STRNN_DECLARE(avx512_bf16)
STRNN_DECLARE(avx512_amx)
STRNN_DECLARE(neon)
STRNN_DECLARE(neon_bf16)
#undef STRNN_DECLARE

// The best set that this machine has and that changes no promise, or the one that
// STRNN_CPU_CAPABILITY names. Throws std::runtime_error if the name is unknown or the machine lacks
// it.
const Capability& capability();

// The names of all that were compiled, the widest first: "avx512, avx2, baseline".
std::string capabilities();

}  // namespace strnn::cpu
