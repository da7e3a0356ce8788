// The hot path: what a layer calls for every token. Straight to the kernels when no gradient is
// wanted, without the dispatcher and without checking again what was checked when the weight was
// made.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <optional>

#include "lowbit/quant_state.h"

namespace lowbit::ops {

/// A 4-bit weight [rows, cols] as the kernels read it. Nested statistics are kept compressed.
struct Weight4bit {
  at::Tensor packed = {};  ///< canonical bytes, contiguous, any dtype
  int64_t rows = 0, cols = 0;
  at::Tensor absmax = {};  ///< float32: the scales, or the second-level scales when nested
  int64_t blocksize = 64;
  QuantType quant_type = QuantType::kNF4;
  at::Tensor absmax_8bit = {}, absmax_code = {}, absmax_offset = {};  ///< undefined unless nested

  bool nested() const { return absmax_8bit.defined(); }
  /// Checks dtypes, devices and lengths. The state must be 2-D (use `rows`, `cols` to view a stack
  /// of matrices).
  static Weight4bit make(const at::Tensor& packed, const QuantState& state);
};

/// A row-wise int8 weight [rows, cols].
struct Weight8bit {
  at::Tensor q;      ///< int8 [rows, cols], contiguous
  at::Tensor stats;  ///< float32 [rows], row absmax
  static Weight8bit make(const at::Tensor& q, const at::Tensor& stats);
};

/// input [..., K] * W^T + bias: [..., N] of input's dtype. Differentiable in input and bias: with
/// grad mode on and either of them requiring grad it records the graph, otherwise it runs the
/// kernels and nothing else.
at::Tensor linear_4bit(const at::Tensor& input, const Weight4bit& weight,
                       const at::Tensor& bias = {});
/// Several weights of the same width over one input (query, key and value; gate and up): the input
/// is prepared once and threads fork once. biases: one per weight, undefined where there is none.
/// Differentiable like linear_4bit.
c10::SmallVector<at::Tensor, 4> linear_4bit_group(const at::Tensor& input,
                                                  c10::ArrayRef<const Weight4bit*> weights,
                                                  c10::ArrayRef<at::Tensor> biases);
/// LLM.int8(): activations quantized by rows, outliers of at least `threshold` kept in floating
/// point.
at::Tensor linear_8bit(const at::Tensor& input, const Weight8bit& weight,
                       const at::Tensor& bias = {}, double threshold = 0.0);
/// Activations kept in floating point.
at::Tensor linear_8bit_weight_only(const at::Tensor& input, const Weight8bit& weight,
                                   const at::Tensor& bias = {});

/// grad_output [..., N] * W: [..., K]. Also the product with an untransposed weight.
at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const Weight4bit& weight);
at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const Weight8bit& weight);

/// Rows of the table: ids (int64 or int32, any shape) -> ids.shape + [cols], `dtype`.
at::Tensor embedding_4bit(const at::Tensor& ids, const Weight4bit& table, at::ScalarType dtype);
at::Tensor embedding_8bit(const at::Tensor& ids, const Weight8bit& table, at::ScalarType dtype);

/// The whole weight, [rows, cols].
at::Tensor dequantize_4bit(const Weight4bit& weight, at::ScalarType dtype);
at::Tensor dequantize_8bit(const Weight8bit& weight, at::ScalarType dtype);

}  // namespace lowbit::ops
