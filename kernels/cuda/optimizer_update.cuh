// The update rules on the device: the arithmetic of ref/optimizer.cpp, operation by operation.
// kFast replaces the quotient and the root of the direction by approximate ones (2 ulp): with 8-bit
// states they would cost more than everything else, and only p sees them.
#pragma once

#include <type_traits>

#include "cuda/common/cast.cuh"
#include "optimizer_math.h"

namespace lowbit::kernels::cuda {

struct DeviceElement {
  float p, g, state1, slow, state2;
};

__device__ __forceinline__ float average(float beta, float rest, float state, float value) {
  return __fmaf_rn(rest, value, __fmul_rn(beta, state));
}
__device__ __forceinline__ float average_of_squares(float beta, float rest, float state,
                                                    float value) {
  return __fmaf_rn(__fmul_rn(rest, value), value, __fmul_rn(beta, state));
}

template <bool kFast>
__device__ __forceinline__ float over_root(float numerator, float v, float eps) {
  if constexpr (kFast) {
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(v));
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(root + eps));
    return numerator * inverse;
  } else {
    return __fdiv_rn(numerator, __fadd_rn(__fsqrt_rn(v), eps));
  }
}

template <OptimizerKind kKind, bool kFast>
__device__ __forceinline__ float update_states(const OptimizerCoefficients& c, DeviceElement& e) {
  if constexpr (kKind == OptimizerKind::kAdam) {
    e.state1 = average(c.beta1, c.rest1, e.state1, e.g);
    e.state2 = average_of_squares(c.beta2, c.rest2, e.state2, e.g);
    return over_root<kFast>(e.state1, e.state2, c.eps);
  } else if constexpr (kKind == OptimizerKind::kAdEMAMix) {
    e.state1 = average(c.beta1, c.rest1, e.state1, e.g);
    e.slow = average(c.beta3, c.rest3, e.slow, e.g);
    e.state2 = average_of_squares(c.beta2, c.rest2, e.state2, e.g);
    const float numerator = __fmaf_rn(c.alpha, e.slow, __fmul_rn(e.state1, c.inverse_c1));
    return over_root<kFast>(numerator, e.state2, c.eps);
  } else if constexpr (kKind == OptimizerKind::kMomentum) {
    e.state1 = __fmaf_rn(c.beta1, e.state1, e.g);
    return e.state1;
  } else if constexpr (kKind == OptimizerKind::kRMSprop) {
    e.state1 = average_of_squares(c.beta1, c.rest1, e.state1, e.g);
    return over_root<kFast>(e.g, e.state1, c.eps);
  } else if constexpr (kKind == OptimizerKind::kAdagrad) {
    e.state1 = __fmaf_rn(e.g, e.g, e.state1);
    return over_root<kFast>(e.g, e.state1, c.eps);
  } else {
    const float x = average(c.beta1, c.rest1, e.state1, e.g);
    e.state1 = average(c.beta2, c.rest2, e.state1, e.g);
    return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f;
  }
}

/// Rules whose weight decay is part of the gradient.
constexpr bool is_coupled(OptimizerKind kind) {
  return kind == OptimizerKind::kMomentum || kind == OptimizerKind::kRMSprop ||
         kind == OptimizerKind::kAdagrad;
}

/// e.g becomes the gradient that the states see. Its scale is exact when it is 1.
template <OptimizerKind kKind>
__device__ __forceinline__ void scale_gradient(const OptimizerCoefficients& c, DeviceElement& e) {
  e.g = __fmul_rn(e.g, c.grad_scale);
  if constexpr (is_coupled(kKind)) {
    if (c.coupled_decay != 0.0f) e.g = __fmaf_rn(c.coupled_decay, e.p, e.g);
  }
}

/// Returns the direction; p, g and the states in e are updated. kRare: skip_zeros counts (elements
/// whose gradient is 0 stay as they are, with direction 0).
template <OptimizerKind kKind, bool kFast, bool kRare>
__device__ __forceinline__ float update_element(const OptimizerCoefficients& c, DeviceElement& e) {
  scale_gradient<kKind>(c, e);
  const DeviceElement old = e;
  float direction = update_states<kKind, kFast>(c, e);
  e.p = kKind == OptimizerKind::kLion ? __fmaf_rn(c.step_size, direction, __fmul_rn(e.p, c.decay))
                                      : __fmul_rn(__fmaf_rn(c.step_size, direction, e.p), c.decay);
  if constexpr (kRare) {
    if (c.skip_zeros && e.g == 0.0f) {
      e = old;
      direction = 0.0f;
    }
  }
  return direction;
}

/// The new p of an element, counted through all chunks of the call.
template <typename T, bool kRare>
__device__ __forceinline__ T rounded(const OptimizerCoefficients& c, float p, int64_t element) {
  if constexpr (kRare && std::is_same_v<T, __nv_bfloat16>) {
    if (c.stochastic_rounding) {
      return __ushort_as_bfloat16(
          round_to_bfloat(__float_as_uint(p), rounding_bits(c.rounding_key, element)));
    }
  }
  return from_float<T>(p);
}

}  // namespace lowbit::kernels::cuda
