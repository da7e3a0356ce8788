// LLM.int8() kernels of each instruction set. They expect checked arguments. Units as in
// lowbit/kernels/int8.h.
#pragma once

#include "lowbit/kernels/int8.h"

namespace lowbit::kernels::cpu {

namespace avx2 {
/// threshold: rounded to float16, 0 for none.
void quantize_rowwise(const QuantizeRowwiseParams& params, float threshold, int64_t begin,
                      int64_t end) noexcept;
void quantize_colwise(const QuantizeColwiseParams& params, float threshold, int64_t begin,
                      int64_t end) noexcept;
/// One row of q and its statistic to output.
void dequantize_row(const int8_t* q, float stat, int64_t cols, void* output,
                    DType output_dtype) noexcept;
void dequantize_matmul(const DequantizeMatmulParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace avx2

namespace avx512 {
void quantize_rowwise(const QuantizeRowwiseParams& params, float threshold, int64_t begin,
                      int64_t end) noexcept;
void quantize_colwise(const QuantizeColwiseParams& params, float threshold, int64_t begin,
                      int64_t end) noexcept;
void dequantize_row(const int8_t* q, float stat, int64_t cols, void* output,
                    DType output_dtype) noexcept;
void dequantize_matmul(const DequantizeMatmulParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace avx512

}  // namespace lowbit::kernels::cpu
