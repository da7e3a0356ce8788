// A state dict as named tensors and texts: what archives and files hold.
#pragma once

#include <map>
#include <string>

#include "lowbit/optim/state_dict.h"

namespace lowbit::optim {

struct FlatState {
  std::map<std::string, at::Tensor> tensors;  ///< on the CPU, contiguous
  std::map<std::string, std::string> texts;   ///< "algorithm", "param_groups" (JSON)
};

FlatState flatten(const OptimizerStateDict& dict);
/// Throws FormatError naming `source` and the entry.
OptimizerStateDict unflatten(const FlatState& flat, const std::string& source);

}  // namespace lowbit::optim
