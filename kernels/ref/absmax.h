// Largest magnitude of a block.
#pragma once

#include "scalar.h"

namespace lowbit::kernels::ref {

/// NaN is ignored, subnormals count as zero. A short block counts as completed with zeros: only a
/// full block of nothing but NaN shows the start value -FLT_MAX.
template <typename T>
static float block_absmax(const T* input, int64_t count, bool full) {
  float largest = full ? -FLT_MAX : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(to_float(input[i]));
    if (magnitude > largest) largest = magnitude;
  }
  return largest < FLT_MIN && largest > -FLT_MAX ? 0.0f : largest;
}

}  // namespace lowbit::kernels::ref
