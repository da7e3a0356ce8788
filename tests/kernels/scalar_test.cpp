// Software conversions against what the formats say, value by value.
#include "scalar.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace lowbit::kernels {
namespace {

/// Value of a finite half from its fields.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

TEST(Scalar, EveryHalfWidensExactlyAndComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float wide = to_float(Half{half});
    if ((half & 0x7c00) != 0x7c00) {
      EXPECT_EQ(double{wide}, half_value(half));
    } else {
      EXPECT_EQ(std::isinf(wide), (half & 0x3ff) == 0);
      EXPECT_EQ(std::isnan(wide), (half & 0x3ff) != 0);
    }
    EXPECT_EQ(std::signbit(wide), half >> 15 != 0);
    const uint16_t quiet = std::isnan(wide) ? half | 0x200 : half;
    EXPECT_EQ(from_float<Half>(wide).bits, quiet);
  }
}

TEST(Scalar, EveryBfloatWidensExactlyAndComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto bfloat = static_cast<uint16_t>(bits);
    const float wide = to_float(BFloat{bfloat});
    EXPECT_EQ(std::bit_cast<uint32_t>(wide), bits << 16);
    const uint16_t quiet = std::isnan(wide) ? bfloat | 0x40 : bfloat;
    EXPECT_EQ(from_float<BFloat>(wide).bits, quiet);
  }
}

/// The two neighbours of |x| among ascending magnitudes decide, ties to even.
template <typename T, typename ValueOf>
void expect_nearest(float x, uint16_t infinity, ValueOf value_of) {
  const uint16_t rounded = from_float<T>(x).bits & 0x7fff;
  const double magnitude = std::fabs(double{x});
  const double here = value_of(rounded);
  if (rounded > 0) {
    const double low = (value_of(rounded - 1) + here) / 2;
    EXPECT_TRUE(magnitude > low || (magnitude == low && rounded % 2 == 0)) << x;
  }
  if (rounded < infinity) {
    const double high = (value_of(rounded + 1) + here) / 2;
    EXPECT_TRUE(magnitude < high || (magnitude == high && rounded % 2 == 0)) << x;
  }
  EXPECT_EQ(from_float<T>(x).bits >> 15 != 0, std::signbit(x)) << x;
}

TEST(Scalar, RoundingGoesToTheNearestAndTiesToEven) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  // Infinity stands one step beyond the largest finite value, as rounding sees it.
  const auto half = [](int bits) {
    return bits == 0x7c00 ? 65536.0 : half_value(static_cast<uint16_t>(bits));
  };
  const auto bfloat = [](int bits) {
    return bits == 0x7f80 ? 0x1p128 : double{to_float(BFloat{static_cast<uint16_t>(bits)})};
  };
  for (int i = 0; i < 300000; ++i) {
    uint32_t bits = random();
    if (i % 3 == 0) bits &= 0xfffff000;  // ties of halves
    if (i % 3 == 1) bits = (bits & 0x8fffffff) | 0x30000000 | (bits & 0x1f) << 23;  // near 1
    if (i % 5 == 0) bits = (bits & 0xffff0000) | 0x8000;  // ties of bfloats
    const float x = std::bit_cast<float>(bits);
    if (!std::isfinite(x)) continue;
    expect_nearest<Half>(x, 0x7c00, half);
    expect_nearest<BFloat>(x, 0x7f80, bfloat);
  }
}

TEST(Scalar, FlushedArithmetic) {
  EXPECT_EQ(std::bit_cast<uint32_t>(flush(-1e-40f)), 0x80000000u);
  EXPECT_EQ(flush(FLT_MIN), FLT_MIN);
  EXPECT_EQ(multiply_flushed(1e-40f, 1e30f), 0.0f);
  EXPECT_TRUE(std::signbit(multiply_flushed(-1e-20f, 1e-20f)));
  EXPECT_EQ(multiply_flushed(-1e-20f, 1e-20f), 0.0f);
  EXPECT_EQ(multiply_flushed(FLT_MIN, 1.0f), FLT_MIN);
  EXPECT_EQ(multiply_flushed(FLT_MIN, std::nextafter(1.0f, 0.0f)), 0.0f);
  EXPECT_TRUE(std::isnan(multiply_flushed(0.0f, HUGE_VALF)));
  EXPECT_EQ(reciprocal(0.0f), 0.0f);
  EXPECT_EQ(reciprocal(HUGE_VALF), 0.0f);
  EXPECT_EQ(reciprocal(3e38f), 0.0f);
  EXPECT_EQ(reciprocal(0x1p126f), FLT_MIN);
  EXPECT_EQ(reciprocal(FLT_MIN), 0x1p126f);
}

}  // namespace
}  // namespace lowbit::kernels
