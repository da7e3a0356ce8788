// The scalar truth of LLM.int8() (Dettmers et al. 2022).
#include "lowbit/kernels/int8.h"

#include <algorithm>
#include <atomic>

#include "int8_scalar.h"
#include "scalar.h"
#include "validate.h"

namespace lowbit::kernels::ref {
namespace {

template <typename T>
void quantize_row(const QuantizeRowwiseParams& p, float threshold, int64_t row) {
  const T* input = static_cast<const T*>(p.input) + row * p.input_stride;
  int8_t* q = p.q + row * p.cols;
  float stat = 0.0f;
  for (int64_t c = 0; c < p.cols; ++c) {
    const float x = to_float(input[c]);
    if (is_outlier(x, threshold)) {
      std::atomic_ref<uint8_t>(p.outlier_columns[c]).store(1, std::memory_order_relaxed);
    } else if (std::fabs(x) > stat) {
      stat = std::fabs(x);
    }
  }
  const float scale = rowwise_scale(stat);
  p.stats[row] = stat;
  for (int64_t c = 0; c < p.cols; ++c) {
    const float x = to_float(input[c]);
    q[c] = is_outlier(x, threshold) ? int8_t{0} : round_to_int8(x * scale);
  }
}

template <typename T>
void quantize_columns(const QuantizeColwiseParams& p, float threshold, int64_t begin, int64_t end) {
  const T* input = static_cast<const T*>(p.input);
  std::fill(p.stats + begin, p.stats + end, 0.0f);
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t c = begin; c < end; ++c) {
      const float x = to_float(input[r * p.input_stride + c]);
      if (!is_outlier(x, threshold) && std::fabs(x) > p.stats[c]) p.stats[c] = std::fabs(x);
    }
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t c = begin; c < end; ++c) {
      const float x = to_float(input[r * p.input_stride + c]);
      // The product is an element of the input's type in the format's definition, which knows
      // float16 only.
      const float product = to_float(from_float<T>(x * 127.0f));
      p.q[r * p.cols + c] =
          is_outlier(x, threshold) ? int8_t{0} : round_to_int8(product / p.stats[c]);
    }
  }
}

}  // namespace

Status quantize_rowwise(const QuantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok()) return status;
  const float threshold = rounded_threshold(p.threshold);
  visit_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for (int64_t row = begin; row < end; ++row) quantize_row<T>(p, threshold, row);
  });
  return ok_status();
}

Status quantize_colwise(const QuantizeColwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.cols);
  if (!status.ok()) return status;
  visit_dtype(p.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    quantize_columns<T>(p, rounded_threshold(p.threshold), begin, end);
  });
  return ok_status();
}

Status dequantize_rowwise(const DequantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok()) return status;
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t i = r * p.cols; i < (r + 1) * p.cols; ++i) {
      store_element(p.output, p.output_dtype, i, dequantize_int8(p.q[i], p.stats[r]));
    }
  }
  return ok_status();
}

Status matmul_int8(const MatmulInt8Params& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.n);
  if (!status.ok()) return status;
  for (int64_t m = 0; m < p.m; ++m) {
    for (int64_t n = begin; n < end; ++n) {
      uint32_t sum = 0;  // unsigned: wraps like the hardware
      for (int64_t k = 0; k < p.k; ++k) {
        sum += static_cast<uint32_t>(int32_t{p.a[m * p.k + k]} * int32_t{p.b[n * p.k + k]});
      }
      const int32_t c = static_cast<int32_t>(sum);
      if (p.c != nullptr) p.c[m * p.n + n] = c;
      if (p.output != nullptr) {
        const float bias = p.bias == nullptr ? 0.0f : load_element(p.bias, p.bias_dtype, n);
        store_element(p.output, p.output_dtype, m * p.n + n,
                      dequantize_int32(c, p.row_stats[m], p.col_stats[n], bias));
      }
    }
  }
  return ok_status();
}

Status dequantize_matmul(const DequantizeMatmulParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok()) return status;
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < p.cols; ++c) {
      const int64_t i = r * p.cols + c;
      const float bias = p.bias == nullptr ? 0.0f : load_element(p.bias, p.bias_dtype, c);
      store_element(p.output, p.output_dtype, i,
                    dequantize_int32(p.a[i], p.row_stats[r], p.col_stats[c], bias));
    }
  }
  return ok_status();
}

Status linear_int8(const LinearInt8Params& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.n);
  if (!status.ok()) return status;
  for (int64_t n = begin; n < end; ++n) {
    const double bias = p.bias == nullptr ? 0.0 : load_element(p.bias, p.bias_dtype, n);
    for (int64_t m = 0; m < p.m; ++m) {
      double sum = bias;
      for (int64_t k = 0; k < p.k; ++k) {
        sum += double{load_element(p.input, p.dtype, m * p.input_stride + k)} *
               double{dequantize_int8(p.q[n * p.k + k], p.stats[n])};
      }
      store_element(p.output, p.dtype, m * p.n + n, static_cast<float>(sum));
    }
  }
  return ok_status();
}

}  // namespace lowbit::kernels::ref
