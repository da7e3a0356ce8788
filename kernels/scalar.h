// Scalar element types and float32 arithmetic with the roundings that the formats are defined by.
//
// Functions are static: files for one instruction set include this header, and a shared copy that
// the linker took from one of them would not run on lesser processors.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "lowbit/kernels/types.h"

namespace lowbit::kernels {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(BFloat x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
static inline float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00) {  // infinity, or NaN made quiet
    return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13 |
                                (magnitude > 0x7c00 ? 0x400000u : 0u));
  }
  if (magnitude < 0x400) {  // subnormal: magnitude * 2^-24
    return std::bit_cast<float>(sign |
                                std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

static inline uint16_t to_bfloat_bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline uint16_t to_half_bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  }
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // >= 65520
  if (magnitude < 0x38800000) {  // subnormal: count units of 2^-24
    const float units = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(units)));
  }
  const uint32_t rounded = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

/// Round to nearest even; NaN stays NaN with its sign and the high bits of its payload, quiet.
template <typename T>
static inline T from_float(float x) {
  if constexpr (std::is_same_v<T, Half>) {
    return {to_half_bits(x)};
  } else if constexpr (std::is_same_v<T, BFloat>) {
    return {to_bfloat_bits(x)};
  } else {
    return x;
  }
}

/// Subnormals become zeros of the same sign.
static inline float flush(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

/// x * y with subnormal operands and results flushed, whatever the mode of the floating-point unit.
/// The result is subnormal when it is so after rounding to 24 bits, which is how SSE and AVX decide
/// it.
static inline float multiply_flushed(float x, float y) {
  const double product = static_cast<double>(flush(x)) * static_cast<double>(flush(y));
  constexpr double kTiny = 0x1p-126 - 0x1p-151;
  return std::fabs(product) < kTiny ? static_cast<float>(std::copysign(0.0, product))
                                    : static_cast<float>(product);
}

/// 1 / x by which a block is multiplied: 0 for 0 (a block of zeros has codes of zero), flushed for
/// |x| > 2^126.
static inline float reciprocal(float x) { return x == 0.0f ? 0.0f : flush(1.0f / x); }

/// Calls f with a null T* for the element type.
template <typename F>
static auto visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(static_cast<Half*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<BFloat*>(nullptr));
    case DType::kFloat32:
      break;
  }
  return f(static_cast<float*>(nullptr));
}

/// One element of an array whose type is known at run time.
static inline float load_element(const void* data, DType dtype, int64_t i) {
  return visit_dtype(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return to_float(static_cast<const T*>(data)[i]);
  });
}
static inline void store_element(void* data, DType dtype, int64_t i, float value) {
  visit_dtype(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    static_cast<T*>(data)[i] = from_float<T>(value);
  });
}
static inline const void* element_address(const void* data, DType dtype, int64_t i) {
  return static_cast<const char*>(data) + i * itemsize(dtype);
}
static inline void* element_address(void* data, DType dtype, int64_t i) {
  return static_cast<char*>(data) + i * itemsize(dtype);
}

}  // namespace lowbit::kernels
