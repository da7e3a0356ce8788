#include "lowbit/nn/state_dict.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>

#include <functional>
#include <set>

#include "lowbit/quantize.h"
#include "nn/quantize.h"
#include "nn/swap.h"
#include "ops/check.h"
#include "tensor/impl.h"

namespace lowbit::nn {
namespace {

constexpr const char* kOp = "lowbit::nn::load_state_dict";

using Visit = std::function<void(const std::string& path, const at::Tensor& tensor)>;

void for_each_tensor(const torch::nn::Module& module, const std::string& prefix,
                     const Visit& visit) {
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    if (item.value().defined()) visit(prefix + item.key(), item.value());
  }
  for (const auto& item : module.named_buffers(/*recurse=*/false)) {
    if (item.value().defined()) visit(prefix + item.key(), item.value());
  }
  for (const auto& child : module.named_children()) {
    for_each_tensor(*child.value(), prefix + child.key() + ".", visit);
  }
}

/// How a quantized weight was made.
QuantizationConfig config_of(const at::Tensor& weight) {
  const tensor::View view = tensor::required_view(kOp, weight);
  QuantizationConfig config(view->scheme);
  config.threshold(view->threshold).compute_dtype(view->compute_dtype);
  if (view->is_4bit()) {
    config.blocksize(view->state.blocksize)
        .double_quant(view->state.nested())
        .quant_storage(view->codes.scalar_type());
  }
  return config;
}

/// What the entries of a quantized weight do not say is taken from the parameter they go to.
Int8WeightOptions options_for(const at::Tensor& target) {
  Int8WeightOptions options{.dtype = target.scalar_type()};
  if (const tensor::View view = tensor::view_of(target)) {
    options.threshold = view->threshold;
    options.weight_only = view->scheme == QuantScheme::kInt8WeightOnly;
    options.compute_dtype = view->compute_dtype;
  }
  return options;
}

void check_shape(const std::string& path, const at::Tensor& target, const at::Tensor& entry) {
  LOWBIT_CHECK(target.sizes() == entry.sizes(), kOp, path, c10::str("of shape ", target.sizes()),
               c10::str("shape ", entry.sizes()));
}

/// The new value of one parameter, or undefined when there is no entry. Names used are added.
at::Tensor value_of(const std::string& path, const at::Tensor& target, const StateDict& entries,
                    std::set<std::string>& used) {
  const auto entry = entries.find(path);
  if (entry == entries.end()) return {};
  used.insert(path);
  if (is_quantized(entry->second)) {
    check_shape(path, target, entry->second);
    return entry->second;
  }
  if (auto quantized = quantized_from_entries(path, entries, options_for(target))) {
    check_shape(path, target, *quantized);
    for (const auto& [name, tensor] : quantized_entries(path, *quantized)) used.insert(name);
    return quantized->to(target.device(), target.scalar_type());
  }
  check_shape(path, target, entry->second);
  const at::Tensor value = entry->second.detach().to(target.device(), target.scalar_type());
  return is_quantized(target) ? quantize_named(kOp, path, value, config_of(target)) : value;
}

}  // namespace

StateDict state_dict(const torch::nn::Module& module) {
  StateDict entries;
  for_each_tensor(module, "", [&](const std::string& path, const at::Tensor& tensor) {
    if (is_quantized(tensor)) {
      entries.merge(quantized_entries(path, tensor));
    } else {
      entries[path] = tensor.detach();
    }
  });
  return entries;
}

LoadReport load_state_dict(torch::nn::Module& module, const StateDict& entries, bool strict) {
  const at::NoGradGuard no_grad;
  LoadReport report;
  std::set<std::string> used;
  Swap swap;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for_each_tensor(module, "", [&](const std::string& path, const at::Tensor& tensor) {
    const at::Tensor value = value_of(path, tensor, entries, used);
    if (!value.defined()) {
      report.missing.push_back(path);
    } else if (is_quantized(value)) {
      swap.add(tensor, value);
    } else {
      copies.emplace_back(tensor, value);
    }
  });
  for (const auto& [name, tensor] : entries) {
    if (used.count(name) == 0) report.unexpected.push_back(name);
  }
  if (strict) {
    LOWBIT_CHECK(report.missing.empty(), kOp, "entries", "complete",
                 c10::str("nothing for ", c10::Join(", ", report.missing)));
    LOWBIT_CHECK(report.unexpected.empty(), kOp, "entries", "the module's",
                 c10::str("also ", c10::Join(", ", report.unexpected)));
  }
  swap.apply();
  for (auto& [target, value] : copies) target.copy_(value);
  return report;
}

}  // namespace lowbit::nn
