#include "llm/parameter.h"

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include "lowbit/llm/llama.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// The dictionary is protected; a derived class may name it.
struct Access : torch::nn::Module {
  static torch::OrderedDict<std::string, at::Tensor>& parameters(torch::nn::Module& module) {
    return module.*(&Access::parameters_);
  }
};

}  // namespace

void replace_parameter(torch::nn::Module& module, const std::string& name, at::Tensor value) {
  auto& parameters = Access::parameters(module);
  at::Tensor* slot = parameters.find(name);
  LOWBIT_CHECK(slot != nullptr, "replace_parameter", "name", "a parameter of the module", name);
  *slot = std::move(value);
}

void set_parameter(torch::nn::Module& root, const std::string& path, at::Tensor value) {
  const size_t dot = path.rfind('.');
  const std::string name = path.substr(dot + 1);
  torch::nn::Module* module = &root;
  for (size_t begin = 0; dot != std::string::npos && begin <= dot;) {
    const size_t end = path.find('.', begin);
    const std::string child = path.substr(begin, end - begin);
    const auto children = module->named_children();
    const auto* found = children.find(child);
    LOWBIT_CHECK(found != nullptr, "set_parameter", "path", "the name of a parameter", path);
    module = found->get();
    begin = end + 1;
  }
  replace_parameter(*module, name, value);
  if (auto* linear = dynamic_cast<torch::nn::LinearImpl*>(module)) {
    (name == "bias" ? linear->bias : linear->weight) = std::move(value);
  } else if (auto* embedding = dynamic_cast<torch::nn::EmbeddingImpl*>(module)) {
    embedding->weight = std::move(value);
  } else if (auto* norm = dynamic_cast<LlamaRMSNormImpl*>(module)) {
    norm->weight = std::move(value);
  }
}

}  // namespace lowbit::llm
