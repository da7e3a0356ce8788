// Block-wise 8-bit quantize and dequantize on the CPU: chooses the kernel for the active
// instruction set.
#include "lowbit/kernels/blockwise.h"

namespace lowbit::kernels::cpu {

Status quantize_blockwise(const QuantizeBlockwiseParams& p, int64_t begin, int64_t end) noexcept {
  return ref::quantize_blockwise(p, begin, end);
}

Status dequantize_blockwise(const DequantizeBlockwiseParams& p, int64_t begin,
                            int64_t end) noexcept {
  return ref::dequantize_blockwise(p, begin, end);
}

}  // namespace lowbit::kernels::cpu
