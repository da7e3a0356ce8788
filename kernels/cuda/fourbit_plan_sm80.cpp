// The plan of the mid-M kernel without wgmma (sm_80 and later). Needs no CUDA. The times behind it
// are in benchmarks/results/h200_fourbit_sm80.md.
#include <algorithm>

#include "cuda/fourbit_group.h"
#include "cuda/fourbit_mid_sm80.h"

namespace lowbit::kernels::cuda {
namespace {

bool power_of_two(int64_t x) { return x > 0 && (x & (x - 1)) == 0; }

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

constexpr int64_t kLaunchCycles = 3500;
// Where more blocks than multiprocessors come and two fit on one, they hide each other's waits.
constexpr int64_t kSharedTenths = 8;
// Tokens, in passes of 64, up to which it beats writing the weight out in 16 bits; with granules
// below 64 columns.
constexpr int64_t kFused = 128, kFusedFine = 64;

int token_class(int64_t m) { return m <= 16 ? 0 : m <= 32 ? 1 : 2; }

int64_t cycles(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p,
               const DeviceProperties& device) {
  const MidSm80Variant& v = kMidSm80Variants[plan.id - kMidSm80];
  const int64_t rounds = ceil_div(int64_t{plan.grid_x} * plan.grid_y, device.multiprocessors);
  // A multiprocessor has 1 KB more, and keeps 1 KB of each block for itself.
  const bool two = 2 * (plan.shared_bytes + 1024) <= device.shared_bytes_per_block + 1024;
  return rounds * ceil_div(p.k, kMidSm80Columns) * v.cycles *
             (two && rounds > 1 ? kSharedTenths : 10) / 10 +
         kLaunchCycles;
}

}  // namespace

bool mid_sm80_applies(const Matmul4bitParams& p) noexcept {
  return p.dtype != DType::kFloat32 && p.code == nullptr && power_of_two(p.blocksize) &&
         p.blocksize >= 32 && p.k > 0 && p.k % 16 == 0 && p.m < 1'000'000 &&
         p.n * (p.k / 16) < (int64_t{1} << 28) &&  // offsets fit 32 bits
         p.input_stride < (int64_t{1} << 26) && p.input_stride % 8 == 0 && aligned(p.input, 16) &&
         aligned(p.packed, 16);
}

Matmul4bitCudaPlan plan_mid_sm80(const Matmul4bitParams* members, int32_t count,
                                 const DeviceProperties& device, int variant) noexcept {
  const MidSm80Variant& v = kMidSm80Variants[variant];
  Matmul4bitCudaPlan plan;
  plan.kernel = v.name;
  plan.id = kMidSm80 + variant;
  plan.fused = members[0].m <= (v.granule == 64 ? kFused : kFusedFine);
  plan.threads = v.warps * 32;
  plan.members = count;
  plan.grid_y = static_cast<int32_t>(ceil_div(members[0].m, v.tokens));
  plan.shared_bytes = mid_sm80_layout(v).bytes;
  if (plan.shared_bytes > device.shared_bytes_per_block) return plan;
  for (int32_t i = 0; i < count; ++i) {
    if (v.granule > mid_sm80_granule(members[i])) {
      plan.grid_x = 0;
      return plan;
    }
    plan.grid_x += static_cast<int32_t>(ceil_div(members[i].n, mid_sm80_rows(v)));
  }
  // Where there is a multiprocessor for each block, none shall share one: the blocks of a launch
  // that begins early would crowd on those that the launch before it leaves first.
  if (int64_t{plan.grid_x} * plan.grid_y <= device.multiprocessors) {
    plan.shared_bytes = std::max(plan.shared_bytes, device.shared_bytes_per_block / 2 + 1024);
  }
  return plan;
}

Matmul4bitCudaPlan best_mid_sm80(const Matmul4bitParams* members, int32_t count,
                                 const DeviceProperties& device) noexcept {
  const Matmul4bitParams& p = members[0];
  if (device.compute_capability < 80 || !is_group(members, count)) return {};
  int granule = 64;
  for (int32_t i = 0; i < count; ++i) {
    if (!mid_sm80_applies(members[i])) return {};
    granule = std::min(granule, mid_sm80_granule(members[i]));
  }
  Matmul4bitCudaPlan best;
  for (int variant = 0; variant < kMidSm80VariantCount; ++variant) {
    const MidSm80Variant& v = kMidSm80Variants[variant];
    if (v.granule != granule || v.tokens > 16 << token_class(p.m)) continue;
    const Matmul4bitCudaPlan plan = plan_mid_sm80(members, count, device, variant);
    if (plan.grid_x > 0 &&
        (best.grid_x == 0 || cycles(plan, p, device) < cycles(best, p, device))) {
      best = plan;
    }
  }
  return best;
}

}  // namespace lowbit::kernels::cuda
