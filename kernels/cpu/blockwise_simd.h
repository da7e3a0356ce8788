// Block-wise quantize and dequantize for the instruction set LOWBIT_ISA whose vec_*.h is included
// before.
#include <cmath>
#include <cstring>

#include "cpu/absmax_simd.h"
#include "cpu/blockwise_isa.h"
#include "cpu/nearest_code_simd.h"

namespace lowbit::kernels::cpu::LOWBIT_ISA {

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
