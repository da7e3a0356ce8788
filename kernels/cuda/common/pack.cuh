// Eight elements at a time where they are read again soon: without cast.cuh's streaming hint.
#pragma once

#include "cuda/common/cast.cuh"

namespace lowbit::kernels::cuda {

template <typename T>
__device__ __forceinline__ Pack8<T> read8(const T* p) {
  Pack8<T> result;
  auto* out = reinterpret_cast<uint4*>(&result);
  const auto* in = reinterpret_cast<const uint4*>(p);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Pack8<T>) / 16); ++i) out[i] = in[i];
  return result;
}

template <typename T>
__device__ __forceinline__ void write8(T* p, const Pack8<T>& pack) {
  const auto* in = reinterpret_cast<const uint4*>(&pack);
  auto* out = reinterpret_cast<uint4*>(p);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Pack8<T>) / 16); ++i) out[i] = in[i];
}

/// Sum over the threads of the block, in all of them, in a fixed order. `scratch`: 32 floats of
/// shared memory.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

}  // namespace lowbit::kernels::cuda
