#include "prelude.h"
#define STRNN_CAPABILITY baseline
#include "kernels.h"

namespace strnn::cpu {
const Capability kBaseline{"baseline", baseline::kVecBytes, baseline::sweep, baseline::sweep_backward, baseline::sparse_projection, baseline::sparse_projection_backward};
}
