// Optimizer steps over tensors of one device, dtype and kind of state.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

#include "lowbit/kernels/optimizer.h"
#include "ops/check.h"

namespace lowbit::ops {

/// "adam", "lamb", "ademamix", "momentum", "lars", "rmsprop", "adagrad" or "lion".
struct OptimizerRule {
  kernels::OptimizerKind kind = kernels::OptimizerKind::kAdam;
  bool limited = false;  ///< "lamb", "lars": the rule is the one with an update limit
};
/// Throws c10::Error for other names.
OptimizerRule parse_optimizer(const char* op, std::string_view name);

/// One parameter. The tensors are the caller's and stay where they are: a step over hundreds of
/// parameters counts no references. Null or undefined: what the rule does not have.
struct OptimizerOperand {
  const at::Tensor* p = nullptr;        ///< float32, float16 or bfloat16; any layout
  const at::Tensor* g = nullptr;        ///< p's sizes and dtype; any layout
  const at::Tensor* state1 = nullptr;   ///< contiguous, as all states; AdEMAMix: [2, *p.sizes()]
  const at::Tensor* state2 = nullptr;   ///< p's sizes
  const at::Tensor* absmax1 = nullptr;  ///< float32; AdEMAMix: [2, ceil(numel / 256)]
  const at::Tensor* absmax2 = nullptr;
  const at::Tensor* unorm = nullptr;  ///< float32 [1]
  int32_t hyper = 0;
};

struct OptimizerCall {
  kernels::OptimizerKind kind = kernels::OptimizerKind::kAdam;
  bool blockwise = false;
  std::vector<OptimizerOperand> tensors = {};
  std::vector<kernels::OptimizerHyper> hypers = {};
  at::Tensor map1 = {}, map2 = {};  ///< 8-bit states: float32 [256]
};

/// Throws c10::Error for operands that do not fit together, and for hyper-parameters that no step
/// is made with.
void check_optimizer_call(const char* op, const OptimizerCall& call);
/// Checks, then updates p and the states in place. Nothing is written when it throws.
void optimizer_step(const char* op, const OptimizerCall& call);
/// Without the checks, for a call that has passed them.
void run_optimizer_call(const char* op, const OptimizerCall& call);

}  // namespace lowbit::ops
