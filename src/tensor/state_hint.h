// A wish that a layer has about its parameter: optimizers keep float32 states for it.
#pragma once

#include <ATen/core/Tensor.h>

namespace lowbit::tensor {

/// Holds for the tensor (its identity, not its data) as long as it lives.
void request_float32_states(const at::Tensor& parameter);
bool requests_float32_states(const at::Tensor& parameter);

}  // namespace lowbit::tensor
