// Block scales on the device, plain or nested.
#pragma once

#include "lowbit/kernels/types.h"

namespace lowbit::kernels::cuda {

/// Scale of `block`. Nested: two roundings, as the CPU and the format's own dequantization do.
__device__ __forceinline__ float block_scale(const BlockScales& s, int64_t block) {
  if (s.absmax_8bit == nullptr) return __ldg(s.absmax + block);
  const float value = __ldg(s.absmax_code + __ldg(s.absmax_8bit + block));
  return __fadd_rn(__fmul_rn(value, __ldg(s.absmax2 + block / kNestedBlocksize)),
                   __ldg(s.absmax_offset));
}

/// A 16-entry table by value, so that a launch needs no copy to the device.
struct Table16 {
  float values[16];
};

}  // namespace lowbit::kernels::cuda
