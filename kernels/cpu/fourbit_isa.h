// 4-bit kernels of each instruction set. They expect FlushMode, checked arguments and, for
// `quantize`, whole blocks.
#pragma once

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cpu {

namespace avx2 {
/// Blocks [begin, end).
void quantize_4bit(const Quantize4bitParams& params, int64_t begin, int64_t end) noexcept;
/// Elements [first, last) of the flat weight to output[0 ..), which takes the place of
/// params.output.
void dequantize_4bit(const Dequantize4bitParams& params, int64_t first, int64_t last,
                     void* output) noexcept;
}  // namespace avx2

namespace avx512 {
void quantize_4bit(const Quantize4bitParams& params, int64_t begin, int64_t end) noexcept;
void dequantize_4bit(const Dequantize4bitParams& params, int64_t first, int64_t last,
                     void* output) noexcept;
}  // namespace avx512

}  // namespace lowbit::kernels::cpu
