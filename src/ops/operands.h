// Checks of activations, biases and ids that the linear and embedding ops share (any device).
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/check.h"

namespace lowbit::ops {

/// `input`: [..., width], a float dtype, on the weight's device.
inline void check_activations(const char* op, const char* argument, const at::Tensor& input,
                              const c10::SymInt& width, at::Device device) {
  check_float(op, argument, input);
  check_device(op, argument, input, device);
  LOWBIT_CHECK(input.dim() >= 1, op, argument, c10::str("[..., ", width, "]"), "a 0-dim tensor");
  LOWBIT_CHECK(input.sym_size(-1) == width, op, argument, c10::str("[..., ", width, "]"),
               c10::str("shape ", input.sym_sizes()));
}

/// `bias`: undefined, or [length], any float dtype.
inline void check_bias(const char* op, const at::Tensor& bias, const c10::SymInt& length,
                       at::Device device) {
  if (!bias.defined()) return;
  check_float(op, "bias", bias);
  check_device(op, "bias", bias, device);
  LOWBIT_CHECK(bias.dim() == 1 && bias.sym_size(0) == length, op, "bias",
               c10::str("[", length, "]"), c10::str("shape ", bias.sym_sizes()));
}

/// `ids`: int64 or int32, any shape, on the table's device.
inline void check_ids(const char* op, const at::Tensor& ids, at::Device device) {
  LOWBIT_CHECK(ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt, op, "ids",
               "int64 or int32", dtype_name(ids.scalar_type()));
  check_device(op, "ids", ids, device);
}

/// ids as contiguous int64, each in [0, rows). CUDA ids are not read on the host, which would wait
/// for the device: the kernels answer one outside with a row of NaN.
at::Tensor checked_ids(const char* op, const at::Tensor& ids, int64_t rows);

/// `out` of the ops that write into a given tensor.
void check_out(const char* op, const at::Tensor& out, c10::SymIntArrayRef sizes,
               at::ScalarType dtype, at::Device device);
inline void check_out(const char* op, const at::Tensor& out, at::IntArrayRef sizes,
                      at::ScalarType dtype, at::Device device) {
  check_out(op, out, c10::fromIntArrayRefSlow(sizes), dtype, device);
}

}  // namespace lowbit::ops
