// Element types on the device: eight elements at a time, through 16-byte accesses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "lowbit/kernels/types.h"

namespace lowbit::kernels::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// Two elements of a word; the last argument names their type.
__device__ __forceinline__ void unpack(uint32_t word, float& low, float& high, __nv_bfloat16) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void unpack(uint32_t word, float& low, float& high, __half) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
  low = both.x;
  high = both.y;
}

/// Eight consecutive elements as they lie in memory: one 16-byte access (two for float).
template <typename T>
struct alignas(16) Pack8 {
  T values[8];
};

/// All eight as float32. The halves of a word cost one instruction each for bfloat16.
template <typename T>
__device__ __forceinline__ void to_floats(const Pack8<T>& pack, float (&out)[8]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = to_float(pack.values[i]);
  } else {
    const auto* words = reinterpret_cast<const uint32_t*>(&pack);
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack(words[i], out[2 * i], out[2 * i + 1], T());
  }
}

/// Streaming load: the data is read once.
template <typename T>
__device__ __forceinline__ Pack8<T> load8(const T* p) {
  Pack8<T> result;
  auto* out = reinterpret_cast<uint4*>(&result);
  const auto* in = reinterpret_cast<const uint4*>(p);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Pack8<T>) / 16); ++i) out[i] = __ldcs(in + i);
  return result;
}

template <typename T>
__device__ __forceinline__ void store8(T* p, const Pack8<T>& pack) {
  const auto* in = reinterpret_cast<const uint4*>(&pack);
  auto* out = reinterpret_cast<uint4*>(p);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Pack8<T>) / 16); ++i) __stcs(out + i, in[i]);
}

/// The first `valid` of eight elements, zeros behind them.
template <typename T>
__device__ __forceinline__ Pack8<T> load8_tail(const T* p, int64_t valid) {
  Pack8<T> result;
#pragma unroll
  for (int i = 0; i < 8; ++i) result.values[i] = i < valid ? p[i] : from_float<T>(0.0f);
  return result;
}

/// Calls f with a null T* for the element type.
template <typename F>
Status visit_device_dtype(DType dtype, F&& f) noexcept {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat16:
      return f(static_cast<__half*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
  }
  return invalid_argument("unknown element type");
}

/// rcp.approx.ftz: the reciprocal that the format's GPU implementations multiply with; not IEEE.
/// 0 for 0, so that a block of zeros gets the code of zero.
__device__ __forceinline__ float fast_reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return x == 0.0f ? 0.0f : r;
}

/// max of number and NaN is the number; subnormals count as zero (the file is compiled with
/// -ftz=true).
template <int kLanes>
__device__ __forceinline__ float group_max(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  return x;
}

}  // namespace lowbit::kernels::cuda
