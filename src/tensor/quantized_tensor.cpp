// The public functions on quantized tensors.
#include "lowbit/quantized_tensor.h"

#include <ATen/ATen.h>

#include <cstdio>

#include "ops/check.h"
#include "tensor/impl.h"

namespace lowbit {
namespace {

using tensor::required_view;

std::string sibling(const std::string& name, const char* key) {
  const size_t dot = name.rfind('.');
  return (dot == std::string::npos ? "" : name.substr(0, dot + 1)) + key;
}

/// weight_format: 0 "row"; the layouts of other numbers are gone.
void check_weight_format(const std::string& key, const at::Tensor& format) {
  const bool integer = format.numel() == 1 && !format.is_floating_point();
  LOWBIT_CHECK(integer && format.item<int64_t>() == 0, "lowbit::quantized_from_entries", key,
               "0 (row-major)",
               integer ? c10::str(format.item<int64_t>())
                       : c10::str(ops::dtype_name(format.scalar_type()), " ", format.sizes()));
}

}  // namespace

const char* to_string(QuantScheme scheme) noexcept {
  switch (scheme) {
    case QuantScheme::kNF4:
      return "nf4";
    case QuantScheme::kFP4:
      return "fp4";
    case QuantScheme::kInt8:
      return "int8";
    case QuantScheme::kInt8WeightOnly:
      return "int8 (weight only)";
  }
  return "unknown";
}

bool is_quantized(const at::Tensor& tensor) noexcept {
  return static_cast<bool>(tensor::view_of(tensor));
}

QuantScheme quant_scheme(const at::Tensor& weight) {
  return required_view("lowbit::quant_scheme", weight)->scheme;
}

const QuantState& quant_state(const at::Tensor& weight) {
  const auto view = required_view("lowbit::quant_state", weight);
  LOWBIT_CHECK(view->is_4bit(), "lowbit::quant_state", "weight", "a 4-bit weight",
               to_string(view->scheme), "row_scales() has the statistics of int8 weights.");
  return view->state;
}

at::Tensor packed_weight(const at::Tensor& weight) {
  return required_view("lowbit::packed_weight", weight)->codes;
}

at::Tensor row_scales(const at::Tensor& weight) {
  const auto view = required_view("lowbit::row_scales", weight);
  LOWBIT_CHECK(!view->is_4bit(), "lowbit::row_scales", "weight", "an int8 weight",
               to_string(view->scheme), "quant_state() has the statistics of 4-bit weights.");
  return view->rows;
}

double int8_threshold(const at::Tensor& weight) {
  return required_view("lowbit::int8_threshold", weight)->threshold;
}

std::optional<at::ScalarType> compute_dtype(const at::Tensor& weight) {
  return required_view("lowbit::compute_dtype", weight)->compute_dtype;
}

int64_t quantized_nbytes(const at::Tensor& weight) {
  return required_view("lowbit::quantized_nbytes", weight)->nbytes();
}

std::string describe(const at::Tensor& weight) {
  const auto view = required_view("lowbit::describe", weight);
  std::string text = c10::str(to_string(view->scheme), " ", weight.sizes(), ", ",
                              ops::dtype_name(weight.scalar_type()));
  if (view->is_4bit()) {
    text += c10::str(", blocksize ", view->state.blocksize);
    if (view->state.nested()) text += ", double quant";
  } else if (view->threshold > 0.0) {
    text += c10::str(", threshold ", view->threshold);
  }
  const double bits = 8.0 * static_cast<double>(view->nbytes()) /
                      static_cast<double>(std::max<int64_t>(view->numel(), 1));
  char number[32];
  std::snprintf(number, sizeof(number), "%.2f", bits);
  return c10::str(text, ", ", number, " bits, ", weight.device());
}

at::Tensor dequantize(const at::Tensor& weight, std::optional<at::ScalarType> dtype) {
  const auto view = required_view("lowbit::dequantize", weight);
  const at::ScalarType target = dtype.value_or(weight.scalar_type());
  if (!ops::is_kernel_dtype(target)) return tensor::dense(view, at::kFloat).to(target);
  return tensor::dense(view, target);
}

at::Tensor quantized_from_4bit(const at::Tensor& packed, QuantState state,
                               std::optional<at::ScalarType> compute_dtype) {
  const at::ScalarType dtype = state.dtype;
  return tensor::wrap(tensor::make_4bit(packed, std::move(state), compute_dtype), dtype);
}

at::Tensor quantized_from_int8(const at::Tensor& CB, const at::Tensor& SCB,
                               const Int8WeightOptions& options) {
  ops::check_float("lowbit::quantized_from_int8", "dtype", options.dtype);
  return tensor::wrap(
      tensor::make_int8(CB, SCB, options.threshold, options.weight_only, options.compute_dtype),
      options.dtype);
}

std::map<std::string, at::Tensor> quantized_entries(const std::string& name,
                                                    const at::Tensor& weight) {
  const auto view = required_view("lowbit::quantized_entries", weight);
  LOWBIT_CHECK(!view.transposed, "lowbit::quantized_entries", "weight", "untransposed",
               "a transposed view");
  std::map<std::string, at::Tensor> entries{{name, view->codes}};
  if (view->is_4bit()) {
    for (auto& [key, value] : view->state.as_tensors()) entries[c10::str(name, '.', key)] = value;
    return entries;
  }
  entries[sibling(name, "SCB")] = view->rows;
  entries[sibling(name, "weight_format")] = at::zeros({}, at::kByte);
  return entries;
}

std::optional<at::Tensor> quantized_from_entries(const std::string& name,
                                                 const std::map<std::string, at::Tensor>& entries,
                                                 const Int8WeightOptions& options) {
  const auto codes = entries.find(name);
  if (codes == entries.end()) return std::nullopt;
  const std::string prefix = name + ".";
  std::map<std::string, at::Tensor> statistics;
  for (auto it = entries.lower_bound(prefix); it != entries.end(); ++it) {
    if (it->first.compare(0, prefix.size(), prefix) != 0) break;
    statistics.emplace(*it);
  }
  if (statistics.count(prefix + "absmax") != 0) {
    return quantized_from_4bit(codes->second,
                               QuantState::from_tensors(statistics, codes->second.device()),
                               options.compute_dtype);
  }
  const std::string scale_key = sibling(name, "SCB");
  const auto scales = entries.find(scale_key);
  if (scales == entries.end() || codes->second.scalar_type() != at::kChar) return std::nullopt;
  const std::string format_key = sibling(name, "weight_format");
  if (const auto format = entries.find(format_key); format != entries.end()) {
    check_weight_format(format_key, format->second);
  }
  return quantized_from_int8(codes->second, scales->second, options);
}

}  // namespace lowbit
