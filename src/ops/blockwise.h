// Checks of the block-wise 8-bit ops (any device).
#pragma once

#include "ops/check.h"

namespace lowbit::ops {

inline void check_code(const char* op, const at::Tensor& code, at::Device device) {
  check_device(op, "code", code, device);
  check_dtype(op, "code", code, at::kFloat);
  check_numel(op, "code", code, 256);
}

inline void check_quantize_blockwise(const char* op, const at::Tensor& A, const at::Tensor& code,
                                     int64_t blocksize) {
  check_float(op, "A", A);
  check_code(op, code, A.device());
  LOWBIT_CHECK(blocksize > 0, op, "blocksize", "positive", blocksize);
}

inline void check_dequantize_blockwise(const char* op, const at::Tensor& A,
                                       const at::Tensor& absmax, const at::Tensor& code,
                                       int64_t blocksize, at::ScalarType dtype) {
  check_dtype(op, "A", A, at::kByte);
  check_device(op, "absmax", absmax, A.device());
  check_dtype(op, "absmax", absmax, at::kFloat);
  check_code(op, code, A.device());
  LOWBIT_CHECK(blocksize > 0, op, "blocksize", "positive", blocksize);
  check_float(op, "dtype", dtype);
}

}  // namespace lowbit::ops
