#include "lowbit/kernels/maps.h"

#include <algorithm>
#include <cmath>

#include "codebook.h"

namespace lowbit::kernels {
namespace {

constexpr int kEntries = 256;

struct Fp4Table {
  float values[16];
};

constexpr Fp4Table make_stored_fp4() {
  Fp4Table table{};
  for (int i = 0; i < 16; ++i) table.values[i] = i == 8 ? 0.0f : codebook::kFp4[i];
  return table;
}

constexpr Fp4Table kStoredFp4 = make_stored_fp4();

void write_sorted(codebook::Map& made, float map[kEntries]) {
  codebook::sort_ascending(made.values);
  const float largest = made.values[kEntries - 1];
  for (int i = 0; i < kEntries; ++i) map[i] = made.values[i] / largest;
}

/// x with P(N(0, 1) < x) = p, for 0.5 <= p < 1. Newton's method: the distribution function is
/// concave for x > 0, so that the steps from 0 rise monotonically to the root.
double normal_quantile(double p) {
  constexpr double kInvSqrt2Pi = 0.39894228040143267794;
  double x = 0.0;
  for (int i = 0; i < 200; ++i) {
    const double excess = 0.5 * std::erfc(-x / std::sqrt(2.0)) - p;
    const double next = x - excess / (kInvSqrt2Pi * std::exp(-0.5 * x * x));
    if (std::fabs(next - x) <= 1e-16 * next) return next;
    x = next;
  }
  return x;
}

}  // namespace

const float* codebook_4bit(QuantType quant_type) noexcept {
  return quant_type == QuantType::kNF4 ? codebook::kNf4 : kStoredFp4.values;
}

const float* dynamic_map(bool is_signed) noexcept {
  return is_signed ? codebook::kDynamicSigned.values : codebook::kDynamicUnsigned.values;
}

Status make_dynamic_map(bool is_signed, int max_exponent_bits, int total_bits,
                        float map[kEntries]) noexcept {
  if (total_bits < 2 || total_bits > 8) return invalid_argument("total_bits must be in 2..8");
  if (max_exponent_bits < 1 || max_exponent_bits >= total_bits) {
    return invalid_argument("max_exponent_bits must be in 1..total_bits - 1");
  }
  const codebook::Map made = codebook::dynamic_map(is_signed, max_exponent_bits, total_bits);
  std::copy(made.values, made.values + kEntries, map);
  return ok_status();
}

Status make_linear_map(bool is_signed, int total_bits, bool add_zero,
                       float map[kEntries]) noexcept {
  if (total_bits < 1 || total_bits > 8) return invalid_argument("total_bits must be in 1..8");
  // An odd number of points makes 0 one of them.
  const int points = (1 << total_bits) - (is_signed && (add_zero || total_bits < 8) ? 1 : 0);
  const int gap = kEntries - points;
  const int half = points / 2;
  for (int i = 0; i < points; ++i) {
    map[i < half ? i : i + gap] =
        points == 1 ? -1.0f : codebook::linspace_point(is_signed ? -1.0f : 0.0f, 1.0f, points, i);
  }
  std::fill(map + half, map + half + gap, 0.0f);
  return ok_status();
}

Status make_fp8_map(bool is_signed, int exponent_bits, int precision_bits, int total_bits,
                    float map[kEntries]) noexcept {
  if (total_bits < 2 || total_bits > 8) return invalid_argument("total_bits must be in 2..8");
  if (exponent_bits < 1 || precision_bits < 0 ||
      exponent_bits + precision_bits != total_bits - (is_signed ? 1 : 0)) {
    return invalid_argument("exponent_bits + precision_bits + sign must be total_bits");
  }
  codebook::Map made{};
  const int bias = 1 << (exponent_bits - 1);
  const int mantissas = 1 << precision_bits;
  int count = 0;
  for (int e = 0; e < 1 << exponent_bits; ++e) {
    for (int m = 0; m < mantissas; ++m) {
      const float fraction = static_cast<float>(m) / static_cast<float>(mantissas);
      // The exponent counts downwards: only the order of the codes differs from the usual one.
      const float value =
          e == 0 ? std::ldexp(fraction, -bias) : std::ldexp(1.0f + fraction, -(e - bias - 1));
      made.values[count++] = value;
      if (is_signed) made.values[count++] = -value;
    }
  }
  write_sorted(made, map);
  return ok_status();
}

Status make_normal_map(float offset, bool use_extra_value, float map[kEntries]) noexcept {
  if (!(offset > 0.5f && offset < 1.0f)) return invalid_argument("offset must be in (0.5, 1)");
  const auto quantile = [&](int points, int i) {
    return static_cast<float>(normal_quantile(codebook::linspace_point(offset, 0.5f, points, i)));
  };
  const int positive = use_extra_value ? 8 : 7;
  codebook::Map made{};
  int count = 0;
  for (int i = 0; i < positive; ++i) made.values[count++] = quantile(positive + 1, i);
  for (int i = 0; i < 7; ++i) made.values[count++] = -quantile(8, i);
  write_sorted(made, map);
  return ok_status();
}

}  // namespace lowbit::kernels
