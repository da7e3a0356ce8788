// One tensor of each table for all states on the CPU: a model of a thousand layers needs no
// thousand copies.
#pragma once

#include <ATen/core/Tensor.h>

#include "lowbit/types.h"

namespace lowbit::ops {

const at::Tensor& shared_dynamic_map();
const at::Tensor& shared_4bit_table(QuantType type);

}  // namespace lowbit::ops
