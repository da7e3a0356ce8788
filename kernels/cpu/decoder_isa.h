// The entries of each instruction set's decoder kernels; decoder.cpp has checked the arguments.
#pragma once

#include "lowbit/kernels/decoder.h"

#define LOWBIT_DECODER_ENTRIES                                                                 \
  Status rms_norm(const RmsNormParams& params, int64_t begin, int64_t end) noexcept;           \
  Status rotary_append(const RotaryAppendParams& params, int64_t begin, int64_t end) noexcept; \
  Status attention(const AttentionParams& params, int64_t begin, int64_t end) noexcept;        \
  Status silu_mul(const SiluMulParams& params, int64_t begin, int64_t end) noexcept;           \
  Status linear_dense(const LinearDenseParams& params, int64_t begin, int64_t end) noexcept;   \
  Status widen(const WidenParams& params, int64_t begin, int64_t end) noexcept;

namespace lowbit::kernels {
namespace avx2 {
LOWBIT_DECODER_ENTRIES
}
namespace avx512 {
LOWBIT_DECODER_ENTRIES
}
}  // namespace lowbit::kernels
