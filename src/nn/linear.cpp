#include "lowbit/nn/linear.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/nn/init.h>

#include <cmath>
#include <ostream>

#include "nn/linear_fp16_weights.h"
#include "nn/quantize.h"
#include "ops/check.h"
#include "tensor/linear.h"

namespace lowbit::nn {
namespace {

constexpr int kUnset = -1;

const char* yes_no(bool value) { return value ? "true" : "false"; }

void check_sizes(const char* op, int64_t in_features, int64_t out_features) {
  LOWBIT_CHECK(in_features > 0, op, "in_features", "positive", in_features);
  LOWBIT_CHECK(out_features > 0, op, "out_features", "positive", out_features);
}

/// As torch::nn::Linear draws them.
at::Tensor drawn_weight(int64_t out_features, int64_t in_features, at::ScalarType dtype) {
  at::Tensor weight = at::empty({out_features, in_features}, dtype);
  torch::nn::init::kaiming_uniform_(weight, std::sqrt(5.0));
  return weight;
}

void draw_bias(const at::Tensor& bias, int64_t in_features) {
  const at::NoGradGuard no_grad;
  const double bound = 1.0 / std::sqrt(static_cast<double>(in_features));
  bias.uniform_(-bound, bound);
}

void check_weight(const char* op, const at::Tensor& weight, int64_t rows, int64_t cols) {
  LOWBIT_CHECK(weight.dim() == 2 && weight.size(0) == rows && weight.size(1) == cols, op, "weight",
               c10::str("[", rows, ", ", cols, "]"), c10::str("shape ", weight.sizes()));
}

/// A layer whose weight was dequantized works as torch's own.
at::Tensor linear_of(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (is_quantized(weight)) return tensor::linear(x, weight, bias);
  return at::linear(x, weight.to(x.scalar_type()),
                    bias.defined() ? bias.to(x.scalar_type()) : bias);
}

/// How a weight [out_features, in_features] is put in place of another: members and parameter
/// dictionaries hold the same tensor.
void replace(const at::Tensor& weight, const at::Tensor& value) { tensor::become(weight, value); }

const char* name_of(const Linear4bitImpl*) { return "lowbit::nn::Linear4bit"; }
const char* name_of(const LinearNF4Impl*) { return "lowbit::nn::LinearNF4"; }
const char* name_of(const LinearFP4Impl*) { return "lowbit::nn::LinearFP4"; }

template <class Options>
Options sized_like(Options options, const torch::nn::Linear& linear) {
  const at::Tensor& weight = linear->weight;
  LOWBIT_CHECK(!is_quantized(weight), "lowbit::nn::from", "linear.weight", "a dense tensor",
               describe(weight));
  options.in_features(weight.size(1)).out_features(weight.size(0));
  options.bias(linear->bias.defined()).dtype(weight.scalar_type());
  return options;
}

template <class Holder, class Options>
Holder converted(const torch::nn::Linear& linear, const Options& options) {
  Holder layer(sized_like(options, linear));
  layer->quantize(linear->weight);
  if (linear->bias.defined()) {
    layer->bias.set_data(linear->bias.detach());
    layer->bias.set_requires_grad(linear->bias.requires_grad());
  }
  layer->train(linear->is_training());
  return layer;
}

}  // namespace

StickyDtype::StickyDtype(std::optional<at::ScalarType> dtype)
    : value_(dtype ? static_cast<int>(*dtype) : kUnset) {}

at::ScalarType StickyDtype::resolve(at::ScalarType dtype) {
  int value = value_.load(std::memory_order_relaxed);
  if (value != kUnset) return static_cast<at::ScalarType>(value);
  if (dtype != at::kFloat && dtype != at::kBFloat16) return dtype;
  return value_.compare_exchange_strong(value, static_cast<int>(dtype))
             ? dtype
             : static_cast<at::ScalarType>(value);
}

// ---- 4-bit ----

template <class Derived>
Linear4bitBase<Derived>::Linear4bitBase(const Linear4bitOptions& options)
    : options(options), compute_dtype_(options.compute_dtype()) {
  Linear4bitBase::reset();
}

template <class Derived>
void Linear4bitBase<Derived>::reset() {
  const char* op = name_of(static_cast<Derived*>(nullptr));
  check_sizes(op, options.in_features(), options.out_features());
  parse_quant_type(options.quant_type());
  ops::check_float(op, "dtype", options.dtype());
  weight = this->register_parameter(
      "weight",
      quantize_named(op, "weight",
                     drawn_weight(options.out_features(), options.in_features(), options.dtype()),
                     quantization_config()),
      /*requires_grad=*/false);
  bias = options.bias() ? this->register_parameter(
                              "bias", at::empty({options.out_features()}, options.dtype()))
                        : this->register_parameter("bias", {}, /*requires_grad=*/false);
  if (bias.defined()) draw_bias(bias, options.in_features());
}

template <class Derived>
void Linear4bitBase<Derived>::reset_parameters() {
  quantize(drawn_weight(options.out_features(), options.in_features(), options.dtype()));
  if (bias.defined()) draw_bias(bias, options.in_features());
}

template <class Derived>
void Linear4bitBase<Derived>::pretty_print(std::ostream& stream) const {
  stream << name_of(static_cast<const Derived*>(nullptr))
         << "(in_features=" << options.in_features() << ", out_features=" << options.out_features()
         << ", bias=" << yes_no(options.bias()) << ", " << scheme_text(quantization_config())
         << ')';
}

template <class Derived>
at::Tensor Linear4bitBase<Derived>::forward(const at::Tensor& input) {
  // Before the compute dtype sticks to this input.
  const char* op = name_of(static_cast<Derived*>(nullptr));
  LOWBIT_CHECK(at::isFloatingType(input.scalar_type()), op, "input", "of a floating-point dtype",
               ops::dtype_name(input.scalar_type()));
  LOWBIT_CHECK(input.dim() >= 1 && input.sym_size(-1) == weight.sym_size(1), op, "input",
               c10::str("[..., ", weight.sym_size(1), "]"), c10::str("shape ", input.sym_sizes()));
  const at::ScalarType dtype = compute_dtype_.resolve(input.scalar_type());
  if (dtype == input.scalar_type()) return linear_of(input, weight, bias);
  return linear_of(input.to(dtype), weight, bias).to(input.scalar_type());
}

template <class Derived>
void Linear4bitBase<Derived>::quantize(const at::Tensor& dense) {
  const char* op = name_of(static_cast<Derived*>(nullptr));
  if (!dense.defined() && is_quantized(weight)) return;
  const at::Tensor& source = dense.defined() ? dense : weight;
  check_weight(op, source, options.out_features(), options.in_features());
  replace(weight, quantize_named(op, "weight", source, quantization_config()));
}

template <class Derived>
StateDict Linear4bitBase<Derived>::state_dict() const {
  return nn::state_dict(*this);
}

template <class Derived>
LoadReport Linear4bitBase<Derived>::load_state_dict(const StateDict& entries, bool strict) {
  return nn::load_state_dict(*this, entries, strict);
}

template <class Derived>
QuantizationConfig Linear4bitBase<Derived>::quantization_config() const {
  QuantizationConfig config = parse_quant_type(options.quant_type()) == QuantType::kNF4
                                  ? QuantizationConfig::nf4()
                                  : QuantizationConfig::fp4();
  return config.blocksize(options.blocksize())
      .double_quant(options.double_quant())
      .quant_storage(options.quant_storage());
}

template class Linear4bitBase<Linear4bitImpl>;
template class Linear4bitBase<LinearNF4Impl>;
template class Linear4bitBase<LinearFP4Impl>;

Linear4bitImpl::Linear4bitImpl(const Linear4bitOptions& options) : Linear4bitBase(options) {}
Linear4bitImpl::Linear4bitImpl(int64_t in_features, int64_t out_features)
    : Linear4bitImpl(Linear4bitOptions(in_features, out_features)) {}
LinearNF4Impl::LinearNF4Impl(Linear4bitOptions options)
    : Linear4bitBase(options.quant_type("nf4")) {}
LinearNF4Impl::LinearNF4Impl(int64_t in_features, int64_t out_features)
    : LinearNF4Impl(Linear4bitOptions(in_features, out_features)) {}
LinearFP4Impl::LinearFP4Impl(Linear4bitOptions options)
    : Linear4bitBase(options.quant_type("fp4")) {}
LinearFP4Impl::LinearFP4Impl(int64_t in_features, int64_t out_features)
    : LinearFP4Impl(Linear4bitOptions(in_features, out_features)) {}

// ---- int8 ----

Linear8bitLtImpl::Linear8bitLtImpl(int64_t in_features, int64_t out_features)
    : Linear8bitLtImpl(Linear8bitLtOptions(in_features, out_features)) {}

Linear8bitLtImpl::Linear8bitLtImpl(const Linear8bitLtOptions& options) : options(options) {
  Linear8bitLtImpl::reset();
}

namespace {
constexpr const char* kLinear8bitLt = "lowbit::nn::Linear8bitLt";
}

void Linear8bitLtImpl::reset() {
  check_sizes(kLinear8bitLt, options.in_features(), options.out_features());
  ops::check_float(kLinear8bitLt, "dtype", options.dtype());
  at::Tensor drawn = drawn_weight(options.out_features(), options.in_features(), options.dtype());
  if (!options.has_fp16_weights()) {
    drawn = quantize_named(kLinear8bitLt, "weight", drawn, quantization_config());
  }
  weight = register_parameter("weight", drawn, /*requires_grad=*/options.has_fp16_weights());
  bias = options.bias()
             ? register_parameter("bias", at::empty({options.out_features()}, options.dtype()))
             : register_parameter("bias", {}, /*requires_grad=*/false);
  if (bias.defined()) draw_bias(bias, options.in_features());
}

void Linear8bitLtImpl::reset_parameters() {
  quantize(drawn_weight(options.out_features(), options.in_features(), options.dtype()));
  if (bias.defined()) draw_bias(bias, options.in_features());
}

void Linear8bitLtImpl::pretty_print(std::ostream& stream) const {
  stream << kLinear8bitLt << "(in_features=" << options.in_features()
         << ", out_features=" << options.out_features() << ", bias=" << yes_no(options.bias())
         << ", has_fp16_weights=" << yes_no(options.has_fp16_weights())
         << ", threshold=" << options.threshold() << ')';
}

at::Tensor Linear8bitLtImpl::forward(const at::Tensor& input) {
  if (options.has_fp16_weights() && !is_quantized(weight)) {
    return linear_fp16_weights(input, weight, bias, options.threshold());
  }
  return linear_of(input, weight, bias);
}

void Linear8bitLtImpl::quantize(const at::Tensor& dense) {
  if (!dense.defined() && (is_quantized(weight) || options.has_fp16_weights())) return;
  const at::Tensor& source = dense.defined() ? dense : weight;
  check_weight(kLinear8bitLt, source, options.out_features(), options.in_features());
  if (!options.has_fp16_weights()) {
    replace(weight, quantize_named(kLinear8bitLt, "weight", source, quantization_config()));
    return;
  }
  LOWBIT_CHECK(!is_quantized(source), kLinear8bitLt, "weight", "a dense tensor", describe(source));
  weight.set_data(source.detach().clone());
}

StateDict Linear8bitLtImpl::state_dict() const { return nn::state_dict(*this); }

LoadReport Linear8bitLtImpl::load_state_dict(const StateDict& entries, bool strict) {
  return nn::load_state_dict(*this, entries, strict);
}

QuantizationConfig Linear8bitLtImpl::quantization_config() const {
  return QuantizationConfig::int8(options.threshold());
}

Linear4bit Linear4bit::from(const torch::nn::Linear& linear, Linear4bitOptions options) {
  return converted<Linear4bit>(linear, options);
}
LinearNF4 LinearNF4::from(const torch::nn::Linear& linear, Linear4bitOptions options) {
  return converted<LinearNF4>(linear, options);
}
LinearFP4 LinearFP4::from(const torch::nn::Linear& linear, Linear4bitOptions options) {
  return converted<LinearFP4>(linear, options);
}
Linear8bitLt Linear8bitLt::from(const torch::nn::Linear& linear, Linear8bitLtOptions options) {
  return converted<Linear8bitLt>(linear, options);
}

}  // namespace lowbit::nn
