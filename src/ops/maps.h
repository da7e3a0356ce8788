// One tensor of each table a device, for all states: a model of a thousand layers needs no thousand
// copies, and a copy from the host would wait for the device at every quantization.
#pragma once

#include <ATen/core/Tensor.h>

#include "lowbit/types.h"

namespace lowbit::ops {

at::Tensor shared_dynamic_map(at::Device device);
at::Tensor shared_4bit_table(QuantType type, at::Device device);

}  // namespace lowbit::ops
