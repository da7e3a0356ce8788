// Where the parameters of a model are.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace torch::nn {
class Module;
}
namespace torch::jit {
struct Module;
}

namespace lowbit::nn {

struct Site {
  enum class Kind : int8_t { kLinear, kEmbedding, kExperts, kOther };
  std::string path;   ///< of the parameter: "layers.0.fc.weight"
  at::Tensor tensor;  ///< the module's own: changing it in place changes the module
  Kind kind = Kind::kOther;
  std::string obstacle =
      {};  ///< why its module could not work with a quantized tensor; empty: it could

  /// The path without a trailing "weight": the layer's.
  std::string layer() const;
};

/// Every parameter, once for each place it is registered at.
std::vector<Site> sites_of(torch::nn::Module& module);
std::vector<Site> sites_of(torch::jit::Module& module);

}  // namespace lowbit::nn
