// Micro-measurements behind the floors of the kernels, printed as one JSON object on standard
// output:
//     nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a bench/micro.cu -o micro && ./micro
// Cycles are those of one thread's clock64, per repetition, after a warm-up; each is the best of
// several runs. Where nothing can be measured (no cluster on this architecture) a value is null.
// Exit status 1: no GPU, or a call failed.
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdio>
#include <vector>

namespace cg = cooperative_groups;

#define CHECK(call)                                                                           \
  do {                                                                                        \
    cudaError_t error = (call);                                                               \
    if (error != cudaSuccess) {                                                               \
      std::fprintf(stderr, "%s: %s (line %d)\n", #call, cudaGetErrorString(error), __LINE__); \
      std::exit(1);                                                                           \
    }                                                                                         \
  } while (0)

constexpr int kSteps = 256;  // repetitions inside a kernel
constexpr int kRuns = 9;

// Cycles since `start`, once `value` is known: no instruction that it needs may move behind the
// clock.
__device__ void stop(long long start, float value, long long* cycles, float* sink) {
  if (value == 12345.678f) *sink = value;
  __syncthreads();
  long long now = clock64();
  if (threadIdx.x == 0 && blockIdx.x == 0) *cycles = now - start;
}

// The serial chain of one step of a recurrence of kWidth states, a block to a row, a thread to a
// state: the states are read from shared memory, kParts sums of products run side by side, then
// tanh, store, barrier.
template <int kWidth, int kParts>
__global__ void step_chain(long long* cycles, float* sink) {
  __shared__ float h[2][kWidth];
  float w[kWidth];
  for (int k = 0; k < kWidth; ++k) w[k] = 0.01f * (k + threadIdx.x % 3);
  h[0][threadIdx.x] = threadIdx.x;
  __syncthreads();
  long long start = clock64();
  for (int step = 0; step < kSteps; ++step) {
    float sum[kParts] = {};
#pragma unroll
    for (int k = 0; k < kWidth; k += 4) {
      float4 v = *reinterpret_cast<const float4*>(&h[step & 1][k]);
      sum[(k / 4) % kParts] += v.x * w[k] + v.y * w[k + 1] + v.z * w[k + 2] + v.w * w[k + 3];
    }
    float total = 0;
    for (int p = 0; p < kParts; ++p) total += sum[p];
    float e = __expf(-2 * fabsf(total));
    float t = __fdividef(1 - e, 1 + e);
    h[~step & 1][threadIdx.x] = total < 0 ? -t : t;
    __syncthreads();
  }
  stop(start, h[0][threadIdx.x], cycles, sink);
}

// Dependent chains of one instruction.
template <int kWhat>
__global__ void instruction_chain(long long* cycles, float* sink, float seed) {
  __shared__ int next[32];
  next[threadIdx.x % 32] = (threadIdx.x + 1) % 32;
  __syncthreads();
  float value = seed;
  int at = threadIdx.x;
  long long start = clock64();
#pragma unroll 16
  for (int step = 0; step < kSteps; ++step) {
    if (kWhat == 0) value = value * seed + seed;  // fused multiply-add
    if (kWhat == 1) asm volatile("tanh.approx.f32 %0, %0;" : "+f"(value));
    if (kWhat == 2) asm volatile("ex2.approx.f32 %0, %0;" : "+f"(value));
    if (kWhat == 3) at = next[at];  // a read of shared memory that the next one waits for
    if (kWhat == 4) __syncthreads();
  }
  stop(start, value + at, cycles, sink);
}

// A number written to global memory by one thread, a barrier of the block, and read by another:
// what a frontier in L2 costs.
__global__ void global_exchange(long long* cycles, float* sink, float* memory) {
  float value = threadIdx.x;
  long long start = clock64();
  for (int step = 0; step < kSteps; ++step) {
    __stcg(memory + (step & 1) * blockDim.x + threadIdx.x, value);
    __syncthreads();
    value = __ldcg(memory + (step & 1) * blockDim.x + (threadIdx.x + 33) % blockDim.x) + 1;
  }
  stop(start, value, cycles, sink);
}

// kWrites: each block also writes to its neighbour's shared memory, which the neighbour reads after
// the cluster's barrier.
template <bool kWrites>
__global__ void cluster_exchange(long long* cycles, float* sink) {
#if __CUDA_ARCH__ >= 900
  __shared__ float box[2][256];
  auto cluster = cg::this_cluster();
  unsigned peer = (cluster.block_rank() + 1) % cluster.num_blocks();
  float value = threadIdx.x;
  cluster.sync();
  long long start = clock64();
  for (int step = 0; step < kSteps; ++step) {
    if (kWrites) cluster.map_shared_rank(&box[step & 1][0], peer)[threadIdx.x] = value;
    cluster.sync();
    if (kWrites) value = box[step & 1][(threadIdx.x + 33) % blockDim.x] + 1;
  }
  stop(start, value, cycles, sink);
  cluster.sync();
#endif
}

__global__ void nothing() {}

__global__ void read_all(const float4* from, size_t count, float* sink) {
  float sum = 0;
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
       i += size_t(gridDim.x) * blockDim.x) {
    float4 v = __ldcs(from + i);
    sum += v.x + v.y + v.z + v.w;
  }
  if (sum == 12345.678f) *sink = sum;
}

struct Device {
  long long* cycles;
  float* sink;
  float* memory;
};

// The best of several runs, in cycles for one repetition.
template <class Launch>
double best_cycles(const Device& device, Launch launch) {
  double best = 1e30;
  for (int run = 0; run < kRuns; ++run) {
    launch();
    CHECK(cudaGetLastError());
    long long cycles = 0;
    CHECK(cudaMemcpy(&cycles, device.cycles, sizeof cycles, cudaMemcpyDeviceToHost));
    best = std::min(best, double(cycles) / kSteps);
  }
  return best;
}

template <class Launch>
double best_seconds(int repeats, Launch launch) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  float best = 1e30f;
  for (int run = 0; run < kRuns; ++run) {
    CHECK(cudaEventRecord(start));
    for (int i = 0; i < repeats; ++i) launch();
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    best = std::min(best, ms / repeats);
  }
  return best * 1e-3;
}

template <class... Arguments>
void launch_cluster(void (*kernel)(Arguments...), int blocks, int threads, Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.attrs = &attribute;
  config.numAttrs = 1;
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

void print(const char* name, double value, bool is_known = true) {
  if (is_known) {
    std::printf(" \"%s\": %.4g,\n", name, value);
  } else {
    std::printf(" \"%s\": null,\n", name);
  }
}

// Seconds per launch when a graph of `count` of them is replayed.
double graph_seconds(int count) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < count; ++i) nothing<<<1, 32, 0, stream>>>();
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&replay, graph, 0));
  CHECK(cudaGraphLaunch(replay, stream));
  CHECK(cudaStreamSynchronize(stream));
  return best_seconds(8, [&] { CHECK(cudaGraphLaunch(replay, cudaStreamLegacy)); }) / count;
}

int main() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::fprintf(stderr, "no GPU\n");
    return 1;
  }
  cudaDeviceProp gpu;
  CHECK(cudaGetDeviceProperties(&gpu, 0));
  Device device;
  CHECK(cudaMalloc(&device.cycles, sizeof(long long)));
  CHECK(cudaMalloc(&device.sink, sizeof(float)));
  const size_t bytes = size_t(1) << 30;
  CHECK(cudaMalloc(&device.memory, bytes));
  CHECK(cudaMemset(device.memory, 0, bytes));
  long long* c = device.cycles;
  float* s = device.sink;
  float* m = device.memory;
  int mhz = 0;
  CHECK(cudaDeviceGetAttribute(&mhz, cudaDevAttrClockRate, 0));

  std::printf("{\n \"gpu\": \"%s\",\n", gpu.name);
  print("sm_clock_max_mhz", mhz / 1e3);
  print("fma_cycles", best_cycles(device, [&] { instruction_chain<0><<<1, 32>>>(c, s, 0.5f); }));
  print("tanh_approx_cycles",
        best_cycles(device, [&] { instruction_chain<1><<<1, 32>>>(c, s, 0.5f); }));
  print("ex2_cycles", best_cycles(device, [&] { instruction_chain<2><<<1, 32>>>(c, s, 0.5f); }));
  print("shared_read_cycles",
        best_cycles(device, [&] { instruction_chain<3><<<1, 32>>>(c, s, 0.5f); }));
  print("barrier_128_threads_cycles",
        best_cycles(device, [&] { instruction_chain<4><<<1, 128>>>(c, s, 0.5f); }));
  print("barrier_512_threads_cycles",
        best_cycles(device, [&] { instruction_chain<4><<<1, 512>>>(c, s, 0.5f); }));
  print("step_32_cycles", best_cycles(device, [&] { step_chain<32, 1><<<1, 32>>>(c, s); }));
  print("step_32_in_4_parts_cycles",
        best_cycles(device, [&] { step_chain<32, 4><<<1, 32>>>(c, s); }));
  print("step_64_in_4_parts_cycles",
        best_cycles(device, [&] { step_chain<64, 4><<<1, 64>>>(c, s); }));
  print("step_128_cycles", best_cycles(device, [&] { step_chain<128, 1><<<1, 128>>>(c, s); }));
  print("step_128_in_4_parts_cycles",
        best_cycles(device, [&] { step_chain<128, 4><<<1, 128>>>(c, s); }));
  print("global_exchange_128_threads_cycles",
        best_cycles(device, [&] { global_exchange<<<1, 128>>>(c, s, m); }));
  for (int blocks : {2, 4, 8}) {
    char name[64];
    std::snprintf(name, sizeof name, "cluster_barrier_%d_cycles", blocks);
    const bool has = gpu.major >= 9;
    print(name,
          has ? best_cycles(device,
                            [&] { launch_cluster(cluster_exchange<false>, blocks, 256, c, s); })
              : 0,
          has);
    std::snprintf(name, sizeof name, "cluster_exchange_%d_cycles", blocks);
    print(name,
          has ? best_cycles(device,
                            [&] { launch_cluster(cluster_exchange<true>, blocks, 256, c, s); })
              : 0,
          has);
  }
  print("launch_in_stream_us", best_seconds(1000, [] { nothing<<<1, 32>>>(); }) * 1e6);
  print("launch_in_graph_us", graph_seconds(200) * 1e6);
  const int blocks = gpu.multiProcessorCount * 8;
  auto rate = [&](size_t size, int repeats) {
    const auto* from = reinterpret_cast<const float4*>(m);
    return size / best_seconds(repeats, [&] { read_all<<<blocks, 512>>>(from, size / 16, s); }) /
           1e9;
  };
  print("memory_read_gbs", rate(bytes, 4));
  print("l2_read_gbs_16mb", rate(size_t(16) << 20, 100));
  print("memory_copy_gbs",
        bytes / best_seconds(4, [&] {
          CHECK(cudaMemcpyAsync(m, m + bytes / 8, bytes / 2, cudaMemcpyDeviceToDevice));
        }) / 1e9);
  std::printf(" \"steps\": %d\n}\n", kSteps);
  return 0;
}
