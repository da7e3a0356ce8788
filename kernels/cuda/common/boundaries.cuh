// Boundaries between 256 ascending values: what the two tables of codes (nearest_code.cuh,
// state_code.cuh) are made from.
#pragma once

namespace lowbit::kernels::cuda {

/// The next float towards -inf, where subnormals do not exist; zero's is the smallest negative one.
__device__ __forceinline__ float float_below(float x) {
  const int bits = __float_as_int(x);
  if ((bits & 0x7fffffff) == 0) return __int_as_float(0x80800000);
  return __int_as_float(bits < 0 ? bits + 1 : bits - 1);
}

/// Between the codes k - 1 and k: the largest number whose code is k - 1. A middle, as a float32,
/// goes to the even code.
__device__ __forceinline__ float boundary_below(const float* __restrict__ values, int k) {
  const float middle = __fmul_rn(__fadd_rn(values[k - 1], values[k]), 0.5f);
  return k % 2 == 0 ? float_below(middle) : middle;
}

/// Number of boundaries[1, 255], which ascend, below y.
template <typename Number>
__device__ __forceinline__ int count_below(const Number* boundaries, Number y) {
  int low = 0, high = 255;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (y > boundaries[middle]) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace lowbit::kernels::cuda
