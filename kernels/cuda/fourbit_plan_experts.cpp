// The plan of a stack of 4-bit weights over tokens in groups. Needs no CUDA. How the tokens are
// spread is on the device, so that any plan is right for any groups; it is chosen for even ones.
#include <algorithm>

#include "cuda/fourbit_experts.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid_sm80.h"

namespace lowbit::kernels::cuda {
namespace {

// Tokens of a group up to which it beats writing the stack out in 16 bits.
constexpr int64_t kFused = 64, kFusedFine = 32, kGeneralFused = 8;
constexpr int64_t kMostGridY = 65535;
// Until a block multiplies: ends, table of pairs, first codes.
constexpr int64_t kBlockCycles = 2500;

/// Tokens of a group, where they are even.
int64_t mean_tokens(const GroupedMatmul4bitParams& p) {
  return ceil_div(p.stack.m, expert_places(p));
}

/// Tiles of a group's tokens that get a thread block of their own: for twice the mean, as routers
/// are uneven. Larger groups take turns.
int32_t token_blocks(const GroupedMatmul4bitParams& p, int64_t tokens) {
  const int64_t tiles = std::min(ceil_div(2 * mean_tokens(p), tokens), ceil_div(p.stack.m, tokens));
  return static_cast<int32_t>(std::min(tiles, kMostGridY));
}

int64_t cycles(const Matmul4bitCudaPlan& plan, const GroupedMatmul4bitParams& p,
               const DeviceProperties& device) {
  const MidSm80Variant& v = kMidSm80Variants[plan.id - kMidSm80];
  // Half of the tokens lie in groups that are longer than the mean.
  const int64_t tiles = ceil_div(ceil_div(3 * mean_tokens(p), 2), v.tokens);
  const int64_t rounds = ceil_div(plan.grid_x * tiles, device.multiprocessors);
  const int64_t block = ceil_div(p.stack.k, kMidSm80Columns) * v.cycles + kBlockCycles;
  // As for one weight: two blocks on a multiprocessor hide each other's waits.
  const bool two = 2 * (plan.shared_bytes + 1024) <= device.shared_bytes_per_block + 1024;
  return rounds * block * (two && rounds > 1 ? 8 : 10) / 10;
}

}  // namespace

Matmul4bitCudaPlan plan_experts(const GroupedMatmul4bitParams& p, const DeviceProperties& device,
                                int variant) noexcept {
  const MidSm80Variant& v = kMidSm80Variants[variant];
  Matmul4bitCudaPlan plan;
  plan.kernel = v.name;
  plan.id = kMidSm80 + variant;
  plan.fused = mean_tokens(p) <= (v.granule == 64 ? kFused : kFusedFine);
  plan.threads = v.warps * 32;
  plan.shared_bytes = mid_sm80_layout(v).bytes;
  plan.grid_y = token_blocks(p, v.tokens);
  const int64_t blocks = expert_places(p) * ceil_div(p.stack.n / p.experts, mid_sm80_rows(v));
  if (v.experts && v.granule <= mid_sm80_granule(p.stack) && blocks < (int64_t{1} << 31) &&
      plan.shared_bytes <= device.shared_bytes_per_block) {
    plan.grid_x = static_cast<int32_t>(blocks);
  }
  return plan;
}

Matmul4bitCudaPlan best_experts(const GroupedMatmul4bitParams& p,
                                const DeviceProperties& device) noexcept {
  Matmul4bitCudaPlan best;
  if (device.compute_capability < 80 || !mid_sm80_applies(p.stack)) return best;
  for (int variant = 0; variant < kMidSm80VariantCount; ++variant) {
    if (kMidSm80Variants[variant].granule < 64 && mid_sm80_granule(p.stack) == 64) continue;
    const Matmul4bitCudaPlan plan = plan_experts(p, device, variant);
    if (plan.grid_x > 0 &&
        (best.grid_x == 0 || cycles(plan, p, device) < cycles(best, p, device))) {
      best = plan;
    }
  }
  return best;
}

Matmul4bitCudaPlan plan_grouped_matmul_4bit(const GroupedMatmul4bitParams& p,
                                            const DeviceProperties& device) noexcept {
  if (p.stack.m <= 0 || p.stack.n <= 0 || p.experts <= 0) return {};
  const Matmul4bitCudaPlan best = best_experts(p, device);
  if (best.grid_x > 0) return best;
  Matmul4bitCudaPlan plan;
  plan.kernel = "experts_general";
  plan.id = kGeneral;
  plan.fused = mean_tokens(p) <= kGeneralFused;
  plan.threads = kExpertsThreads;
  plan.grid_x = static_cast<int32_t>(std::min<int64_t>(
      expert_places(p) * ceil_div(p.stack.n / p.experts, kExpertsTile), (int64_t{1} << 31) - 1));
  plan.grid_y = token_blocks(p, kExpertsTile);
  return plan;
}

}  // namespace lowbit::kernels::cuda
