// What every implementation of the optimizer steps shares: coefficients, the walk over the tensors,
// the layout of the workspace.
//
// Static, as in scalar.h; also compiled for the device.
#pragma once

#include <cmath>
#include <cstdint>

#include "lowbit/kernels/optimizer.h"

#if defined(__CUDACC__)
#define LOWBIT_HOST_DEVICE __host__ __device__
#else
#define LOWBIT_HOST_DEVICE
#endif

namespace lowbit::kernels {

/// The float32 numbers of the update rules.
struct OptimizerCoefficients {
  float beta1,
      rest1;  ///< rest = float32(1 - beta): what the states of existing files were made with
  float beta2, rest2;
  float beta3, rest3;
  float alpha, inverse_c1;  ///< AdEMAMix
  float step_size;          ///< -lr, with the bias corrections that are factors of the whole update
  float eps;                ///< Adam, AdEMAMix: times c2
  float decay;              ///< decoupled: 1 - lr * weight_decay
  float coupled_decay;      ///< weight_decay of the rules that add it to the gradient
  float grad_scale;
  float norm_factor;  ///< |update|^2 = norm_factor * sum of (the direction that step_size scales)^2
  bool skip_zeros;
  bool stochastic_rounding;
  uint32_t rounding_key;
};

/// A mixer of 32 bits whose output bits depend evenly on those of the input (C. Wellons,
/// "lowbias32").
LOWBIT_HOST_DEVICE static inline uint32_t mix_bits(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

/// Of an element counted through all chunks of a call.
LOWBIT_HOST_DEVICE static inline uint32_t rounding_bits(uint32_t key, int64_t element) {
  const uint32_t high = static_cast<uint32_t>(element >> 32) * 0x9e3779b9u;
  return mix_bits((static_cast<uint32_t>(element) + high) ^ key);
}

/// A float32's bits as those of a bfloat16: away from zero with the probability that the dropped
/// bits are of a unit.
LOWBIT_HOST_DEVICE static inline uint16_t round_to_bfloat(uint32_t bits, uint32_t random) {
  if ((bits & 0x7f800000u) != 0x7f800000u)
    return static_cast<uint16_t>((bits + (random & 0xffffu)) >> 16);
  return static_cast<uint16_t>(bits >> 16 | ((bits & 0x7fffffu) != 0 ? 0x40u : 0u));
}

/// Bias corrections in double from the float32 betas.
LOWBIT_HOST_DEVICE static inline OptimizerCoefficients optimizer_coefficients(
    OptimizerKind kind, const OptimizerHyper& h) {
  const double lr = h.lr_value != nullptr ? *h.lr_value : h.lr;
  const double step =
      h.step_value != nullptr ? static_cast<double>(*h.step_value) : static_cast<double>(h.step);
  const float scale = h.gnorm_scale_value != nullptr ? *h.gnorm_scale_value : 1.0f;
  OptimizerCoefficients c{};
  c.beta1 = h.beta1;
  c.rest1 = 1.0f - h.beta1;
  c.beta2 = h.beta2;
  c.rest2 = 1.0f - h.beta2;
  c.beta3 = h.beta3;
  c.rest3 = 1.0f - h.beta3;
  c.alpha = h.alpha;
  c.inverse_c1 = 1.0f;
  c.step_size = static_cast<float>(-lr);
  c.eps = h.eps;
  c.decay = 1.0f;
  c.grad_scale = h.gnorm_scale * scale;
  c.norm_factor = 1.0f;
  c.skip_zeros = h.skip_zeros;
  c.stochastic_rounding = h.stochastic_rounding;
  c.rounding_key = mix_bits(h.rounding_seed ^ mix_bits(static_cast<uint32_t>(step)));
  switch (kind) {
    case OptimizerKind::kAdam:
    case OptimizerKind::kAdEMAMix: {
      const double c1 = 1.0 - pow(static_cast<double>(h.beta1), step);
      const double c2 = sqrt(1.0 - pow(static_cast<double>(h.beta2), step));
      const bool adam = kind == OptimizerKind::kAdam;
      c.step_size = static_cast<float>(adam ? -lr * c2 / c1 : -lr * c2);
      c.inverse_c1 = static_cast<float>(1.0 / c1);
      c.eps = static_cast<float>(h.eps * c2);
      c.norm_factor = static_cast<float>((c2 / c1) * (c2 / c1));
      c.decay = static_cast<float>(1.0 - lr * h.weight_decay);
      break;
    }
    case OptimizerKind::kLion:
      c.decay = static_cast<float>(1.0 - lr * h.weight_decay);
      break;
    case OptimizerKind::kMomentum:
      if (step <= 1.0) c.beta1 = 0.0f;
      c.coupled_decay = h.weight_decay;
      break;
    case OptimizerKind::kRMSprop:
    case OptimizerKind::kAdagrad:
      c.coupled_decay = h.weight_decay;
      break;
  }
  return c;
}

/// min(1, max_unorm |p| / |update|); 1 when the norms are not numbers.
LOWBIT_HOST_DEVICE static inline float optimizer_limit(float max_unorm, double param_norm,
                                                       double update_norm) {
  const double bound = max_unorm * param_norm;
  return update_norm > bound ? static_cast<float>(bound / update_norm) : 1.0f;
}

/// Workspace: norms [chunks, 2] (sums of squares of p and of the direction), then limits
/// [ntensors].
static inline float* optimizer_norms_of(const OptimizerParams& p) {
  return static_cast<float*>(p.workspace);
}
static inline float* optimizer_limits_of(const OptimizerParams& p) {
  return optimizer_norms_of(p) + 2 * optimizer_chunks(p);
}

/// One chunk of one tensor.
struct OptimizerChunk {
  const OptimizerTensor* tensor;
  int64_t tensor_index;
  int64_t first, last;  ///< elements
  int64_t chunk;        ///< among all chunks
};

/// Calls f(chunk) for each chunk of [begin, end) in order.
template <typename F>
static inline void for_each_chunk(const OptimizerParams& p, int64_t begin, int64_t end,
                                  const F& f) {
  int64_t passed = 0;
  for (int64_t t = 0; t < p.ntensors && passed < end; ++t) {
    const OptimizerTensor& tensor = p.tensors[t];
    const int64_t chunks = ceil_div(tensor.numel, kOptimizerChunk);
    for (int64_t i = begin > passed ? begin - passed : 0; i < chunks && passed + i < end; ++i) {
      const int64_t first = i * kOptimizerChunk;
      const int64_t last =
          tensor.numel - first < kOptimizerChunk ? tensor.numel : first + kOptimizerChunk;
      f(OptimizerChunk{&tensor, t, first, last, passed + i});
    }
    passed += chunks;
  }
}

/// How codes of a state are chosen beside the nearest value.
enum class CodeRule {
  kNearest,
  kKeepSign,  ///< the code's value has the sign bit of the state
  kPositive,  ///< the code of a positive state has a positive value
};
constexpr CodeRule code_rule_of_state1(OptimizerKind kind) {
  return kind == OptimizerKind::kRMSprop || kind == OptimizerKind::kAdagrad ? CodeRule::kPositive
                                                                            : CodeRule::kKeepSign;
}

}  // namespace lowbit::kernels
