#include "nn/linear_fp16_weights.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lowbit/functional.h"
#include "ops/linear.h"

namespace lowbit::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

ops::Weight8bit quantized(const at::Tensor& weight) {
  const auto [codes, stats, outliers] = int8_vectorwise_quant(weight.detach().to(at::kHalf));
  return ops::Weight8bit::make(codes, stats);
}

struct LinearFp16Weights : torch::autograd::Function<LinearFp16Weights> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, double threshold) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const ops::Weight8bit w = quantized(weight);
    ctx->save_for_backward({ctx->needs_input_grad(1) ? x : at::Tensor(), w.q, w.stats});
    ctx->saved_data["weight_dtype"] = static_cast<int64_t>(weight.scalar_type());
    if (bias) ctx->saved_data["bias_dtype"] = static_cast<int64_t>(bias->scalar_type());
    return ops::linear_8bit(x, w, bias.value_or(at::Tensor()), threshold);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const at::Tensor& grad = grads[0];
    const variable_list saved = ctx->get_saved_variables();
    const auto dtype = [&](const char* key) {
      return static_cast<at::ScalarType>(ctx->saved_data[key].toInt());
    };
    at::Tensor grad_x, grad_weight, grad_bias;
    if (ctx->needs_input_grad(0)) {
      grad_x = ops::linear_8bit_backward_input(grad, {saved[1], saved[2]});
    }
    const at::Tensor rows = grad.reshape({-1, grad.size(-1)});
    if (ctx->needs_input_grad(1)) {
      grad_weight =
          rows.t().mm(saved[0].reshape({-1, saved[0].size(-1)})).to(dtype("weight_dtype"));
    }
    if (ctx->saved_data.count("bias_dtype") != 0 && ctx->needs_input_grad(2)) {
      grad_bias = rows.sum(0, /*keepdim=*/false, dtype("bias_dtype"));
    }
    return {grad_x, grad_weight, grad_bias, at::Tensor()};
  }
};

}  // namespace

at::Tensor linear_fp16_weights(const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias, double threshold) {
  const auto optional_bias = bias.defined() ? std::optional(bias) : std::nullopt;
  return LinearFp16Weights::apply(x, weight, optional_bias, threshold);
}

}  // namespace lowbit::nn
