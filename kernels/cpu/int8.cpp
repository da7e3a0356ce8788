// LLM.int8() statistics, quantize, dequantize and embedding on the CPU: chooses the kernel for the
// active set.
#include "lowbit/kernels/int8.h"

#include "cpu/int8_isa.h"
#include "int8_scalar.h"
#include "lowbit/kernels/cpu.h"
#include "validate.h"

namespace lowbit::kernels::cpu {
namespace {

void dequantize_row(const int8_t* q, float stat, int64_t cols, void* output,
                    DType output_dtype) noexcept {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::kAVX512:
      return avx512::dequantize_row(q, stat, cols, output, output_dtype);
    case Isa::kAVX2:
      return avx2::dequantize_row(q, stat, cols, output, output_dtype);
#endif
    default:
      break;
  }
  for (int64_t c = 0; c < cols; ++c) {
    store_element(output, output_dtype, c, dequantize_int8(q[c], stat));
  }
}

}  // namespace

Status quantize_rowwise(const QuantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar) return ref::quantize_rowwise(p, begin, end);
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok()) return status;
#if defined(__x86_64__)
  const float threshold = rounded_threshold(p.threshold);
  if (isa == Isa::kAVX512) {
    avx512::quantize_rowwise(p, threshold, begin, end);
  } else {
    avx2::quantize_rowwise(p, threshold, begin, end);
  }
#endif
  return ok_status();
}

Status zero_outlier_columns(const QuantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok() || p.outlier_columns == nullptr) return status;
  // Outlier columns are few: look for them once, then visit their bytes.
  for (int64_t c = 0; c < p.cols; ++c) {
    if (p.outlier_columns[c] == 0) continue;
    for (int64_t r = begin; r < end; ++r) p.q[r * p.cols + c] = 0;
  }
  return ok_status();
}

Status quantize_colwise(const QuantizeColwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar) return ref::quantize_colwise(p, begin, end);
  const Status status = check(p, begin, end, p.cols);
  if (!status.ok()) return status;
#if defined(__x86_64__)
  const float threshold = rounded_threshold(p.threshold);
  if (isa == Isa::kAVX512) {
    avx512::quantize_colwise(p, threshold, begin, end);
  } else {
    avx2::quantize_colwise(p, threshold, begin, end);
  }
#endif
  return ok_status();
}

Status dequantize_rowwise(const DequantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok() || p.cols == 0) return status;
  for (int64_t r = begin; r < end; ++r) {
    dequantize_row(p.q + r * p.cols, p.stats[r], p.cols,
                   element_address(p.output, p.output_dtype, r * p.cols), p.output_dtype);
  }
  return ok_status();
}

Status dequantize_matmul(const DequantizeMatmulParams& p, int64_t begin, int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar) return ref::dequantize_matmul(p, begin, end);
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok()) return status;
#if defined(__x86_64__)
  if (isa == Isa::kAVX512) {
    avx512::dequantize_matmul(p, begin, end);
  } else {
    avx2::dequantize_matmul(p, begin, end);
  }
#endif
  return ok_status();
}

Status embedding_int8(const EmbeddingInt8Params& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.count);
  if (!status.ok() || p.dim == 0) return status;
  for (int64_t i = begin; i < end; ++i) {
    dequantize_row(p.q + p.ids[i] * p.dim, p.stats[p.ids[i]], p.dim,
                   element_address(p.output, p.output_dtype, i * p.dim), p.output_dtype);
  }
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
