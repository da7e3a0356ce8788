// Which way a call of the hot path takes: straight to the kernels, or through the dispatcher.
#include "ops/linear.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "lowbit/kernels/types.h"
#include "ops/check.h"
#include "ops/device.h"
#include "ops/direct.h"
#include "ops/dispatch.h"
#include "ops/grouped_mm.h"

namespace lowbit::ops {
namespace {

// Anything but a plain CPU or CUDA tensor outside of tracing, functional transforms and modes needs
// the dispatcher.
bool is_plain(const at::Tensor& tensor) {
  constexpr c10::DispatchKeySet kHarmless =
      c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                           c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::BackendSelect}) |
      c10::autocast_dispatch_keyset;
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  const c10::DispatchKeySet keys = (tensor.key_set() | local.included_) - local.excluded_;
  // A difference of key sets keeps the backends, which is_cpu() and is_cuda() have answered.
  const bool has_kernels = tensor.is_cpu() || (kHasCuda && tensor.is_cuda());
  return has_kernels && ((keys - kHarmless).raw_repr() & ~c10::full_backend_mask) == 0;
}

bool needs_graph(const at::Tensor& input, const at::Tensor& bias) {
  return at::GradMode::is_enabled() &&
         (input.requires_grad() || (bias.defined() && bias.requires_grad())) &&
         !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutogradCPU);
}

bool is_direct(const at::Tensor& input, const at::Tensor& bias = {}) {
  return is_plain(input) && !needs_graph(input, bias);
}

}  // namespace

at::Tensor linear_4bit(const at::Tensor& input, const Weight4bit& weight, const at::Tensor& bias) {
  if (is_direct(input, bias)) {
    return direct::linear_4bit("lowbit::linear_4bit", "input", input, weight, bias);
  }
  return dispatch::linear_4bit(input, weight, bias);
}

c10::SmallVector<at::Tensor, 4> linear_4bit_group(const at::Tensor& input,
                                                  c10::ArrayRef<const Weight4bit*> weights,
                                                  c10::ArrayRef<at::Tensor> biases) {
  LOWBIT_CHECK(biases.size() == weights.size(), "lowbit::linear_4bit_group", "biases",
               c10::str(weights.size(), " tensors"), biases.size());
  c10::SmallVector<at::Tensor, 4> outputs(weights.size());
  const bool direct = std::all_of(biases.begin(), biases.end(),
                                  [&](const at::Tensor& bias) { return is_direct(input, bias); });
  if (direct) {
    direct::linear_4bit_group(input, weights, biases, outputs.data());
    return outputs;
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    outputs[i] = dispatch::linear_4bit(input, *weights[i], biases[i]);
  }
  return outputs;
}

at::Tensor grouped_mm_4bit(const at::Tensor& input, const Stack4bit& stack,
                           const at::Tensor& offs) {
  if (is_direct(input) && is_plain(offs)) return direct::grouped_mm_4bit(input, stack, offs);
  return dispatch::grouped_mm_4bit(input, stack, offs);
}

at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const Stack4bit& stack,
                                          const at::Tensor& offs) {
  if (is_direct(grad_output) && is_plain(offs)) {
    return direct::grouped_mm_4bit_backward_input(grad_output, stack, offs);
  }
  return dispatch::grouped_mm_4bit_backward_input(grad_output, stack, offs);
}

at::Tensor linear_8bit(const at::Tensor& input, const Weight8bit& weight, const at::Tensor& bias,
                       double threshold) {
  if (is_direct(input, bias)) return direct::linear_8bit(input, weight, bias, threshold);
  return dispatch::linear_8bit(input, weight, bias, threshold);
}

at::Tensor linear_8bit_weight_only(const at::Tensor& input, const Weight8bit& weight,
                                   const at::Tensor& bias) {
  if (is_direct(input, bias)) return direct::linear_8bit_weight_only(input, weight, bias);
  return dispatch::linear_8bit_weight_only(input, weight, bias);
}

at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const Weight4bit& weight) {
  if (is_direct(grad_output)) return direct::linear_4bit_backward_input(grad_output, weight);
  return dispatch::linear_4bit_backward_input(grad_output, weight);
}

at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const Weight8bit& weight) {
  if (is_direct(grad_output)) return direct::linear_8bit_backward_input(grad_output, weight);
  return dispatch::linear_8bit_backward_input(grad_output, weight);
}

at::Tensor embedding_4bit(const at::Tensor& ids, const Weight4bit& table, at::ScalarType dtype) {
  if (is_plain(ids)) return direct::embedding_4bit(ids, table, dtype);
  return dispatch::embedding_4bit(ids, table, dtype);
}

at::Tensor embedding_8bit(const at::Tensor& ids, const Weight8bit& table, at::ScalarType dtype) {
  if (is_plain(ids)) return direct::embedding_8bit(ids, table, dtype);
  return dispatch::embedding_8bit(ids, table, dtype);
}

at::Tensor dequantize_4bit(const Weight4bit& weight, at::ScalarType dtype) {
  if (is_plain(weight.packed)) return direct::dequantize_4bit(weight, dtype);
  at::Tensor absmax = weight.absmax;
  if (weight.nested()) {
    absmax = dispatch::dequantize_blockwise(weight.absmax_8bit, absmax, weight.absmax_code,
                                            kernels::kNestedBlocksize, at::kFloat) +
             weight.absmax_offset;
  }
  return dispatch::dequantize_4bit(weight.packed, absmax, weight.blocksize, weight.quant_type,
                                   {weight.rows, weight.cols}, dtype);
}

at::Tensor dequantize_8bit(const Weight8bit& weight, at::ScalarType dtype) {
  if (is_plain(weight.q)) return direct::dequantize_8bit(weight, dtype);
  return dispatch::int8_vectorwise_dequant(weight.q, weight.stats).to(dtype);
}

}  // namespace lowbit::ops
