// Optimizer steps: Adam (AdamW, LAMB), AdEMAMix, SGD with momentum (LARS), RMSprop, Adagrad, Lion,
// with float32 or 8-bit block-wise states. A call updates any number of tensors of one dtype.
#pragma once

#include <cstdint>

#include "lowbit/kernels/types.h"

namespace lowbit::kernels {

/// The update rule. m, v: moments; g: gradient * gnorm_scale; h = g + weight_decay * p; c1 = 1 -
/// beta1^step, c2 = sqrt(1 - beta2^step); u: the update limit, see OptimizerHyper::max_unorm.
/// Everything in float32, p is rounded to its dtype once.
enum class OptimizerKind : int8_t {
  /// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p -= u lr (m / c1) / (sqrt(v) / c2
  /// + eps), p *= 1 - lr weight_decay. https://arxiv.org/abs/1412.6980, 1711.05101, 1904.00962
  kAdam,
  /// As Adam with a second, slower moment n = beta3 n + (1 - beta3) g: the numerator is m / c1 +
  /// alpha n. https://arxiv.org/abs/2409.03137
  kAdEMAMix,
  /// m = h at step 1, beta1 m + h later; p -= u lr m. LARS: https://arxiv.org/abs/1708.03888
  kMomentum,
  /// v = beta1 v + (1 - beta1) h^2, p -= u lr h / (sqrt(v) + eps)
  kRMSprop,
  /// v += h^2, p -= lr h / (sqrt(v) + eps)
  kAdagrad,
  /// p *= 1 - lr weight_decay, p -= lr sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 -
  /// beta2) g. https://arxiv.org/abs/2302.06675
  kLion,
};

/// Adam and AdEMAMix keep a second moment in state2.
constexpr bool has_second_state(OptimizerKind kind) noexcept {
  return kind == OptimizerKind::kAdam || kind == OptimizerKind::kAdEMAMix;
}
/// Elements of state1 for each element of p (AdEMAMix: rows m and n).
constexpr int64_t state1_rows(OptimizerKind kind) noexcept {
  return kind == OptimizerKind::kAdEMAMix ? 2 : 1;
}
/// Whether max_unorm means something.
constexpr bool has_update_limit(OptimizerKind kind) noexcept {
  return kind == OptimizerKind::kAdam || kind == OptimizerKind::kMomentum ||
         kind == OptimizerKind::kRMSprop;
}

/// Elements that share a scale of an 8-bit state.
inline constexpr int64_t kOptimizerBlocksize = 256;
/// The unit of the range kernels: so many consecutive elements of one tensor (its last chunk may be
/// short).
inline constexpr int64_t kOptimizerChunk = 4096;

/// Hyper-parameters of some of the tensors of a call.
struct OptimizerHyper {
  float lr = 0, beta1 = 0, beta2 = 0, beta3 = 0, alpha = 0, eps = 0, weight_decay = 0;
  int64_t step = 1;  ///< 1 at the first call.
  float gnorm_scale = 1;
  /// > 0: u = min(1, max_unorm |p| / |update|), the update without lr and weight decay.
  float max_unorm = 0;
  float param_norm = -1;  ///< |p| when the caller knows it; negative: it is computed.
  /// Elements whose gradient (kMomentum, kRMSprop, kAdagrad: h) is 0 keep p and their states.
  bool skip_zeros = false;
  /// bfloat16 p only: rounded up or down at random, so that the mean of many roundings is exact.
  /// The random bits are a hash of the seed, the step and the element's place in the call.
  bool stochastic_rounding = false;
  uint32_t rounding_seed = 0;
  // One value each in memory of the device that runs the kernel, read when it runs, in place of the
  // fields above (lr and step) or as one more factor (gnorm_scale). Null: not used.
  const float* lr_value = nullptr;
  const float* step_value = nullptr;
  const float* gnorm_scale_value = nullptr;
};

/// One parameter. Row-major, contiguous.
struct OptimizerTensor {
  void* p = nullptr;        ///< [numel]
  const void* g = nullptr;  ///< [numel], p's dtype
  /// float32, or uint8 codes of map1: [state1_rows, numel]
  void* state1 = nullptr;
  void* state2 = nullptr;    ///< [numel], codes of map2
  float* absmax1 = nullptr;  ///< 8-bit states only: [state1_rows, ceil(numel / 256)]
  float* absmax2 = nullptr;  ///< [ceil(numel / 256)]
  float* unorm = nullptr;    ///< [1], receives |update|^2 when max_unorm > 0; null: not wanted
  int64_t numel = 0;
  int32_t hyper = 0;  ///< index in OptimizerParams::hypers
};

/// 8-bit states: value = map[code] * absmax. After the update a block's absmax is the largest
/// magnitude of the new states (NaN ignored) and a code the nearest one to state / absmax, ties to
/// the even index; NaN has code 0. Codes of signed moments keep the sign (a negative value never
/// reads as +0); a positive second moment of a one-state rule never reads as 0. A gradient that is
/// not finite leaves p alone and sets the states to 0 with kAdam and kAdEMAMix; otherwise, and with
/// float32 states, it propagates. Subnormal numbers count as zeros.
struct OptimizerParams {
  OptimizerKind kind = OptimizerKind::kAdam;
  bool blockwise = false;  ///< 8-bit states
  DType dtype = DType::kFloat32;
  const OptimizerTensor* tensors = nullptr;  ///< [ntensors], in host memory, as are hypers
  int64_t ntensors = 0;
  const OptimizerHyper* hypers = nullptr;
  int64_t nhypers = 0;
  const float* map1 = nullptr;  ///< [256] ascending, 8-bit states only
  const float* map2 = nullptr;
  void* workspace = nullptr;  ///< optimizer_workspace_bytes(), 16-byte aligned
};

/// Sum over the tensors of ceil(numel / kOptimizerChunk).
int64_t optimizer_chunks(const OptimizerParams& params) noexcept;
/// 0 unless a tensor has an update limit.
int64_t optimizer_workspace_bytes(const OptimizerParams& params) noexcept;

namespace ref {
/// Where a tensor has an update limit: first the norms of all chunks, then the limits of all
/// tensors, then the steps.
/// Unit: chunk. Writes the workspace only.
Status optimizer_norms(const OptimizerParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: chunk.
Status optimizer_step(const OptimizerParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace ref

namespace cpu {
/// Unit: chunk.
Status optimizer_norms(const OptimizerParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: tensor. Sums of its chunks in order, so that threads change no bit.
Status optimizer_limits(const OptimizerParams& params, int64_t begin, int64_t end) noexcept;
/// Unit: chunk. The bits of ref::optimizer_step.
Status optimizer_step(const OptimizerParams& params, int64_t begin, int64_t end) noexcept;
}  // namespace cpu

/// Norms, limits and steps of all chunks, in builds with CUDA. One launch for up to 480 tensors
/// (two more where an update is limited); tensors and hypers may be freed when it returns. States
/// and absmax are the bits of the CPU; p too with float32 states, and within 2e-6 of an update with
/// 8-bit ones.
namespace cuda {
Status optimizer_step(const OptimizerParams& params, Stream stream) noexcept;
}

}  // namespace lowbit::kernels
