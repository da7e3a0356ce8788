// The plan of several 4-bit weights over one input. Needs no CUDA.
#include <algorithm>

#include "cuda/fourbit_group.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid_sm80.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int64_t kSmallTokens = 8;  // the small kernel serves no more in one pass
// Up to which the kernel without wgmma is the faster one for a group on Hopper (H200).
constexpr int64_t kHopperTokens = 32, kHopperRows = 64;  // of a multiprocessor

/// The instance for a weight of all the members' rows, and its blocks spread over the members.
Matmul4bitCudaPlan plan_small_group(const Matmul4bitParams* members, int32_t count,
                                    const DeviceProperties& device) {
  Matmul4bitParams all = members[0];
  int64_t tiles = 0;
  all.n = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (!small_applies(members[i])) return {};
    all.n += members[i].n;
    tiles += ceil_div(members[i].n, kSmallRows);
  }
  Matmul4bitCudaPlan plan = best_small(all, device);
  if (plan.grid_x == 0 || kSmallVariants[plan.id - kSmall].fine) return {};
  const SmallVariant& v = kSmallVariants[plan.id - kSmall];
  const int64_t wave = std::max<int64_t>(count, device.multiprocessors);
  // One wave, or as many as the scales and sums of a block's rows need room.
  for (int64_t grid = wave;; grid += wave) {
    const int64_t most = small_group_tiles(members, count, std::min(grid, tiles));
    int64_t blocks = 0, bytes = 0;
    for (int32_t i = 0; i < count; ++i) {
      const Matmul4bitParams& p = members[i];
      const int64_t mine = small_member_blocks(p, most);
      blocks += mine;
      bytes = std::max<int64_t>(
          bytes, small_layout(v, p.m, p.n, p.k, p.blocksize, p.scales.nested(), mine).bytes);
    }
    if (bytes <= device.shared_bytes_per_block) {
      plan.members = count;
      plan.grid_x = static_cast<int32_t>(blocks);
      plan.shared_bytes = bytes;
      return plan;
    }
    if (grid >= tiles) return {};
  }
}

}  // namespace

Matmul4bitCudaPlan plan_matmul_4bit_group(const Matmul4bitParams* members, int32_t count,
                                          const DeviceProperties& device) noexcept {
  if (count < 2 || !is_group(members, count) || members[0].k < 1 ||
      device.compute_capability < 80) {
    return {};
  }
  if (members[0].m <= kSmallTokens) return plan_small_group(members, count, device);
  const Matmul4bitCudaPlan plan = best_mid_sm80(members, count, device);
  if (!plan.fused) return {};
  // Hopper has a faster kernel for a single weight. Weights that leave it multiprocessors to spare
  // are faster together all the same.
  int64_t rows = 0;
  for (int32_t i = 0; i < count; ++i) rows += members[i].n;
  const bool together =
      device.compute_capability != 90 ||
      (members[0].m <= kHopperTokens && rows <= kHopperRows * device.multiprocessors);
  return together ? plan : Matmul4bitCudaPlan{};
}

}  // namespace lowbit::kernels::cuda
