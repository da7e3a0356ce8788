// The code tables and the generators of 8-bit maps. Host only.
#pragma once

#include <cstdint>

#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/types.h"

namespace lowbit::kernels {

/// The 16 values of a 4-bit type in code order, as checkpoints store them (FP4 code 8 is +0.0).
const float* codebook_4bit(QuantType quant_type) noexcept;

/// The canonical 8-bit dynamic maps: 256 ascending values, the same bits on every machine.
const float* dynamic_map(bool is_signed) noexcept;

// Generators of 256-entry maps. Bad parameters give kInvalidArgument and leave `map` alone.

/// Dynamic map of total_bits 2..8 and max_exponent_bits 1..total_bits - 1, filled up with zeros,
/// ascending.
Status make_dynamic_map(bool is_signed, int max_exponent_bits, int total_bits,
                        float map[256]) noexcept;
/// 2^total_bits equally spaced values over [-1 or 0, 1], total_bits 1..8; zeros are inserted in the
/// middle, so that the result need not be sorted.
Status make_linear_map(bool is_signed, int total_bits, bool add_zero, float map[256]) noexcept;
/// A small floating-point format, scaled to a maximum of 1. exponent_bits + precision_bits + sign =
/// total_bits <= 8.
Status make_fp8_map(bool is_signed, int exponent_bits, int precision_bits, int total_bits,
                    float map[256]) noexcept;
/// Quantiles of a normal distribution, scaled to a maximum of 1; offset in (0.5, 1). With the
/// default offset 0.9677083 and the extra value the non-zero values are NF4.
Status make_normal_map(float offset, bool use_extra_value, float map[256]) noexcept;

}  // namespace lowbit::kernels
