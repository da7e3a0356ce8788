// silu(gate) * up, and the most likely token.
#include <cmath>
#include <type_traits>

#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/pack.cuh"
#include "decoder_check.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kArgmaxThreads = 1024;

__device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

/// Eight elements a thread; the thread behind the last eight takes the rest.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    silu_kernel(const __grid_constant__ SiluMulCudaParams p, bool vectors) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
  const T* gate = static_cast<const T*>(p.gate);
  const T* up = static_cast<const T*>(p.up);
  T* output = static_cast<T*>(p.output);
  if (vectors && first + 8 <= p.count) {
    Pack8<T> a = read8(gate + first);
    const Pack8<T> b = read8(up + first);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      a.values[i] = from_float<T>(silu_times(to_float(a.values[i]), to_float(b.values[i])));
    }
    return write8(output + first, a);
  }
  for (int64_t i = first; i < first + 8 && i < p.count; ++i) {
    output[i] = from_float<T>(silu_times(to_float(gate[i]), to_float(up[i])));
  }
}

struct Best {
  float value;
  int64_t index;  // -1: none yet
};
__device__ __forceinline__ Best better(Best a, Best b) {
  if (b.index < 0) return a;
  if (a.index < 0) return b;
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}
__device__ __forceinline__ Best from_lane(Best a, int offset) {
  return {__shfl_xor_sync(0xffffffffu, a.value, offset),
          __shfl_xor_sync(0xffffffffu, a.index, offset)};
}

/// A block takes a row.
template <typename T>
__global__ void __launch_bounds__(kArgmaxThreads)
    argmax_kernel(const __grid_constant__ ArgmaxCudaParams p, bool vectors) {
  __shared__ Best shared[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const T* row = static_cast<const T*>(p.values) + int64_t{blockIdx.x} * p.cols;
  Best best{0.0f, -1};
  const auto take = [&](float value, int64_t index) {
    if (value > best.value || (best.index < 0 && value == value)) best = {value, index};
  };
  const int64_t packed = vectors ? p.cols / 8 * 8 : 0;
  for (int64_t i = threadIdx.x * 8; i < packed; i += kArgmaxThreads * 8) {
    float x[8];
    to_floats(read8(row + i), x);
#pragma unroll
    for (int j = 0; j < 8; ++j) take(x[j], i + j);
  }
  for (int64_t i = packed + threadIdx.x; i < p.cols; i += kArgmaxThreads) take(to_float(row[i]), i);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) best = better(best, from_lane(best, offset));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = shared[threadIdx.x];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) best = better(best, from_lane(best, offset));
  if (threadIdx.x == 0) p.output[blockIdx.x] = best.index;
}

}  // namespace

Status silu_mul(const SiluMulCudaParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.count == 0) return ok_status();
  const int64_t blocks = ceil_div(p.count, kThreads * 8);
  if (blocks > std::numeric_limits<int32_t>::max()) return unsupported("2^42 elements and more");
  const bool vectors = aligned(p.gate, 16) && aligned(p.up, 16) && aligned(p.output, 16);
  const LaunchShape shape{static_cast<int32_t>(blocks), 1, kThreads, 0, p.programmatic_launch};
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    return launch(silu_kernel<std::remove_pointer_t<decltype(tag)>>, shape, stream, p, vectors);
  });
}

Status argmax(const ArgmaxCudaParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.rows == 0) return ok_status();
  if (p.rows > std::numeric_limits<int32_t>::max()) return unsupported("2^31 rows and more");
  const bool vectors = p.cols * itemsize(p.dtype) % 16 == 0 && aligned(p.values, 16);
  const LaunchShape shape{static_cast<int32_t>(p.rows), 1, kArgmaxThreads, 0,
                          p.programmatic_launch};
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    return launch(argmax_kernel<std::remove_pointer_t<decltype(tag)>>, shape, stream, p, vectors);
  });
}

}  // namespace lowbit::kernels::cuda
