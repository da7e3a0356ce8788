// LLM.int8() statistics, quantize, dequantize and embedding on the CPU: chooses the kernel for the
// active set.
#include "lowbit/kernels/int8.h"

#include "int8_scalar.h"
#include "validate.h"

namespace lowbit::kernels::cpu {

Status quantize_rowwise(const QuantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  return ref::quantize_rowwise(p, begin, end);
}

Status zero_outlier_columns(const QuantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.rows);
  if (!status.ok()) return status;
  if (p.outlier_columns == nullptr) return ok_status();
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < p.cols; ++c) {
      if (p.outlier_columns[c] != 0) p.q[r * p.cols + c] = 0;
    }
  }
  return ok_status();
}

Status quantize_colwise(const QuantizeColwiseParams& p, int64_t begin, int64_t end) noexcept {
  return ref::quantize_colwise(p, begin, end);
}

Status dequantize_rowwise(const DequantizeRowwiseParams& p, int64_t begin, int64_t end) noexcept {
  return ref::dequantize_rowwise(p, begin, end);
}

Status dequantize_matmul(const DequantizeMatmulParams& p, int64_t begin, int64_t end) noexcept {
  return ref::dequantize_matmul(p, begin, end);
}

Status embedding_int8(const EmbeddingInt8Params& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.count);
  if (!status.ok()) return status;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t id = p.ids[i];
    const DequantizeRowwiseParams row{p.q + id * p.dim,
                                      p.stats + id,
                                      1,
                                      p.dim,
                                      element_address(p.output, p.output_dtype, i * p.dim),
                                      p.output_dtype};
    const Status done = dequantize_rowwise(row, 0, 1);
    if (!done.ok()) return done;
  }
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
