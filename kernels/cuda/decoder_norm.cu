// RMS norm with the residual sum in front of it. A block takes a row.
#include <algorithm>
#include <type_traits>

#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/pack.cuh"
#include "decoder_check.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kMostThreads = 512;

/// hidden + delta as it is stored.
template <typename T>
__device__ __forceinline__ T residual(T hidden, T delta) {
  return from_float<T>(to_float(hidden) + to_float(delta));
}

template <typename T>
__device__ __forceinline__ T normalized(T hidden, float scale, T weight) {
  const T x = from_float<T>(to_float(hidden) * scale);
  return from_float<T>(to_float(x) * to_float(weight));
}

/// The row stays in registers: kPacks * 8 elements a thread.
template <typename T, int kPacks>
__global__ void __launch_bounds__(kMostThreads)
    norm_kernel(const __grid_constant__ RmsNormCudaParams p) {
  __shared__ float scratch[32];
  allow_next_kernel();
  const int cols = static_cast<int>(p.cols);
  const int64_t row = int64_t{blockIdx.x} * cols;
  T* hidden = static_cast<T*>(p.hidden) + row;
  Pack8<T> weights[kPacks], x[kPacks];
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {  // nobody writes the weights: before the wait
    const int at = (i * blockDim.x + threadIdx.x) * 8;
    if (at < cols) weights[i] = read8(static_cast<const T*>(p.weight) + at);
  }
  wait_for_previous_kernel();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int at = (i * blockDim.x + threadIdx.x) * 8;
    if (at >= cols) continue;
    x[i] = read8(hidden + at);
    if (p.delta != nullptr) {
      const Pack8<T> delta = read8(static_cast<const T*>(p.delta) + row + at);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i].values[j] = residual(x[i].values[j], delta.values[j]);
      write8(hidden + at, x[i]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = to_float(x[i].values[j]);
      sum = fmaf(value, value, sum);
    }
  }
  const float mean = block_sum(sum, scratch) / static_cast<float>(cols);
  const float scale = rsqrtf(mean + p.eps);
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int at = (i * blockDim.x + threadIdx.x) * 8;
    if (at >= cols) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x[i].values[j] = normalized(x[i].values[j], scale, weights[i].values[j]);
    }
    write8(static_cast<T*>(p.output) + row + at, x[i]);
  }
}

/// Any width and alignment: the row is read twice.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    norm_any_kernel(const __grid_constant__ RmsNormCudaParams p) {
  __shared__ float scratch[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = int64_t{blockIdx.x} * p.cols;
  T* hidden = static_cast<T*>(p.hidden) + row;
  const T* weight = static_cast<const T*>(p.weight);
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    if (p.delta != nullptr) {
      hidden[i] = residual(hidden[i], static_cast<const T*>(p.delta)[row + i]);
    }
    const float value = to_float(hidden[i]);
    sum = fmaf(value, value, sum);
  }
  const float mean = block_sum(sum, scratch) / static_cast<float>(p.cols);
  const float scale = rsqrtf(mean + p.eps);
  for (int64_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    static_cast<T*>(p.output)[row + i] = normalized(hidden[i], scale, weight[i]);
  }
}

}  // namespace

Status rms_norm(const RmsNormCudaParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.rows == 0 || p.cols == 0) return ok_status();
  if (p.rows > std::numeric_limits<int32_t>::max()) return unsupported("2^31 rows and more");
  const bool vectors = p.cols % 8 == 0 && aligned(p.hidden, 16) && aligned(p.delta, 16) &&
                       aligned(p.weight, 16) && aligned(p.output, 16);
  const int64_t packs = ceil_div(p.cols, 8);
  const int threads = static_cast<int>(std::min<int64_t>(ceil_div(packs, 32) * 32, kMostThreads));
  const LaunchShape shape{static_cast<int32_t>(p.rows), 1, threads, 0, p.programmatic_launch};
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const int64_t turns = ceil_div(packs, threads);
    if (!vectors || turns > 4) return launch(norm_any_kernel<T>, shape, stream, p);
    if (turns == 1) return launch(norm_kernel<T, 1>, shape, stream, p);
    if (turns == 2) return launch(norm_kernel<T, 2>, shape, stream, p);
    return launch(norm_kernel<T, 4>, shape, stream, p);
  });
}

}  // namespace lowbit::kernels::cuda
