// Block-wise quantize and dequantize for the instruction set LOWBIT_ISA whose vec_*.h is included
// before.
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/absmax_simd.h"
#include "cpu/blockwise_isa.h"

namespace lowbit::kernels::cpu::LOWBIT_ISA {

/// Elements that are worked on together: vector code, then lookups one by one, then vector code. On
/// some processors gathers are several times slower than plain loads of what lies in the
/// first-level cache.
static constexpr int kChunk = 64;

/// Normalized inputs, with a number in place of NaN that gets code 0.
template <typename T>
static inline void normalize(const T* input, int count, F scale, float* y) {
  const F lowest = set(-HUGE_VALF);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F product = multiply(load(input + i), scale);
    store(y + i, select(is_nan(product), lowest, product));
  }
  if (i < count) {
    const F product = multiply(load_first(input + i, count - i), scale);
    store(y + i, select(is_nan(product), lowest, product));
  }
}

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

template <typename T, bool kOneLook>
static void quantize_map(const QuantizeBlockwiseParams& p, const MapSearch& search, int64_t begin,
                         int64_t end) {
  const T* input = static_cast<const T*>(p.input);
  float y[kChunk] = {};
  uint8_t codes[kChunk];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * p.blocksize;
    const int64_t count = p.numel - start < p.blocksize ? p.numel - start : p.blocksize;
    const float absmax = block_absmax(input + start, count, count == p.blocksize);
    p.absmax[block] = absmax;
    const F scale = set(block_reciprocal(absmax));
    for (int64_t i = 0; i < count; i += kChunk) {
      const int n = static_cast<int>(count - i < kChunk ? count - i : kChunk);
      normalize(input + start + i, n, scale, y);
      find_codes<kOneLook>(search, y, codes);
      std::memcpy(p.codes + start + i, codes, static_cast<size_t>(n));
    }
  }
}

void quantize_blockwise(const QuantizeBlockwiseParams& p, const MapSearch& search, int64_t begin,
                        int64_t end) noexcept {
  visit_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if (search.one_look) {
      quantize_map<T, true>(p, search, begin, end);
    } else {
      quantize_map<T, false>(p, search, begin, end);
    }
  });
}

template <typename T>
static void dequantize_map(const DequantizeBlockwiseParams& p, int64_t begin, int64_t end) {
  T* output = static_cast<T*>(p.output);
  float values[kChunk] = {};
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * p.blocksize;
    const int64_t count = p.numel - start < p.blocksize ? p.numel - start : p.blocksize;
    const F scale = set(p.absmax[block]);
    for (int64_t i = start; i < start + count; i += kChunk) {
      const int n = static_cast<int>(start + count - i < kChunk ? start + count - i : kChunk);
      for (int j = 0; j < n; ++j) values[j] = p.code[p.codes[i + j]];
      int j = 0;
      for (; j + kLanes <= n; j += kLanes) {
        store(output + i + j, multiply(load(values + j), scale));
      }
      if (j < n) store_first(output + i + j, multiply(load(values + j), scale), n - j);
    }
  }
}

void dequantize_blockwise(const DequantizeBlockwiseParams& p, int64_t begin, int64_t end) noexcept {
  visit_dtype(p.output_dtype, [&](auto* tag) {
    dequantize_map<std::remove_pointer_t<decltype(tag)>>(p, begin, end);
  });
}

}  // namespace lowbit::kernels::cpu::LOWBIT_ISA
