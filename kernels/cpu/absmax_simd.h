// Largest magnitude of a block, for the instruction set LOWBIT_ISA whose vec_*.h is included
// before.
#include "ref/absmax.h"

namespace lowbit::kernels::cpu::LOWBIT_ISA {

/// As ref::block_absmax.
static inline float block_absmax(const float* input, int64_t count, bool full) {
  F largest = set(full ? -FLT_MAX : 0.0f);
  int64_t i = 0;
  // A NaN in the first operand gives the second one.
  for (; i + kLanes <= count; i += kLanes) largest = larger(magnitude(load(input + i)), largest);
  if (i < count) largest = larger(set(ref::block_absmax(input + i, count - i, full)), largest);
  const float result = largest_lane(largest);
  return result < FLT_MIN && result > -FLT_MAX ? 0.0f : result;
}

template <typename T>
static inline float block_absmax(const T* input, int64_t count, bool full) {
  constexpr uint32_t kInfinity = std::is_same_v<T, Half> ? 0x7c00 : 0x7f80;
  U16 largest = zero16();
  int64_t i = 0;
  for (; i + kLanes16 <= count; i += kLanes16)
    largest = larger16(load_magnitudes(input + i), largest);
  uint32_t bits = largest_lane16(largest);
  for (; i < count; ++i) {
    const uint32_t magnitude = input[i].bits & 0x7fffu;
    if (magnitude > bits) bits = magnitude;
  }
  if (bits > kInfinity) return ref::block_absmax(input, count, full);  // NaN among them
  const float result = to_float(T{static_cast<uint16_t>(bits)});
  return result < FLT_MIN ? 0.0f : result;
}

/// As reciprocal(), under FlushMode.
static inline float block_reciprocal(float absmax) { return absmax == 0.0f ? 0.0f : 1.0f / absmax; }

}  // namespace lowbit::kernels::cpu::LOWBIT_ISA
