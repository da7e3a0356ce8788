// Changing several parameters, or none.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace lowbit::nn {

class Swap {
 public:
  /// `target` is to become `value`: quantized or dense.
  void add(const at::Tensor& target, const at::Tensor& value) {
    changes_.push_back({target, value, {}, false});
  }
  /// All or nothing: when a change throws, those before it are undone.
  void apply();

 private:
  struct Change {
    at::Tensor target, value, old;
    bool required_grad;
  };
  std::vector<Change> changes_;
};

}  // namespace lowbit::nn
