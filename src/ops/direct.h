// The kernels on plain operands, on their device: memory, and checks of what depends on the
// activations. No graph is recorded.
#pragma once

#include <tuple>

#include "ops/linear.h"

namespace lowbit::ops::direct {

/// `code`: 16 values that replace the table of the type, or null.
/// `op` and `argument` (the activations' name there) are for errors.
at::Tensor linear_4bit(const char* op, const char* argument, const at::Tensor& input,
                       const Weight4bit& weight, const at::Tensor& bias,
                       const float* code = nullptr);
/// One output per weight.
void linear_4bit_group(const at::Tensor& input, c10::ArrayRef<const Weight4bit*> weights,
                       c10::ArrayRef<at::Tensor> biases, at::Tensor* outputs);
at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const Weight4bit& weight);
at::Tensor embedding_4bit(const at::Tensor& ids, const Weight4bit& table, at::ScalarType dtype);
at::Tensor dequantize_4bit(const Weight4bit& weight, at::ScalarType dtype);

at::Tensor linear_8bit(const at::Tensor& input, const Weight8bit& weight, const at::Tensor& bias,
                       double threshold);
at::Tensor linear_8bit_weight_only(const at::Tensor& input, const Weight8bit& weight,
                                   const at::Tensor& bias);
at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const Weight8bit& weight);
at::Tensor embedding_8bit(const at::Tensor& ids, const Weight8bit& table, at::ScalarType dtype);
at::Tensor dequantize_8bit(const Weight8bit& weight, at::ScalarType dtype);

}  // namespace lowbit::ops::direct
