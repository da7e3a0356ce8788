// Block-wise kernels of each instruction set. They expect FlushMode and checked arguments. Unit:
// block.
#pragma once

#include "lowbit/kernels/blockwise.h"

namespace lowbit::kernels::cpu {

/// The decision rule of a map as 255 ascending bounds: code(y) = number of bounds below y
/// (strictly).
///
/// Buckets are the high 16 bits of y, so that two values of one bucket compare like their low 16
/// bits. Where no bucket holds two bounds, as with the dynamic maps, one look at `step` finds the
/// code; otherwise `passed` tells where to begin and the bounds of the fullest bucket how far to
/// search.
struct MapSearch {
  // Octaves [2^-31, 2) of each sign; smaller and larger values go to the buckets next to them.
  static constexpr int kShift = 16;
  static constexpr int kPerOctave = 1 << (23 - kShift);
  static constexpr int kSide = 32 * kPerOctave;
  static constexpr int kFirst = (127 - 31) * kPerOctave;

  bool one_look = false;
  uint32_t
      step[2 * kSide];  ///< bounds before the bucket << 16 | ascending_low(its bound, or 0xffff)
  uint8_t passed[2 * kSide];  ///< bounds before the bucket
  float bound[256];           ///< bound[255] is infinite and stops every search.
  int comparisons = 0;        ///< bounds in the fullest bucket

  explicit MapSearch(const float* map) noexcept;
};

namespace avx2 {
void quantize_blockwise(const QuantizeBlockwiseParams& params, const MapSearch& search,
                        int64_t begin, int64_t end) noexcept;
void dequantize_blockwise(const DequantizeBlockwiseParams& params, int64_t begin,
                          int64_t end) noexcept;
}  // namespace avx2

namespace avx512 {
void quantize_blockwise(const QuantizeBlockwiseParams& params, const MapSearch& search,
                        int64_t begin, int64_t end) noexcept;
void dequantize_blockwise(const DequantizeBlockwiseParams& params, int64_t begin,
                          int64_t end) noexcept;
}  // namespace avx512

}  // namespace lowbit::kernels::cpu
