// Several 4-bit weights over one input, in one launch. Plain C++.
#pragma once

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

/// Whether the members have the same input, and kernels may tell them apart by their weight, bias
/// and output alone.
inline bool is_group(const Matmul4bitParams* members, int32_t count) noexcept {
  if (count < 1 || count > kMatmulGroupMost) return false;
  const Matmul4bitParams& p = members[0];
  for (int32_t i = 1; i < count; ++i) {
    const Matmul4bitParams& q = members[i];
    if (q.input != p.input || q.input_stride != p.input_stride || q.dtype != p.dtype ||
        q.m != p.m || q.k != p.k || q.blocksize != p.blocksize || q.quant_type != p.quant_type ||
        q.code != p.code || q.scales.nested() != p.scales.nested() || q.n < 1 ||
        q.programmatic_launch != p.programmatic_launch) {
      return false;
    }
  }
  return p.m > 0 && p.n > 0;
}

}  // namespace lowbit::kernels::cuda
