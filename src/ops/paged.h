// What optimizers ask of a CUDA device beside kernels: memory that it can spill to the host, and
// whether its stream records a graph.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/device.h"

namespace lowbit::ops {
namespace cuda {

/// Whether pages of managed memory move on demand, so that there may be more of it than the device
/// has (Linux, Pascal or later).
bool can_page(at::Device device);
int64_t free_bytes(at::Device device);

/// Zeros in managed memory, on the device at first; freed with the last tensor that holds them.
/// Undefined when the driver has none.
at::Tensor managed_zeros(const char* op, at::IntArrayRef sizes, at::ScalarType dtype,
                         at::Device device);
/// Zeros in pinned host memory which kernels of `device` read and write over the bus: a tensor of
/// that device.
at::Tensor pinned_zeros(const char* op, at::IntArrayRef sizes, at::ScalarType dtype,
                        at::Device device);
/// Moves managed memory to its device, on the current stream. Only a hint.
void prefetch(const at::Tensor& tensor);

bool is_capturing(at::Device device);

}  // namespace cuda

inline bool is_capturing(at::Device device) {
  if constexpr (kHasCuda) return device.is_cuda() && cuda::is_capturing(device);
  return false;
}

}  // namespace lowbit::ops
