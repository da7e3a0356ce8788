// LLM.int8() on single elements of the device: outliers, codes, the epilogue.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/common/absmax.cuh"
#include "cuda/common/cast.cuh"
#include "int8_scalar.h"

namespace lowbit::kernels::cuda {

__device__ __forceinline__ bool outlier(float x, float threshold) {
  return threshold > 0.0f && fabsf(x) >= threshold;
}

/// Nearest integer, ties to even; NaN (an infinite or empty row) gives 0.
__device__ __forceinline__ int round_int8(float x) {
  return x == x ? __float2int_rn(fminf(fmaxf(x, -127.0f), 127.0f)) : 0;
}

/// Largest magnitude of eight; not below any limit when one of them is NaN.
template <typename T>
__device__ __forceinline__ float magnitude8(const Pack8<T>& x) {
  if constexpr (std::is_same_v<T, float>) {
    float largest = 0.0f, nan = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      largest = fmaxf(largest, fabsf(x.values[i]));
      nan = __fmaf_rn(x.values[i], 0.0f, nan);
    }
    return nan == 0.0f ? largest : INFINITY;
  } else {
    const auto* pairs = reinterpret_cast<const typename Pair<T>::Type*>(&x);
    auto largest = __habs2(pairs[0]);
#pragma unroll
    for (int i = 1; i < 4; ++i) largest = __hmax2_nan(largest, __habs2(pairs[i]));
    const float low = to_float(largest.x), high = to_float(largest.y);
    return low == low && high == high ? fmaxf(low, high) : INFINITY;
  }
}

/// Eight codes of numbers within [-127, 127] / scale. A sum with 1.5 * 2^23 is rounded to an
/// integer, ties to even, and holds it in its low byte: two instructions an element, where a
/// conversion runs at a quarter of the speed and wants a clamp.
template <typename T>
__device__ __forceinline__ uint2 plain_codes(const Pack8<T>& x, float scale) {
  constexpr float kMagic = 12582912.0f;
  float values[8];
  to_floats(x, values);
  uint32_t bits[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    bits[j] = __float_as_uint(__fadd_rn(__fmul_rn(values[j], scale), kMagic));
  }
  const auto word = [](uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
  };
  return make_uint2(word(bits[0], bits[1], bits[2], bits[3]),
                    word(bits[4], bits[5], bits[6], bits[7]));
}

/// The same for any scale.
template <typename T>
__device__ __forceinline__ uint2 careful_codes(const Pack8<T>& x, float scale) {
  uint2 words = make_uint2(0, 0);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int code = round_int8(to_float(x.values[j]) * scale);
    (j < 4 ? words.x : words.y) |= (code & 255) << (8 * (j % 4));
  }
  return words;
}

/// What a row's statistic takes from eight elements: the largest magnitude below the threshold goes
/// to `largest`; outliers, infinities and NaN, whose codes are 0, become zeros. The bits of the
/// outliers among the eight. `limit`: the threshold, or infinity when there is none.
template <typename T>
__device__ __forceinline__ uint32_t take_magnitude(Pack8<T>& x, float threshold, float limit,
                                                   float& largest) {
  const float magnitude = magnitude8(x);
  if (magnitude < limit) {
    largest = fmaxf(largest, magnitude);
    return 0;
  }
  uint32_t outliers = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float v = fabsf(to_float(x.values[j]));
    if (v < limit) {
      largest = fmaxf(largest, v);
      continue;
    }
    if (outlier(v, threshold)) {
      outliers |= 1u << j;
    } else {
      largest = fmaxf(largest, v);  // an infinity; max of NaN and a number is the number
    }
    x.values[j] = from_float<T>(0.0f);
  }
  return outliers;
}

/// Codes of a row whose largest magnitude is `stat`: reciprocal first, one more rounding for 127.
__device__ __forceinline__ float device_rowwise_scale(float stat) {
  return fast_reciprocal(stat) * 127.0f;
}

__device__ __forceinline__ float epilogue(int32_t c, float row_stat, float col_stat, float bias) {
  return __fmaf_rn(__fmul_rn(__fmul_rn(static_cast<float>(c), row_stat), col_stat), kInv127Squared,
                   bias);
}

/// A code of a row with this statistic, as the float it stands for.
__device__ __forceinline__ float code_value(int8_t q, float stat) {
  return __fmul_rn(__fmul_rn(static_cast<float>(q), stat), kInv127);
}

/// Elements of a type that is known at run time; used once an output.
__device__ __forceinline__ float load_any(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(p)[i];
  if (dtype == DType::kFloat16) return to_float(static_cast<const __half*>(p)[i]);
  return to_float(static_cast<const __nv_bfloat16*>(p)[i]);
}
__device__ __forceinline__ void store_any(void* p, DType dtype, int64_t i, float x) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(p)[i] = x;
  } else if (dtype == DType::kFloat16) {
    static_cast<__half*>(p)[i] = from_float<__half>(x);
  } else {
    static_cast<__nv_bfloat16*>(p)[i] = from_float<__nv_bfloat16>(x);
  }
}

}  // namespace lowbit::kernels::cuda
