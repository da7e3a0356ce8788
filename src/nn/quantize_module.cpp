// quantize_ and dequantize_: everything is built before anything is put in place.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "lowbit/quantize.h"
#include "nn/quantize.h"
#include "nn/sites.h"
#include "nn/swap.h"
#include "ops/check.h"
#include "tensor/impl.h"

namespace lowbit {
namespace nn {
namespace {

constexpr const char* kOp = "lowbit::quantize_";

/// One weight and all places that hold it: the same tensor, or tensors of the same memory.
struct Weight {
  std::vector<const Site*> sites;
  const at::Tensor& tensor() const { return sites.front()->tensor; }
};

std::vector<Weight> weights_of(const std::vector<Site>& sites) {
  using Key = std::tuple<const void*, int64_t, std::vector<int64_t>, std::vector<int64_t>>;
  std::map<Key, size_t> seen;
  std::vector<Weight> weights;
  for (const Site& site : sites) {
    const at::Tensor& tensor = site.tensor;
    const tensor::View view = tensor::view_of(tensor);
    // Tensors without memory (meta, empty) are each their own.
    const void* memory =
        view                   ? static_cast<const void*>(view.payload->get())
        : tensor.numel() == 0  ? static_cast<const void*>(tensor.unsafeGetTensorImpl())
        : tensor.has_storage() ? static_cast<const void*>(tensor.storage().unsafeGetStorageImpl())
                               : static_cast<const void*>(tensor.unsafeGetTensorImpl());
    const int64_t offset = view || !tensor.has_storage() ? 0 : tensor.storage_offset();
    const auto [at, is_new] = seen.try_emplace(
        Key{memory, offset, tensor.sizes().vec(), tensor.strides().vec()}, weights.size());
    if (is_new) weights.emplace_back();
    weights[at->second].sites.push_back(&site);
  }
  return weights;
}

bool any_match(const std::vector<std::string>& patterns, const std::string& path) {
  for (const std::string& pattern : patterns) {
    if (matches_path(path, pattern)) return true;
  }
  return false;
}

/// Why a parameter is left alone; empty: it is quantized.
std::string reason_to_leave(const Site& site, const QuantizationConfig& config) {
  using Kind = Site::Kind;
  const at::Tensor& tensor = site.tensor;
  if (is_quantized(tensor)) return c10::str("already quantized: ", describe(tensor));
  if (site.kind == Kind::kOther) {
    return tensor.dim() < 2 ? c10::str(tensor.dim(), "-D: a bias or a norm")
                            : "not the weight of a linear layer";
  }
  if (!site.obstacle.empty()) return site.obstacle;
  if (any_match(config.skip(), site.path)) return "in skip";
  if (!config.only().empty() && !any_match(config.only(), site.path)) return "not in only";
  if (site.kind == Kind::kEmbedding && !config.quantize_embeddings()) {
    return "an embedding; quantize_embeddings(true) includes it";
  }
  if (tensor.numel() == 0) return "empty";
  if (!ops::is_kernel_dtype(tensor.scalar_type())) {
    return c10::str(ops::dtype_name(tensor.scalar_type()), ", not float32, float16 or bfloat16");
  }
  if (config.filter() && !config.filter()(site.layer(), tensor)) return "refused by filter";
  return "";
}

/// All places of a weight agree, or it stays as it is.
std::string reason_to_leave(const Weight& weight, const QuantizationConfig& config) {
  for (const Site* site : weight.sites) {
    const std::string reason = reason_to_leave(*site, config);
    if (reason.empty()) continue;
    const bool own = site == weight.sites.front() || is_quantized(site->tensor);
    return own ? reason : c10::str("tied to ", site->path, " (", reason, ")");
  }
  return "";
}

QuantizationConfig config_of(const Site& site, const QuantizationConfig& config) {
  const auto& overrides = config.overrides();
  for (auto it = overrides.rbegin(); it != overrides.rend(); ++it) {
    if (!matches_path(site.path, it->first)) continue;
    QuantizationConfig chosen = it->second;
    return chosen.allow_nonfinite(config.allow_nonfinite() || chosen.allow_nonfinite());
  }
  return config;
}

double relative_error(const at::Tensor& quantized, const at::Tensor& weight) {
  const at::NoGradGuard no_grad;
  const at::Tensor exact = weight.detach().to(at::kFloat);
  const double size = exact.norm().item<double>();
  const double error = dequantize(quantized, at::kFloat).sub_(exact).norm().item<double>();
  return size > 0.0 ? error / size : error;
}

void add(Swap& swap, const Weight& weight, const at::Tensor& value) {
  for (const Site* site : weight.sites) swap.add(site->tensor, value);
}

QuantizationReport quantize_sites(const std::vector<Site>& sites,
                                  const QuantizationConfig& config) {
  QuantizationReport report;
  report.dry_run = config.dry_run();
  Swap swap;
  for (const Weight& weight : weights_of(sites)) {
    const Site& site = *weight.sites.front();
    if (const std::string reason = reason_to_leave(weight, config); !reason.empty()) {
      const int64_t bytes = is_quantized(site.tensor) ? quantized_nbytes(site.tensor)
                                                      : static_cast<int64_t>(site.tensor.nbytes());
      report.left_alone.push_back({site.path, site.tensor.sizes().vec(), bytes, reason});
      continue;
    }
    const QuantizationConfig how = config_of(site, config);
    QuantizationReport::Layer layer{.name = site.path,
                                    .shape = site.tensor.sizes().vec(),
                                    .dtype = site.tensor.scalar_type(),
                                    .scheme = scheme_text(how),
                                    .bytes_before = static_cast<int64_t>(site.tensor.nbytes())};
    for (size_t i = 1; i < weight.sites.size(); ++i) layer.tied.push_back(weight.sites[i]->path);
    if (config.dry_run()) {
      check_quantizable(kOp, site.path, site.tensor, how);
      layer.bytes_after = planned_nbytes(layer.shape, how);
      layer.relative_error = std::numeric_limits<double>::quiet_NaN();
    } else {
      const at::Tensor quantized = quantize_named(kOp, site.path, site.tensor, how);
      layer.bytes_after = quantized_nbytes(quantized);
      layer.relative_error = relative_error(quantized, site.tensor);
      add(swap, weight, quantized);
    }
    report.layers.push_back(std::move(layer));
  }
  if (!config.dry_run()) swap.apply();
  return report;
}

int64_t dequantize_sites(const std::vector<Site>& sites, std::optional<at::ScalarType> dtype) {
  Swap swap;
  int64_t count = 0;
  for (const Weight& weight : weights_of(sites)) {
    if (!is_quantized(weight.tensor())) continue;
    add(swap, weight, dequantize(weight.tensor(), dtype));
    ++count;
  }
  swap.apply();
  return count;
}

}  // namespace
}  // namespace nn

QuantizationReport quantize_(torch::nn::Module& module, const QuantizationConfig& config) {
  return nn::quantize_sites(nn::sites_of(module), config);
}

QuantizationReport quantize_(torch::jit::Module& module, const QuantizationConfig& config) {
  return nn::quantize_sites(nn::sites_of(module), config);
}

int64_t dequantize_(torch::nn::Module& module, std::optional<at::ScalarType> dtype) {
  return nn::dequantize_sites(nn::sites_of(module), dtype);
}

int64_t dequantize_(torch::jit::Module& module, std::optional<at::ScalarType> dtype) {
  return nn::dequantize_sites(nn::sites_of(module), dtype);
}

}  // namespace lowbit
