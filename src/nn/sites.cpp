#include "nn/sites.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

namespace lowbit::nn {
namespace {

using Kind = Site::Kind;

// Smaller 3-D parameters are position tables and class tokens, not experts.
constexpr int64_t kSmallestExpert = 16;
constexpr const char* kRenormalizes = "an embedding with max_norm, which changes its table";

bool is_stack(const at::Tensor& tensor) {
  return tensor.dim() == 3 && tensor.size(0) > 1 && tensor.size(1) >= kSmallestExpert &&
         tensor.size(2) >= kSmallestExpert;
}

std::string join(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

void visit(torch::nn::Module& module, const std::string& prefix, std::vector<Site>& sites) {
  const bool linear = dynamic_cast<torch::nn::LinearImpl*>(&module) != nullptr;
  const auto* embedding = dynamic_cast<torch::nn::EmbeddingImpl*>(&module);
  const bool torchs_own = module.name().rfind("torch::nn::", 0) == 0;
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    Site site{.path = join(prefix, item.key()), .tensor = item.value()};
    if (item.key() == "weight" && linear) {
      site.kind = Kind::kLinear;
    } else if (item.key() == "weight" && embedding != nullptr) {
      site.kind = Kind::kEmbedding;
      if (embedding->options.max_norm().has_value()) site.obstacle = kRenormalizes;
    } else if (!torchs_own && is_stack(site.tensor)) {
      site.kind = Kind::kExperts;
    }
    sites.push_back(std::move(site));
  }
  for (const auto& child : module.named_children()) {
    visit(*child.value(), join(prefix, child.key()), sites);
  }
}

void visit(const torch::jit::Module& module, const std::string& prefix, std::vector<Site>& sites) {
  const auto name = module.type()->name();
  const bool torchs_own =
      name.has_value() && name->qualifiedName().rfind("__torch__.torch.nn.modules.", 0) == 0;
  const std::string type = torchs_own ? name->name() : "";
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    Site site{.path = join(prefix, item.name), .tensor = item.value};
    if (item.name == "weight" && type == "Linear") {
      site.kind = Kind::kLinear;
    } else if (item.name == "weight" && type == "Embedding") {
      site.kind = Kind::kEmbedding;
      if (module.hasattr("max_norm") && module.attr("max_norm").isDouble()) {
        site.obstacle = kRenormalizes;
      }
    } else if (!torchs_own && is_stack(site.tensor)) {
      site.kind = Kind::kExperts;
    }
    sites.push_back(std::move(site));
  }
  for (const auto& child : module.named_children()) {
    visit(child.value, join(prefix, child.name), sites);
  }
}

}  // namespace

std::string Site::layer() const {
  constexpr std::string_view kWeight = ".weight";
  const bool ends = path.size() > kWeight.size() &&
                    path.compare(path.size() - kWeight.size(), kWeight.size(), kWeight) == 0;
  return ends ? path.substr(0, path.size() - kWeight.size()) : path;
}

std::vector<Site> sites_of(torch::nn::Module& module) {
  std::vector<Site> sites;
  visit(module, "", sites);
  return sites;
}

std::vector<Site> sites_of(torch::jit::Module& module) {
  std::vector<Site> sites;
  visit(module, "", sites);
  return sites;
}

}  // namespace lowbit::nn
