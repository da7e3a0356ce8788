// Codes of normalized values through MapSearch, for the instruction set LOWBIT_ISA.
#include <bit>

#include "cpu/blockwise_isa.h"

namespace lowbit::kernels::cpu::LOWBIT_ISA {

/// Elements that are worked on together: vector code, then lookups one by one, then vector code. On
/// some processors gathers are several times slower than plain loads of what lies in the
/// first-level cache.
static constexpr int kChunk = 64;

/// y must not be NaN.
static inline int32_t bucket_of(float y) {
  const int32_t bits = std::bit_cast<int32_t>(y);
  int32_t key = ((bits & 0x7fffffff) >> MapSearch::kShift) - MapSearch::kFirst;
  key = key < 0 ? 0 : key;
  key = key > MapSearch::kSide - 1 ? MapSearch::kSide - 1 : key;
  return MapSearch::kSide + (key ^ (bits >> 31));
}

/// Codes of a chunk.
template <bool kOneLook>
static inline void find_codes(const MapSearch& search, const float* y, uint8_t* codes) {
  int32_t found[kChunk];
  for (int i = 0; i < kChunk; ++i) found[i] = bucket_of(y[i]);
  if constexpr (kOneLook) {
    for (int i = 0; i < kChunk; ++i) found[i] = static_cast<int32_t>(search.step[found[i]]);
    for (int i = 0; i < kChunk; ++i) {
      const int32_t bits = std::bit_cast<int32_t>(y[i]);
      const int32_t low = (bits ^ (bits >> 31)) & 0xffff;  // ascends with y within a bucket
      codes[i] = static_cast<uint8_t>((found[i] >> 16) + (low > (found[i] & 0xffff) ? 1 : 0));
    }
  } else {
    for (int i = 0; i < kChunk; ++i) {
      int32_t code = search.passed[found[i]];
      for (int n = 0; n < search.comparisons; ++n) code += y[i] > search.bound[code];
      codes[i] = static_cast<uint8_t>(code);
    }
  }
}

}  // namespace lowbit::kernels::cpu::LOWBIT_ISA
