// The state of an optimizer as data, with the ecosystem's names.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lowbit::optim {

/// State of one parameter. `tensors`: whichever of state1, state2, qmap1, qmap2, absmax1, absmax2
/// and unorm_vec exist; in the ecosystem's pickles they are in a dictionary
/// "__bnb_optimizer_quant_state__".
struct ParameterState {
  int64_t step = 0;
  std::map<std::string, at::Tensor> tensors;
};

struct ParameterGroup {
  std::vector<int64_t> params;  ///< numbers of the parameters, counted through all groups
  /// "lr", "betas", "eps", "weight_decay", ...: one value, several, or none (Python's None).
  std::map<std::string, std::vector<double>> options;
};

struct OptimizerStateDict {
  /// "adam", "ademamix", "momentum", "rmsprop", "adagrad" or "lion"; empty when the writer did not
  /// say.
  std::string algorithm;
  std::map<int64_t, ParameterState> state;  ///< parameters that have one, by number
  std::vector<ParameterGroup> param_groups;
};

/// A safetensors file: "state.<number>.step" (int64),
/// "state.<number>.__bnb_optimizer_quant_state__. <name>", and param_groups as JSON in the
/// metadata. Written atomically. Throws IoError.
void save_state_dict(const OptimizerStateDict& dict, const std::string& path);
/// Throws IoError, or FormatError for a file that holds something else.
OptimizerStateDict read_state_dict(const std::string& path);

}  // namespace lowbit::optim
