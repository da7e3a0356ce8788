// Block-wise kernels of each instruction set. They expect FlushMode and checked arguments. Unit:
// block.
#pragma once

#include "lowbit/kernels/blockwise.h"

namespace lowbit::kernels::cpu {

/// The decision rule of a map as 255 ascending bounds: code(y) = number of bounds below y
/// (strictly). Finding it takes one look into a table keyed by the high bits of y, and as many
/// comparisons as the fullest bucket has bounds.
struct MapSearch {
  // A bucket spans 1/128 of an octave. 32 octaves [2^-31, 2), each sign; smaller and larger values
  // go to the last ones.
  static constexpr int kMantissaBits = 7;
  static constexpr int kOctaves = 32;
  static constexpr int kSide = kOctaves << kMantissaBits;
  static constexpr int kShift = 23 - kMantissaBits;
  static constexpr int kFirst = (127 - (kOctaves - 1)) << kMantissaBits;

  float bound[256];           ///< bound[255] is infinite and stops every search.
  uint8_t passed[2 * kSide];  ///< bounds in the buckets before this one
  int comparisons = 0;        ///< of the fullest bucket; 1 for the dynamic maps

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
