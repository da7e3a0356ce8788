// float32 arithmetic in which subnormal numbers do not exist, whatever the mode of the processor:
// subnormal operands and results are zeros of their sign.
#pragma once

#include "scalar.h"

namespace lowbit::kernels::ref {

/// A result, rounded once from double (which holds it exactly, or with more than twice the
/// precision). As in multiply_flushed() it is subnormal when it is so after rounding to 24 bits.
static inline float round_flushed(double x) {
  constexpr double kTiny = 0x1p-126 - 0x1p-151;
  return std::fabs(x) < kTiny ? static_cast<float>(std::copysign(0.0, x)) : static_cast<float>(x);
}

static inline float multiply(float a, float b) { return multiply_flushed(a, b); }
static inline float add(float a, float b) { return flush(flush(a) + flush(b)); }
static inline float divide(float a, float b) {
  return round_flushed(static_cast<double>(flush(a)) / static_cast<double>(flush(b)));
}
static inline float square_root(float a) { return std::sqrt(flush(a)); }
/// a * b + c, rounded once.
static inline float multiply_add(float a, float b, float c) {
  a = flush(a), b = flush(b), c = flush(c);
  const float result = std::fma(a, b, c);
  if (std::fabs(result) > FLT_MIN) return result;
  // So near to zero the sum in double is exact: product and summand cancel, or are tiny.
  const double sum = static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c);
  return sum == 0.0 ? result : round_flushed(sum);
}

}  // namespace lowbit::kernels::ref
