// Buffers at odd addresses between canaries, and random elements with the awkward ones among them.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "scalar.h"

namespace lowbit::kernels::testing {

/// n elements of `size` bytes, `shift` bytes off a 64-byte boundary, poisoned, with canaries on
/// both sides.
class GuardedBuffer {
 public:
  GuardedBuffer(int64_t n, int64_t size, int64_t shift = 0)
      : bytes_(static_cast<size_t>(n * size)), storage_(bytes_ + 64 + shift + 2 * kGuard, kPoison) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data()) + kGuard;
    front_ = (64 - address % 64) % 64 + static_cast<size_t>(shift) + kGuard;
  }
  void* data() { return storage_.data() + front_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data());
  }
  size_t bytes() const { return bytes_; }
  void poison() { std::memset(data(), kPoison, bytes_); }
  bool guards_intact() const {
    for (size_t i = 0; i < storage_.size(); ++i) {
      if ((i < front_ || i >= front_ + bytes_) && storage_[i] != kPoison) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kPoison = 0xa5;
  size_t bytes_, front_ = 0;
  std::vector<uint8_t> storage_;
};

/// Same bytes, except that any NaN equals any NaN.
inline ::testing::AssertionResult same_elements(const void* a, const void* b, DType dtype,
                                                int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = load_element(a, dtype, i), y = load_element(b, dtype, i);
    if (std::isnan(x) && std::isnan(y)) continue;
    if (std::bit_cast<uint32_t>(x) != std::bit_cast<uint32_t>(y)) {
      return ::testing::AssertionFailure()
             << "element " << i << " of " << n << ": " << x << " and " << y;
    }
  }
  return ::testing::AssertionSuccess();
}

enum class Content { kNormal, kTiny, kWide, kSpecial, kAnyBits };
inline constexpr Content kContents[] = {Content::kNormal, Content::kTiny, Content::kWide,
                                        Content::kSpecial, Content::kAnyBits};

inline float random_element(std::mt19937& random, Content content) {
  const float normal = std::normal_distribution<float>()(random);
  const uint32_t bits = random();
  switch (content) {
    case Content::kNormal:
      break;
    case Content::kTiny:  // around the smallest normal number
      return normal * 4e-38f;
    case Content::kWide: {  // every exponent that 16-bit halves have, and ties
      const int exponent = static_cast<int>(bits % 40) - 24;
      return std::ldexp(static_cast<float>(static_cast<int>(bits >> 8 & 31) - 16), exponent);
    }
    case Content::kSpecial: {
      const float values[] = {0.0f,      -0.0f,      1.0f,    -1.0f,       NAN,     -NAN,
                              HUGE_VALF, -HUGE_VALF, FLT_MIN, FLT_MIN / 4, FLT_MAX, -FLT_MAX};
      return bits % 16 == 0 ? values[bits / 16 % 12] : normal;
    }
    case Content::kAnyBits:
      return std::bit_cast<float>(bits);
  }
  return normal;
}

inline void fill_random(void* data, DType dtype, int64_t n, std::mt19937& random, Content content) {
  for (int64_t i = 0; i < n; ++i) store_element(data, dtype, i, random_element(random, content));
}

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

}  // namespace lowbit::kernels::testing
