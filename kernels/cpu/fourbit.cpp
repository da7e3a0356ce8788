// 4-bit quantize, dequantize and embedding on the CPU: chooses the kernel for the active
// instruction set.
#include "lowbit/kernels/fourbit.h"

#include <algorithm>

#include "scales.h"
#include "validate.h"

namespace lowbit::kernels::cpu {

Status quantize_4bit(const Quantize4bitParams& p, int64_t begin, int64_t end) noexcept {
  return ref::quantize_4bit(p, begin, end);
}

Status dequantize_4bit(const Dequantize4bitParams& p, int64_t begin, int64_t end) noexcept {
  return ref::dequantize_4bit(p, begin, end);
}

Status embedding_4bit(const Embedding4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.count);
  if (!status.ok()) return status;
  const float* table = code_table(p.quant_type, nullptr);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t d = 0; d < p.dim; ++d) {
      const int64_t i = p.ids[row] * p.dim + d;
      store_element(
          p.output, p.output_dtype, row * p.dim + d,
          multiply_flushed(table[code_at(p.packed, i)], block_scale(p.scales, i / p.blocksize)));
    }
  }
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
