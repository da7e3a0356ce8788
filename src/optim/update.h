// One step of an optimizer, parameter by parameter and launch by launch.
#pragma once

#include <vector>

#include "lowbit/optim/optimizer.h"
#include "ops/optimizer.h"
#include "optim/state.h"

namespace lowbit::optim {

struct Optimizer::Update {
  size_t group;
  at::Tensor p, g;
  StepValues values;
  StepConfig config;
  bool own_rate = false;              ///< lr is an override's
  State* state = nullptr;             ///< null: to be made
  const float* rate_value = nullptr;  ///< capturable: lr in device memory
  const float* clip_value = nullptr;  ///< factor of the gradients, in device memory
};

/// Tensors of one device, dtype and kind of state, and what has to be there first.
struct Optimizer::Call {
  ops::OptimizerCall call;
  std::vector<at::Tensor> prefetched = {};  ///< managed memory
  int64_t paged_bytes = 0;
};

}  // namespace lowbit::optim
