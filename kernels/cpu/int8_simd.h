// LLM.int8() for the instruction set LOWBIT_ISA whose vec_*.h is included before.
#include "cpu/int8_isa.h"
#include "int8_scalar.h"

namespace lowbit::kernels::cpu::LOWBIT_ISA {

/// Calls f(offset, n) for pieces of a row: n == kLanes, at the end perhaps fewer.
template <typename Piece>
static inline void for_pieces(int64_t begin, int64_t end, Piece&& f) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) f(i, kLanes);
  if (i < end) f(i, static_cast<int>(end - i));
}
template <typename T>
static inline F load_piece(const T* p, int n) {
  return n == kLanes ? load(p) : load_first(p, n);
}
template <typename T>
static inline void store_piece(T* p, F a, int n) {
  if (n == kLanes) {
    store(p, a);
  } else {
    store_first(p, a, n);
  }
}

/// Within [-127, 127], NaN becomes 0.
static inline F clamp_to_int8(F x) {
  return larger(smaller(zero_where(is_nan(x), x), set(127.0f)), set(-127.0f));
}

static inline void mark_columns(uint8_t* columns, uint32_t lanes) {
  for (; lanes != 0; lanes &= lanes - 1) {
    // Threads mark the same bytes; the store is one byte wide and all of them store 1.
    __atomic_store_n(columns + __builtin_ctz(lanes), uint8_t{1}, __ATOMIC_RELAXED);
  }
}

template <typename T, bool kOutliers>
static void quantize_rows(const QuantizeRowwiseParams& p, float threshold, int64_t begin,
                          int64_t end) {
  const F limit = set(threshold);
  for (int64_t row = begin; row < end; ++row) {
    const T* input = static_cast<const T*>(p.input) + row * p.input_stride;
    int8_t* q = p.q + row * p.cols;
    F largest = set(0.0f);
    for_pieces(0, p.cols, [&](int64_t c, int n) {
      F a = magnitude(load_piece(input + c, n));
      if constexpr (kOutliers) {
        const Mask outliers = at_least(a, limit);
        if (lane_bits(outliers) != 0) mark_columns(p.outlier_columns + c, lane_bits(outliers));
        a = zero_where(outliers, a);
      }
      largest = larger(a, largest);
    });
    const float stat = largest_lane(largest);
    p.stats[row] = stat;
    const F scale = set(stat == 0.0f ? 0.0f : 1.0f / stat * 127.0f);
    for_pieces(0, p.cols, [&](int64_t c, int n) {
      F x = load_piece(input + c, n);
      F scaled = multiply(x, scale);
      if constexpr (kOutliers) scaled = zero_where(at_least(magnitude(x), limit), scaled);
      store_piece(q + c, clamp_to_int8(scaled), n);
    });
  }
}

void quantize_rowwise(const QuantizeRowwiseParams& p, float threshold, int64_t begin,
                      int64_t end) noexcept {
  visit_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if (threshold > 0.0f) {
      quantize_rows<T, true>(p, threshold, begin, end);
    } else {
      quantize_rows<T, false>(p, threshold, begin, end);
    }
  });
}

template <typename T>
static void quantize_columns(const QuantizeColwiseParams& p, float threshold, int64_t begin,
                             int64_t end) {
  const T* input = static_cast<const T*>(p.input);
  const F limit = set(threshold);
  const auto without_outliers = [&](F magnitudes_of, F x) {
    return threshold > 0.0f ? zero_where(at_least(magnitude(magnitudes_of), limit), x) : x;
  };
  for (int64_t c = begin; c < end; ++c) p.stats[c] = 0.0f;
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* row = input + r * p.input_stride;
    for_pieces(begin, end, [&](int64_t c, int n) {
      const F x = load_piece(row + c, n);
      const F a = magnitude(without_outliers(x, x));
      store_piece(p.stats + c, larger(a, load_piece(p.stats + c, n)), n);
    });
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* row = input + r * p.input_stride;
    for_pieces(begin, end, [&](int64_t c, int n) {
      const F x = load_piece(row + c, n);
      T product[kLanes];
      store(product, multiply(x, set(127.0f)));  // rounded to the type of the input
      const F scaled = divide(load(product), load_piece(p.stats + c, n));
      store_piece(p.q + r * p.cols + c, clamp_to_int8(without_outliers(x, scaled)), n);
    });
  }
}

void quantize_colwise(const QuantizeColwiseParams& p, float threshold, int64_t begin,
                      int64_t end) noexcept {
  visit_dtype(p.input_dtype, [&](auto* tag) {
    quantize_columns<std::remove_pointer_t<decltype(tag)>>(p, threshold, begin, end);
  });
}

void dequantize_row(const int8_t* q, float stat, int64_t cols, void* output,
                    DType output_dtype) noexcept {
  visit_dtype(output_dtype, [&](auto* tag) {
    auto* out = static_cast<decltype(tag)>(output);
    for_pieces(0, cols, [&](int64_t c, int n) {
      const F product = multiply(load_piece(q + c, n), set(stat));
      store_piece(out + c, multiply(product, set(kInv127)), n);
    });
  });
}

template <typename Bias, typename T>
static void dequantize_products(const DequantizeMatmulParams& p, int64_t begin, int64_t end) {
  const Bias* bias = static_cast<const Bias*>(p.bias);
  T* output = static_cast<T*>(p.output);
  for (int64_t r = begin; r < end; ++r) {
    const F row_stat = set(p.row_stats[r]);
    for_pieces(0, p.cols, [&](int64_t c, int n) {
      const F rowed = multiply(load_piece(p.a + r * p.cols + c, n), row_stat);
      const F product = multiply(rowed, load_piece(p.col_stats + c, n));
      const F addend = bias == nullptr ? set(0.0f) : load_piece(bias + c, n);
      store_piece(output + r * p.cols + c, multiply_add(product, set(kInv127Squared), addend), n);
    });
  }
}

void dequantize_matmul(const DequantizeMatmulParams& p, int64_t begin, int64_t end) noexcept {
  visit_dtype(p.output_dtype, [&](auto* output_tag) {
    visit_dtype(p.bias_dtype, [&](auto* bias_tag) {
      dequantize_products<std::remove_pointer_t<decltype(bias_tag)>,
                          std::remove_pointer_t<decltype(output_tag)>>(p, begin, end);
    });
  });
}

}  // namespace lowbit::kernels::cpu::LOWBIT_ISA
