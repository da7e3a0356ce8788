// The code tables of the formats, in one place for host and device code: plain constexpr arrays,
// exact bits.
#pragma once

#include <bit>
#include <cstdint>

namespace lowbit::kernels::codebook {

constexpr float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

/// NF4 (Dettmers et al. 2023, "QLoRA"): quantiles of a normal distribution, scaled to [-1, 1].
inline constexpr float kNf4[16] = {
    from_bits(0xbf800000), from_bits(0xbf3239b1), from_bits(0xbf066b30), from_bits(0xbeca32a0),
    from_bits(0xbe91a24d), from_bits(0xbe3d353f), from_bits(0xbdba7871), from_bits(0x00000000),
    from_bits(0x3da2faff), from_bits(0x3e24cae3), from_bits(0x3e7c04dd), from_bits(0x3ead033a),
    from_bits(0x3ee1a4b8), from_bits(0x3f1007ab), from_bits(0x3f3913b3), from_bits(0x3f800000)};

/// code = number of thresholds below y (strictly). Four exact midpoints lie half-way between two
/// floats; these are the neighbours that the GPU implementations of the format chose.
inline constexpr float kNf4Thresholds[15] = {
    from_bits(0xbf591cd9), from_bits(0xbf1c5270), from_bits(0xbeeb8480), from_bits(0xbeadea76),
    from_bits(0xbe703cec), from_bits(0xbe0d38bc), from_bits(0xbd3a7871), from_bits(0x3d22faff),
    from_bits(0x3df64863), from_bits(0x3e5067e0), from_bits(0x3e9582d4), from_bits(0x3ec753f9),
    from_bits(0x3f006d03), from_bits(0x3f248daf), from_bits(0x3f5c89d9)};

/// FP4: bit 3 is the sign, bits 0..2 index the magnitudes, which are not monotone. Code 8 is -0.0
/// here and +0.0 in the table that checkpoints carry.
inline constexpr float kFp4[16] = {
    from_bits(0x00000000), from_bits(0x3baaaaab), from_bits(0x3f2aaaab), from_bits(0x3f800000),
    from_bits(0x3eaaaaab), from_bits(0x3f000000), from_bits(0x3e2aaaab), from_bits(0x3e800000),
    from_bits(0x80000000), from_bits(0xbbaaaaab), from_bits(0xbf2aaaab), from_bits(0xbf800000),
    from_bits(0xbeaaaaab), from_bits(0xbf000000), from_bits(0xbe2aaaab), from_bits(0xbe800000)};

/// Magnitude codes from small to large; kFp4Ascending[number of thresholds below |y|] is the code.
/// Two thresholds are a few ulp off the exact midpoints: they are part of the format.
inline constexpr uint8_t kFp4Ascending[8] = {0, 1, 6, 7, 4, 5, 2, 3};
inline constexpr float kFp4Thresholds[7] = {
    from_bits(0x3b2aaab9), from_bits(0x3db00000), from_bits(0x3e555555), from_bits(0x3e955555),
    from_bits(0x3ed55556), from_bits(0x3f155550), from_bits(0x3f555555)};

/// Code of 0.0.
inline constexpr uint8_t kNf4Zero = 7;
inline constexpr uint8_t kFp4Zero = 0;

/// 256 values of an 8-bit code, ascending.
struct Map {
  float values[256];
};

/// Stable insertion sort, usable in constant expressions and without memory of its own.
constexpr void sort_ascending(float (&values)[256]) {
  for (int i = 1; i < 256; ++i) {
    const float value = values[i];
    int j = i;
    for (; j > 0 && values[j - 1] > value; --j) values[j] = values[j - 1];
    values[j] = value;
  }
}

/// Point i of n equally spaced points over [from, to], in float32: the first half counts up from
/// `from`, the second half down from `to`, one rounding each (a fused multiply-add; the double
/// arithmetic here is exact before it rounds).
constexpr float linspace_point(float from, float to, int n, int i) {
  const float step = (to - from) / static_cast<float>(n - 1);
  return i < n / 2 ? static_cast<float>(static_cast<double>(step) * i + from)
                   : static_cast<float>(-static_cast<double>(step) * (n - 1 - i) + to);
}

/// The dynamic map (Dettmers 2016, "8-bit approximations for parallelism in deep learning"):
/// max_exponent_bits decades, each twice as fine as the one below it. total_bits in 2..8,
/// max_exponent_bits in 1..total_bits - 1; fewer than 8 bits are filled up with zeros.
constexpr Map dynamic_map(bool is_signed, int max_exponent_bits = 7, int total_bits = 8) {
  constexpr float kPowersOfTen[] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1e0f};
  const int value_bits = total_bits - 1;
  Map map{};
  int count = 0;
  const auto append_decade = [&](int midpoints, float scale) {
    for (int j = 0; j < midpoints; ++j) {
      const float mid = (linspace_point(0.1f, 1.0f, midpoints + 1, j) +
                         linspace_point(0.1f, 1.0f, midpoints + 1, j + 1)) /
                        2.0f;
      map.values[count++] = scale * mid;
      if (is_signed) map.values[count++] = -(scale * mid);
    }
  };
  for (int i = 0; i < max_exponent_bits; ++i) {
    append_decade(1 << (i + value_bits - max_exponent_bits + (is_signed ? 0 : 1)),
                  kPowersOfTen[7 - max_exponent_bits + i]);
  }
  append_decade((1 << (value_bits - max_exponent_bits)) - 1, 1.0f);
  map.values[count++] = 0.0f;
  map.values[count++] = 1.0f;
  sort_ascending(map.values);
  return map;
}

inline constexpr Map kDynamicSigned = dynamic_map(true);
inline constexpr Map kDynamicUnsigned = dynamic_map(false);

static_assert(std::bit_cast<uint32_t>(kDynamicSigned.values[0]) == 0xbf7e3333);
static_assert(kDynamicSigned.values[127] == 0.0f && kDynamicSigned.values[255] == 1.0f);
static_assert(std::bit_cast<uint32_t>(kDynamicUnsigned.values[1]) == 0x34ae7baa);

}  // namespace lowbit::kernels::codebook
