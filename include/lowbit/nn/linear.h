// Linear layers over quantized weights: drop-in for torch::nn::Linear.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "lowbit/nn/state_dict.h"
#include "lowbit/quantize.h"

namespace lowbit::nn {

struct Linear4bitOptions {
  Linear4bitOptions(int64_t in_features, int64_t out_features)
      : in_features_(in_features), out_features_(out_features) {}
  TORCH_ARG(int64_t, in_features);
  TORCH_ARG(int64_t, out_features);
  TORCH_ARG(bool, bias) = true;
  /// Inputs are cast to it, outputs back. Unset: the dtype of the first input, if float32 or
  /// bfloat16, from then on; float16 inputs are computed in float16.
  TORCH_ARG(std::optional<at::ScalarType>, compute_dtype) = std::nullopt;
  TORCH_ARG(bool, double_quant) = true;
  TORCH_ARG(std::string, quant_type) = "fp4";
  TORCH_ARG(at::ScalarType, quant_storage) = at::kByte;
  TORCH_ARG(int64_t, blocksize) = 64;
  /// The dtype of the weight that is quantized, and of the bias.
  TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
};

/// An optional dtype that the first of several threads sets.
class StickyDtype {
 public:
  explicit StickyDtype(std::optional<at::ScalarType> dtype = std::nullopt);
  StickyDtype(const StickyDtype& other) : value_(other.value_.load()) {}
  StickyDtype& operator=(const StickyDtype& other) {
    value_ = other.value_.load();
    return *this;
  }
  /// What inputs of `dtype` are computed in; sets it when it is free.
  at::ScalarType resolve(at::ScalarType dtype);

 private:
  std::atomic<int> value_;
};

/// What Linear4bit, LinearNF4 and LinearFP4 share. The weight [out_features, in_features] is a
/// quantized tensor from the start, drawn as torch::nn::Linear draws it; it has no gradient. The
/// output has the input's dtype.
template <class Derived>
class Linear4bitBase : public torch::nn::Cloneable<Derived> {
 public:
  explicit Linear4bitBase(const Linear4bitOptions& options);
  void reset() override;
  /// Draws new weights, and quantizes them.
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;

  /// [..., in_features] -> [..., out_features], any number of leading dimensions. Differentiable in
  /// input and bias.
  at::Tensor forward(const at::Tensor& input);

  /// Quantizes a weight given in floating point, as the options say, and takes it. Without an
  /// argument: its own, if that was dequantized.
  void quantize(const at::Tensor& dense = {});
  StateDict state_dict() const;
  LoadReport load_state_dict(const StateDict& entries, bool strict = true);
  QuantizationConfig quantization_config() const;

  Linear4bitOptions options;
  at::Tensor weight, bias;

 private:
  StickyDtype compute_dtype_;
};

class Linear4bitImpl : public Linear4bitBase<Linear4bitImpl> {
 public:
  Linear4bitImpl(int64_t in_features, int64_t out_features);
  explicit Linear4bitImpl(const Linear4bitOptions& options);
};
/// quant_type of the options is not read.
class LinearNF4Impl : public Linear4bitBase<LinearNF4Impl> {
 public:
  LinearNF4Impl(int64_t in_features, int64_t out_features);
  explicit LinearNF4Impl(Linear4bitOptions options);
};
class LinearFP4Impl : public Linear4bitBase<LinearFP4Impl> {
 public:
  LinearFP4Impl(int64_t in_features, int64_t out_features);
  explicit LinearFP4Impl(Linear4bitOptions options);
};

struct Linear8bitLtOptions {
  Linear8bitLtOptions(int64_t in_features, int64_t out_features)
      : in_features_(in_features), out_features_(out_features) {}
  TORCH_ARG(int64_t, in_features);
  TORCH_ARG(int64_t, out_features);
  TORCH_ARG(bool, bias) = true;
  /// true: the weight stays in floating point and is trained; every forward quantizes it. false:
  /// the weight is int8.
  TORCH_ARG(bool, has_fp16_weights) = true;
  /// Features of at least this magnitude are multiplied in floating point; 0: none are.
  TORCH_ARG(double, threshold) = 0.0;
  TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
};

/// LLM.int8(), https://arxiv.org/abs/2208.07339: weight and activations quantized by rows. The
/// output has the input's dtype.
class Linear8bitLtImpl : public torch::nn::Cloneable<Linear8bitLtImpl> {
 public:
  Linear8bitLtImpl(int64_t in_features, int64_t out_features);
  explicit Linear8bitLtImpl(const Linear8bitLtOptions& options);
  void reset() override;
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;

  /// [..., in_features] -> [..., out_features]. Differentiable in input and bias, and in the weight
  /// with has_fp16_weights, as if nothing was quantized but the weight.
  at::Tensor forward(const at::Tensor& input);

  /// As Linear4bit's. A layer with has_fp16_weights takes the weight as it is.
  void quantize(const at::Tensor& dense = {});
  StateDict state_dict() const;
  LoadReport load_state_dict(const StateDict& entries, bool strict = true);
  QuantizationConfig quantization_config() const;

  Linear8bitLtOptions options;
  at::Tensor weight, bias;
};

/// TORCH_MODULE, with conversion from a float layer.
class Linear4bit : public torch::nn::ModuleHolder<Linear4bitImpl> {
 public:
  using torch::nn::ModuleHolder<Linear4bitImpl>::ModuleHolder;
  using Impl = Linear4bitImpl;
  /// `options`: how; sizes, bias and dtype are the layer's. The bias is shared.
  static Linear4bit from(const torch::nn::Linear& linear, Linear4bitOptions options = {0, 0});
};
class LinearNF4 : public torch::nn::ModuleHolder<LinearNF4Impl> {
 public:
  using torch::nn::ModuleHolder<LinearNF4Impl>::ModuleHolder;
  using Impl = LinearNF4Impl;
  static LinearNF4 from(const torch::nn::Linear& linear, Linear4bitOptions options = {0, 0});
};
class LinearFP4 : public torch::nn::ModuleHolder<LinearFP4Impl> {
 public:
  using torch::nn::ModuleHolder<LinearFP4Impl>::ModuleHolder;
  using Impl = LinearFP4Impl;
  static LinearFP4 from(const torch::nn::Linear& linear, Linear4bitOptions options = {0, 0});
};
class Linear8bitLt : public torch::nn::ModuleHolder<Linear8bitLtImpl> {
 public:
  using torch::nn::ModuleHolder<Linear8bitLtImpl>::ModuleHolder;
  using Impl = Linear8bitLtImpl;
  static Linear8bitLt from(const torch::nn::Linear& linear, Linear8bitLtOptions options = {0, 0});
};

}  // namespace lowbit::nn
