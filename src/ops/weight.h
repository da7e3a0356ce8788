// Building and checking the operands of the fused ops.
#pragma once

#include <string_view>

#include "lowbit/kernels/fourbit.h"
#include "ops/linear.h"

namespace lowbit::ops {

void check_blocksize(const char* op, int64_t blocksize);
QuantType check_quant_type(const char* op, std::string_view quant_type);
/// What packed bytes may be viewed as: uint8, int8, or a float dtype of 2, 4 or 8 bytes.
void check_storage(const char* op, at::ScalarType storage);
/// Sizes not negative, their product representable. Returns the product.
int64_t check_shape(const char* op, const char* argument, at::IntArrayRef shape);
/// As many bytes as `numel` codes need, rounded up to packed's dtype.
void check_packed(const char* op, const char* argument, const at::Tensor& packed, int64_t numel);

/// Undefined tensors: not nested.
Weight4bit make_weight_4bit(const char* op, const char* argument, const at::Tensor& packed,
                            at::IntArrayRef shape, const at::Tensor& absmax, int64_t blocksize,
                            QuantType quant_type, const at::Tensor& absmax_8bit,
                            const at::Tensor& absmax_code, const at::Tensor& absmax_offset);
Weight8bit make_weight_8bit(const char* op, const at::Tensor& q, const at::Tensor& stats);

inline kernels::QuantType kernel_type(QuantType type) {
  return type == QuantType::kNF4 ? kernels::QuantType::kNF4 : kernels::QuantType::kFP4;
}
inline const uint8_t* packed_bytes(const Weight4bit& w) {
  return static_cast<const uint8_t*>(w.packed.const_data_ptr());
}
inline kernels::BlockScales block_scales(const Weight4bit& w) {
  if (!w.nested()) return {.absmax = static_cast<const float*>(w.absmax.const_data_ptr())};
  return {.absmax_8bit = static_cast<const uint8_t*>(w.absmax_8bit.const_data_ptr()),
          .absmax_code = static_cast<const float*>(w.absmax_code.const_data_ptr()),
          .absmax2 = static_cast<const float*>(w.absmax.const_data_ptr()),
          .absmax_offset = static_cast<const float*>(w.absmax_offset.const_data_ptr())};
}

}  // namespace lowbit::ops
