// LLM.int8() training: the weight in floating point, quantized anew for every product.
#pragma once

#include <ATen/core/Tensor.h>

namespace lowbit::nn {

/// x [..., K] times weight [N, K] through row-wise int8, plus bias. Differentiable in all three:
/// the quantized weight gives x's gradient, the exact input gives the weight's.
at::Tensor linear_fp16_weights(const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias, double threshold);

}  // namespace lowbit::nn
