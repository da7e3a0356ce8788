// LLM.int8() arithmetic on single elements.
#pragma once

#include <algorithm>

#include "lowbit/kernels/int8.h"
#include "scalar.h"

namespace lowbit::kernels {

inline constexpr float kInv127 = std::bit_cast<float>(0x3c010204u);
/// 1 / 127^2 with the bits that the format's implementations use.
inline constexpr float kInv127Squared = std::bit_cast<float>(0x38820610u);

/// Nearest integer, ties to even, within [-127, 127]; NaN gives 0.
static inline int8_t round_to_int8(float x) {
  if (std::isnan(x)) return 0;
  return static_cast<int8_t>(std::nearbyint(std::clamp(x, -127.0f, 127.0f)));
}

/// The threshold as float16, which is the type it was designed in; 0 switches outliers off.
static inline float rounded_threshold(float threshold) {
  return to_float(from_float<Half>(threshold));
}

/// threshold: rounded. NaN is no outlier.
static inline bool is_outlier(float x, float threshold) {
  return threshold > 0.0f && std::fabs(x) >= threshold;
}

/// Scale that takes a row of largest magnitude `stat` to [-127, 127]: reciprocal first, one more
/// rounding for 127.
static inline float rowwise_scale(float stat) { return stat == 0.0f ? 0.0f : 1.0f / stat * 127.0f; }

static inline float dequantize_int8(int8_t q, float stat) {
  return static_cast<float>(q) * stat * kInv127;
}

static inline float dequantize_int32(int32_t c, float row_stat, float col_stat, float bias) {
  return std::fma(static_cast<float>(c) * row_stat * col_stat, kInv127Squared, bias);
}

}  // namespace lowbit::kernels
