// A small kernel of clusters for test_emulator.py: every CTA gives its values to the next one by
// store_cluster and reads those of the one after by a load from distributed shared memory. `bug`
// plants one error.
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/ptx.cuh"

namespace {

using namespace strnn::cuda;

enum Bug {
  kNone,
  kNoFirstBarrier,
  kNoBarrierBeforeRead,
  kNoBarrierBeforeExit,
  kNoBarrierBeforeRewrite,
  kNoSuchRank,
  kPastTheEnd,
  kArrivesTwice,
  kWaitsOnly,
  kNeverWaits,
  kOneThreadMissing,
  kReadBetweenArriveAndWait,
};

struct Args {
  int bug;
  int* out;  // [CTA][thread]: own value + the previous CTA's + the next CTA's
};

void kernel(const Args& a) {
  STRNN_DYNAMIC_SHARED(raw);
  Carver carver{raw};
  uint2* given = carver.take<uint2>(blockDim.x);
  uint2* own = carver.take<uint2>(blockDim.x);
  const unsigned rank = cluster_rank(), size = cluster_size(), t = threadIdx.x;
  const unsigned value = 100 * blockIdx.x + t;
  const auto barrier = [](bool is_there) {
    if (is_there) cluster_arrive(), cluster_wait();
  };
  own[t] = {value, value};
  barrier(a.bug != kNoFirstBarrier);
  if (a.bug == kOneThreadMissing && t == 3) return;
  const unsigned to = a.bug == kNoSuchRank ? rank + 1 : (rank + 1) % size;
  const unsigned at = a.bug == kPastTheEnd ? t + 1 : t;
  store_cluster(given + at, to, {value, value});
  const auto* next = static_cast<const uint2*>(emu::cluster_map(own + t, (rank + 1) % size));
  if (a.bug == kReadBetweenArriveAndWait) {
    cluster_arrive();
    a.out[blockIdx.x * blockDim.x + t] = static_cast<int>(value + given[t].x + next->x);
    cluster_wait();
    return;
  }
  barrier(a.bug != kNoBarrierBeforeRead);
  const unsigned sum = value + given[t].x + next->x;
  if (a.bug == kArrivesTwice) cluster_arrive(), cluster_arrive();
  if (a.bug == kWaitsOnly) cluster_wait();
  barrier(a.bug != kNoBarrierBeforeExit && a.bug != kNoBarrierBeforeRewrite);
  if (a.bug == kNoBarrierBeforeRewrite) {
    own[t] = {0, 0};
    barrier(true);
  }
  a.out[blockIdx.x * blockDim.x + t] = static_cast<int>(sum);
  if (a.bug == kNeverWaits) cluster_arrive();
}

}  // namespace

// Findings of a launch; see emu_report.
extern "C" int run_cluster(int bug, int blocks, int threads, int cluster, int* out) {
  const Args args{bug, out};
  const size_t bytes = 2 * ((threads * sizeof(uint2) + 127) / 128 * 128);
  return emu::launch(
      emu::Launch{dim3(blocks), dim3(threads), bytes, static_cast<unsigned>(cluster)},
      [=] { kernel(args); });
}

// One product of a warp: a (16, 16) and b (8, 16), the summed index last, give out (16, 8).
template <typename S>
void multiply(const S* a, const S* b, float* out) {
  STRNN_DYNAMIC_SHARED(raw);
  Carver carver{raw};
  S* tile = carver.take<S>(16 * 16);
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, q = lane % 4;
  for (int e = lane; e < 16 * 16; e += 32) tile[e] = a[e];
  __syncwarp();
  // The matrices in the order of the registers of an operand a.
  uint32_t left[4], right[2];
  strnn::cuda::ldmatrix_x4(left, tile + (lane % 8 + lane / 8 % 2 * 8) * 16 + lane / 16 * 8);
  for (int i = 0; i < 2; ++i) std::memcpy(&right[i], b + g * 16 + 2 * q + 8 * i, 4);
  float d[4] = {1, 1, 1, 1};
  if (std::is_same_v<S, __half>)
    strnn::cuda::mma_f16(d, left, right[0], right[1], d);
  else
    strnn::cuda::mma_bf16(d, left, right[0], right[1], d);
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];
}

extern "C" int run_multiply(int is_bfloat16, const void* a, const void* b, float* out) {
  return emu::launch(emu::Launch{dim3(1), dim3(32), 512}, [=] {
    if (is_bfloat16)
      multiply(static_cast<const __nv_bfloat16*>(a), static_cast<const __nv_bfloat16*>(b), out);
    else
      multiply(static_cast<const __half*>(a), static_cast<const __half*>(b), out);
  });
}
