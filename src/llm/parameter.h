// Replacing a parameter of a module: of any tensor kind, and without the old one's memory alive
// beside the new one.
#pragma once

#include <torch/nn/module.h>

#include <string>

namespace lowbit::llm {

/// Puts `value` where module keeps its parameter `name`. The module's own members are not touched:
/// set them too.
void replace_parameter(torch::nn::Module& module, const std::string& name, at::Tensor value);

/// Sets the parameter at a dotted path below `root` ("model.layers.0.mlp.up_proj.weight"), members
/// included, for the module kinds of this library's decoders. Throws c10::Error when there is no
/// such parameter.
void set_parameter(torch::nn::Module& root, const std::string& path, at::Tensor value);

}  // namespace lowbit::llm
