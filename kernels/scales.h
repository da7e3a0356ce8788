// Reading the scale of a block and the code of an element, for scalar code.
#pragma once

#include "codebook.h"
#include "lowbit/kernels/fourbit.h"
#include "scalar.h"

namespace lowbit::kernels {

/// Two roundings, as the formula says: not a fused multiply-add.
static inline float block_scale(const BlockScales& scales, int64_t block) {
  if (!scales.nested()) return scales.absmax[block];
  const float product = multiply_flushed(scales.absmax_code[scales.absmax_8bit[block]],
                                         scales.absmax2[block / kNestedBlocksize]);
  return flush(product + *scales.absmax_offset);
}

static inline const float* code_table(QuantType quant_type, const float* code) {
  if (code != nullptr) return code;
  return quant_type == QuantType::kNF4 ? codebook::kNf4 : codebook::kFp4;
}

/// Code of flat element i: the first of a pair sits in the high nibble.
static inline int code_at(const uint8_t* packed, int64_t i) {
  return (i & 1) != 0 ? packed[i >> 1] & 15 : packed[i >> 1] >> 4;
}

}  // namespace lowbit::kernels
