// Gradients: of the linear layers, to the input and the bias. A quantized weight has none. What is
// not differentiable by nature (quantizers) returns tensors without a graph; what has no formula
// here raises in backward.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/dispatch.h"
#include "ops/grouped_mm.h"
#include "ops/rows.h"
#include "ops/weight.h"

namespace lowbit::ops {
namespace {
namespace autograd {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor bias_gradient(const at::Tensor& grad, at::ScalarType dtype) {
  if (grad.dim() == 1) return grad.to(dtype);
  at::DimVector leading(grad.dim() - 1);
  std::iota(leading.begin(), leading.end(), 0);
  return grad.sum(leading, /*keepdim=*/false, dtype);
}

void save_bias(AutogradContext* ctx, const OptionalTensor& bias) {
  if (bias.has_value()) ctx->saved_data["bias_dtype"] = static_cast<int64_t>(bias->scalar_type());
}

at::Tensor saved_bias_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  const auto dtype = ctx->saved_data.find("bias_dtype");
  if (dtype == ctx->saved_data.end() || !ctx->needs_input_grad(1)) return {};
  return bias_gradient(grad, static_cast<at::ScalarType>(dtype->second.toInt()));
}

// ---- 4-bit ----

void save(AutogradContext* ctx, const Weight4bit& w, const at::Tensor& offs = {}) {
  ctx->save_for_backward({w.packed, w.absmax, w.absmax_8bit, w.absmax_code, w.absmax_offset, offs});
  ctx->saved_data["sizes"] = std::vector<int64_t>{w.rows, w.cols, w.blocksize};
  ctx->saved_data["quant_type"] = static_cast<int64_t>(w.quant_type);
}

Weight4bit saved_weight_4bit(AutogradContext* ctx) {
  const variable_list saved = ctx->get_saved_variables();
  const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
  return {saved[0], sizes[0], sizes[1],
          saved[1], sizes[2], static_cast<QuantType>(ctx->saved_data["quant_type"].toInt()),
          saved[2], saved[3], saved[4]};
}

Weight4bit weight_of(const char* op, const at::Tensor& weight, at::IntArrayRef shape,
                     const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                     const OptionalTensor& absmax_8bit, const OptionalTensor& absmax_code,
                     const OptionalTensor& absmax_offset) {
  LOWBIT_CHECK(shape.size() == 2, op, "shape", "[out_features, in_features]", shape);
  return {weight,
          shape[0],
          shape[1],
          absmax,
          blocksize,
          check_quant_type(op, quant_type),
          value_or_undefined(absmax_8bit),
          value_or_undefined(absmax_code),
          value_or_undefined(absmax_offset)};
}

struct Linear4bit : torch::autograd::Function<Linear4bit> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input,
                            const OptionalTensor& bias, const Weight4bit& weight) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, weight);
    save_bias(ctx, bias);
    return dispatch::linear_4bit(input, weight, value_or_undefined(bias));
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    at::Tensor grad_input;
    if (ctx->needs_input_grad(0)) {
      grad_input = dispatch::linear_4bit_backward_input(grads[0], saved_weight_4bit(ctx));
    }
    return {grad_input, saved_bias_gradient(ctx, grads[0]), {}};
  }
};

struct Linear4bitBackwardInput : torch::autograd::Function<Linear4bitBackwardInput> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output,
                            const Weight4bit& weight) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, weight);
    return dispatch::linear_4bit_backward_input(grad_output, weight);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {dispatch::linear_4bit(grads[0], saved_weight_4bit(ctx), {}), {}};
  }
};

at::Tensor linear_4bit(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef shape,
                       const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                       const OptionalTensor& bias, const OptionalTensor& absmax_8bit,
                       const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  return Linear4bit::apply(input, bias,
                           weight_of("lowbit::linear_4bit", weight, shape, absmax, blocksize,
                                     quant_type, absmax_8bit, absmax_code, absmax_offset));
}

at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                      at::IntArrayRef shape, const at::Tensor& absmax,
                                      int64_t blocksize, std::string_view quant_type,
                                      const OptionalTensor& absmax_8bit,
                                      const OptionalTensor& absmax_code,
                                      const OptionalTensor& absmax_offset) {
  return Linear4bitBackwardInput::apply(
      grad_output, weight_of("lowbit::linear_4bit_backward_input", weight, shape, absmax, blocksize,
                             quant_type, absmax_8bit, absmax_code, absmax_offset));
}

struct GroupedMm4bit : torch::autograd::Function<GroupedMm4bit> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const Stack4bit& stack,
                            const at::Tensor& offs, bool backward) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, stack.weight, offs);
    ctx->saved_data["experts"] = stack.experts;
    ctx->saved_data["backward"] = backward;
    return backward ? dispatch::grouped_mm_4bit_backward_input(input, stack, offs)
                    : dispatch::grouped_mm_4bit(input, stack, offs);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Stack4bit stack{saved_weight_4bit(ctx), ctx->saved_data["experts"].toInt()};
    const at::Tensor offs = ctx->get_saved_variables().back();
    return {ctx->saved_data["backward"].toBool()
                ? dispatch::grouped_mm_4bit(grads[0], stack, offs)
                : dispatch::grouped_mm_4bit_backward_input(grads[0], stack, offs),
            {},
            {},
            {}};
  }
};

Stack4bit stack_of(const char* op, const at::Tensor& weight, at::IntArrayRef shape,
                   const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                   const OptionalTensor& absmax_8bit, const OptionalTensor& absmax_code,
                   const OptionalTensor& absmax_offset) {
  return {weight_of(op, weight, stack_shape(op, "shape", shape), absmax, blocksize, quant_type,
                    absmax_8bit, absmax_code, absmax_offset),
          shape[0]};
}

at::Tensor grouped_mm_4bit(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef shape,
                           const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                           const at::Tensor& offs, const OptionalTensor& absmax_8bit,
                           const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  return GroupedMm4bit::apply(input,
                              stack_of("lowbit::grouped_mm_4bit", weight, shape, absmax, blocksize,
                                       quant_type, absmax_8bit, absmax_code, absmax_offset),
                              offs, false);
}

at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                          at::IntArrayRef shape, const at::Tensor& absmax,
                                          int64_t blocksize, std::string_view quant_type,
                                          const at::Tensor& offs, const OptionalTensor& absmax_8bit,
                                          const OptionalTensor& absmax_code,
                                          const OptionalTensor& absmax_offset) {
  return GroupedMm4bit::apply(
      grad_output,
      stack_of("lowbit::grouped_mm_4bit_backward_input", weight, shape, absmax, blocksize,
               quant_type, absmax_8bit, absmax_code, absmax_offset),
      offs, true);
}

// ---- 8-bit ----

void save(AutogradContext* ctx, const Weight8bit& w) { ctx->save_for_backward({w.q, w.stats}); }

Weight8bit saved_weight_8bit(AutogradContext* ctx) {
  const variable_list saved = ctx->get_saved_variables();
  return {saved[0], saved[1]};
}

// Activations' quantization is passed through (straight-through estimator), as LLM.int8() trains
// adapters.
template <bool kWeightOnly>
struct Linear8bit : torch::autograd::Function<Linear8bit<kWeightOnly>> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input,
                            const OptionalTensor& bias, const Weight8bit& weight,
                            double threshold) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, weight);
    save_bias(ctx, bias);
    const at::Tensor& b = value_or_undefined(bias);
    return kWeightOnly ? dispatch::linear_8bit_weight_only(input, weight, b)
                       : dispatch::linear_8bit(input, weight, b, threshold);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    at::Tensor grad_input;
    if (ctx->needs_input_grad(0)) {
      grad_input = dispatch::linear_8bit_backward_input(grads[0], saved_weight_8bit(ctx));
    }
    return {grad_input, saved_bias_gradient(ctx, grads[0]), {}, {}};
  }
};

struct Linear8bitBackwardInput : torch::autograd::Function<Linear8bitBackwardInput> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output,
                            const Weight8bit& weight) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    save(ctx, weight);
    return dispatch::linear_8bit_backward_input(grad_output, weight);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Weight8bit weight = saved_weight_8bit(ctx);
    return {dispatch::linear_8bit_weight_only(grads[0], weight, {}), {}};
  }
};

at::Tensor linear_8bit(const at::Tensor& input, const at::Tensor& CB, const at::Tensor& SCB,
                       const OptionalTensor& bias, double threshold) {
  return Linear8bit<false>::apply(input, bias, Weight8bit{CB, SCB}, threshold);
}

at::Tensor linear_8bit_weight_only(const at::Tensor& input, const at::Tensor& CB,
                                   const at::Tensor& SCB, const OptionalTensor& bias) {
  return Linear8bit<true>::apply(input, bias, Weight8bit{CB, SCB}, 0.0);
}

at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const at::Tensor& CB,
                                      const at::Tensor& SCB) {
  return Linear8bitBackwardInput::apply(grad_output, Weight8bit{CB, SCB});
}

}  // namespace autograd
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, Autograd, m) {
  namespace autograd = lowbit::ops::autograd;
  m.impl("linear_4bit", &autograd::linear_4bit);
  m.impl("linear_4bit_backward_input", &autograd::linear_4bit_backward_input);
  m.impl("grouped_mm_4bit", &autograd::grouped_mm_4bit);
  m.impl("grouped_mm_4bit_backward_input", &autograd::grouped_mm_4bit_backward_input);
  m.impl("linear_8bit", &autograd::linear_8bit);
  m.impl("linear_8bit_weight_only", &autograd::linear_8bit_weight_only);
  m.impl("linear_8bit_backward_input", &autograd::linear_8bit_backward_input);
  for (const char* op : {"quantize_4bit", "quantize_blockwise", "int8_rowwise_quant",
                         "int8_colwise_quant", "int8_linear_matmul", "int8_linear_matmul.out"}) {
    m.impl(op, torch::CppFunction::makeFallthrough());
  }
  for (const char* op : {"dequantize_4bit", "dequantize_4bit.out", "gemm_4bit", "gemv_4bit",
                         "gemv_4bit.out", "dequantize_blockwise", "dequantize_blockwise.out",
                         "int8_vectorwise_dequant", "int8_mm_dequant", "int8_scaled_mm",
                         "int8_mixed_scaled_mm", "embedding_4bit", "embedding_8bit"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}
