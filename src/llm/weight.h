// The kinds of weight a decoder may hold, seen from this layer: what a QuantizedTensor stands for,
// its bytes, its scheme.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "llm/slots.h"
#include "ops/linear.h"

namespace lowbit::llm {

struct WeightView {
  std::optional<ops::Weight4bit> weight_4bit = std::nullopt;
  std::optional<ops::Weight8bit> weight_8bit = std::nullopt;
  bool weight_only = false;  ///< 8 bits: activations stay in floating point
  double threshold = 0.0;    ///< 8 bits: of LLM.int8()
  bool is_4bit() const { return weight_4bit.has_value(); }
  bool is_8bit() const { return weight_8bit.has_value(); }
};

/// Both empty for an ordinary tensor.
WeightView view_weight(const at::Tensor& weight);

/// Quantizes a float weight. Throws c10::Error that names `name` when it has values that are not
/// finite.
at::Tensor quantize_weight(const std::string& name, const at::Tensor& weight, Treatment treatment,
                           const FromPretrainedOptions& options);

/// Bytes that quantize_weight makes of a weight of this shape, and the scheme_of the result.
int64_t planned_bytes(const std::vector<int64_t>& shape, Treatment treatment,
                      const FromPretrainedOptions& options, at::ScalarType dtype);
std::string planned_scheme(Treatment treatment, const FromPretrainedOptions& options,
                           at::ScalarType dtype);

/// "nf4", "nf4 (double quant)", "fp4", "int8", "int8 (weight only)", or the dtype of an ordinary
/// tensor.
std::string scheme_of(const at::Tensor& weight);
/// Bytes in memory, statistics included.
int64_t bytes_of(const at::Tensor& weight);

}  // namespace lowbit::llm
