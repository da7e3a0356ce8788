// State dicts with the ecosystem's keys, of any module that holds quantized weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

namespace torch::nn {
class Module;
}

namespace lowbit::nn {

/// Parameters and buffers by dotted path. A quantized weight is several entries: see
/// quantized_entries().
using StateDict = std::map<std::string, at::Tensor>;

/// Tensors share the module's memory. A tied weight stands under each of its names.
StateDict state_dict(const torch::nn::Module& module);

struct LoadReport {
  std::vector<std::string> missing;     ///< parameters and buffers without an entry
  std::vector<std::string> unexpected;  ///< entries that nothing took
};

/// Loads what state_dict() or the ecosystem wrote. Entries of a quantized weight make the parameter
/// quantized (codes are shared, not copied); a float entry of a quantized parameter is cast to its
/// dtype and quantized as it was; everything else is copied. Throws c10::Error naming the entry for
/// sizes that differ, entries that do not fit together and, when `strict`, for missing and
/// unexpected ones; then nothing has changed.
LoadReport load_state_dict(torch::nn::Module& module, const StateDict& entries, bool strict = true);

}  // namespace lowbit::nn
