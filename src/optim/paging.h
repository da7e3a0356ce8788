// States of large parameters in memory that the GPU can spill.
#pragma once

#include "lowbit/optim/optimizer.h"
#include "optim/state.h"

namespace lowbit::optim {

/// Whether the states of p are paged.
bool is_paged(const StepConfig& config, const at::Tensor& p);
/// Zeros in `memory`, which becomes kPinned where the driver has no managed memory left.
at::Tensor paged_zeros(const char* op, at::IntArrayRef sizes, at::ScalarType dtype,
                       at::Device device, PagedMemory& memory);

}  // namespace lowbit::optim
