// Products with a quantized weight, without the dispatcher: for models that run their own loop.
#pragma once

#include <ATen/core/Tensor.h>

#include "tensor/impl.h"

namespace lowbit::tensor {

/// input [..., K] * weight^T + bias for a quantized weight [N, K]: [..., N] of input's dtype.
/// Differentiable in input and bias.
inline at::Tensor linear(const at::Tensor& input, const at::Tensor& weight,
                         const at::Tensor& bias = {}) {
  const View view = required_view("lowbit::linear", weight);
  return view.transposed ? view->product(input) + bias : view->linear(input, bias);
}

/// Rows of a quantized table [rows, dim], in the table's dtype: ids.shape + [dim].
inline at::Tensor embedding(const at::Tensor& ids, const at::Tensor& table) {
  return required_view("lowbit::embedding", table)->embedding(ids, table.scalar_type());
}

}  // namespace lowbit::tensor
