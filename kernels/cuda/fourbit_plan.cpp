// Which CUDA kernel runs a 4-bit matmul, and on what grid. Needs no CUDA. The times behind the
// thresholds are in benchmarks/results/h200_fourbit_matmul.md.
#include <algorithm>

#include "cuda/fourbit_large.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid.h"
#include "cuda/fourbit_mid_sm80.h"

namespace lowbit::kernels::cuda {
namespace {

bool power_of_two(int64_t x) { return x > 0 && (x & (x - 1)) == 0; }

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Passes over the weight up to which a fused kernel beats writing it out in 16 bits (8 times its
// bytes) and reading that back.
constexpr int64_t kGeneralFused = 16;  // tokens
constexpr int64_t kSmallFused = 48;
constexpr int64_t kSmallFusedLittle = 32;

bool little(const Matmul4bitParams& p) { return p.n * p.k <= 17'000'000; }

Matmul4bitCudaPlan plan_general(const Matmul4bitParams& p) {
  Matmul4bitCudaPlan plan;
  plan.kernel = "general";
  plan.id = kGeneral;
  plan.fused = p.m <= kGeneralFused;
  plan.threads = kGeneralThreads;
  plan.grid_x = static_cast<int32_t>(
      std::min<int64_t>(ceil_div(p.n, kGeneralRows), int64_t{1} << 30));  // blocks stride
  plan.grid_y = static_cast<int32_t>(std::min<int64_t>(ceil_div(p.m, general_tokens(p.m)), 65535));
  return plan;
}

/// The variants worth trying, best first (measured on an H200 at six shapes of Llama models).
void preferred_variants(const Matmul4bitParams& p, const DeviceProperties& device,
                        int (&order)[4]) {
  enum { k1W16S3, k1W16S2, k1W8, k8W16S3, k8W16S2, k8W8, k16, k8Fine, k16Fine, k8W16E, k8W8E };
  const auto choose = [&](int a, int b, int c, int d) {
    order[0] = a, order[1] = b, order[2] = c, order[3] = d;
  };
  // Two launches share a multiprocessor, so that the next starts early; with a tile or none for
  // each, more warps share K instead.
  const bool early = little(p) && ceil_div(p.n, kSmallRows) > device.multiprocessors;
  if (p.blocksize == 32) {
    p.m <= 8 ? choose(k8Fine, -1, -1, -1) : choose(k16Fine, k8Fine, -1, -1);
  } else if (p.m > 8) {
    choose(k16, k8W16S2, k8W8, -1);
  } else if (device.compute_capability >= 90) {
    early ? choose(k8W8E, k8W16E, k8W8, k8W16S2) : choose(k8W16E, k8W16S2, k8W8E, k8W8);
  } else if (early) {
    choose(k8W8, k8W16S2, -1, -1);
  } else if (little(p)) {
    choose(k8W16S3, k8W16S2, k8W8, -1);
  } else if (p.m == 1) {
    choose(k1W16S2, k1W16S3, k8W16S2, k8W8);
  } else {
    choose(k8W16S2, k8W16S3, k8W8, -1);
  }
}

// The mid-M kernel's time in cycles (H200): for 64 rows x 64 columns of W, by rows and tokens; for
// a launch; for the sums that a cluster exchanges. Measured:
// benchmarks/results/h200_fourbit_matmul.md.
constexpr int64_t kMidTileCycles[2][4] = {{178, 200, 290, 370}, {150, 178, 250, 405}};
constexpr int64_t kMidLaunchCycles = 4500;
constexpr int64_t kMidExchangeCycles[] = {1900, 2400, 3300, 4300};
constexpr int64_t kMidFrom = 9;     // tokens; the small kernel serves fewer
constexpr int64_t kSmallMost = 16;  // tokens that the small kernel serves in one pass
// Clusters of eight were never the fastest: few of them find room at a time.
constexpr int kMidSplitsTried = 4;

int mid_token_class(int64_t m) { return m <= 16 ? 0 : m <= 32 ? 1 : m <= 64 ? 2 : 3; }

int64_t mid_cycles(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p,
                   const DeviceProperties& device) {
  const MidVariant& v = kMidVariants[plan.id - kMid];
  const int tokens = mid_token_class(v.tokens);
  const int64_t tiles = ceil_div(ceil_div(p.k, 64), plan.splits) * v.row_groups;
  // Blocks of a cluster lie in one group of multiprocessors: some are left over.
  const int64_t places = plan.splits <= 2 ? device.multiprocessors : device.multiprocessors * 7 / 8;
  const int64_t rounds = ceil_div(int64_t{plan.grid_x} * plan.grid_y, places);
  return rounds * (tiles * kMidTileCycles[v.row_groups - 1][tokens] + kMidLaunchCycles +
                   (plan.splits > 1 ? kMidExchangeCycles[tokens] : 0));
}

// The large-M kernel's time in cycles (H200), alike for blocks that share the activations and
// others: for 128 features x 64 of depth, by variant; for the outputs of a tile; for a launch; for
// the sums of 1, 2 or 4 parts of the depth. Measured: benchmarks/results/h200_fourbit_matmul.md.
constexpr int64_t kLargeBlockCycles[] = {580, 715, 850, 990, 1075, 1200};
constexpr int64_t kLargeBackwardBlockCycles[] = {775, 955, 1035, 1150, 1250, 1350};
constexpr int64_t kLargeOutputCycles[] = {750, 1500, 1850, 2200, 2550, 2900};
constexpr int64_t kLargeLaunchCycles = 4500;
constexpr int64_t kLargeExchangeCycles[] = {0, 3000, 5000};
constexpr int64_t kLargePairExchangeCycles = 2000;  // more, for pairs: larger clusters meet
constexpr int64_t kLargeFrom = 65;                  // tokens

/// Clusters that find room at a time: they lie in one group of multiprocessors each.
int64_t cluster_places(int64_t blocks, const DeviceProperties& device) {
  const int64_t most = device.multiprocessors / blocks;
  return blocks <= 2 ? most : std::max<int64_t>(1, most - (blocks == 4 ? 3 : 1));
}

int64_t large_cycles(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p,
                     const DeviceProperties& device, bool backward) {
  const int variant = plan.id - kLarge;
  const int64_t tokens = kLargeVariants[variant].tokens;
  const int64_t block = (backward ? kLargeBackwardBlockCycles : kLargeBlockCycles)[variant];
  const int64_t features = backward ? p.k : p.n, depth = backward ? p.n : p.k;
  const int64_t tiles = ceil_div(features, kLargeFeatures * plan.together) * ceil_div(p.m, tokens);
  const int64_t work = ceil_div(ceil_div(depth, kLargeDepth), plan.splits) * 4 * block +
                       kLargeOutputCycles[variant] / plan.splits;
  const int64_t rounds =
      ceil_div(tiles, cluster_places(int64_t{plan.together} * plan.splits, device));
  // Without a split, blocks go from tile to tile in one launch.
  if (plan.splits == 1) return rounds * work + kLargeLaunchCycles;
  return rounds * (work + kLargeExchangeCycles[plan.splits / 2] + kLargeLaunchCycles +
                   (plan.together > 1 ? kLargePairExchangeCycles : 0));
}

/// The small-M kernel's time in cycles (H200): bytes of the weight, and arithmetic of the tokens.
int64_t small_cycles(const Matmul4bitParams& p) {
  return p.n * p.k / 3600 * (40 + p.m) / 40 + 3500;
}

/// Writing the weight out in 16 bits, then a library's product: two kernels at the speed of memory
/// or of the tensor cores.
int64_t library_cycles(const Matmul4bitParams& p, const DeviceProperties& device, bool backward) {
  const int64_t weights = p.n * p.k, rate = backward ? 1765 : 1500;
  return weights * 13 / 12'000 +
         std::max(weights / 1300, p.m * weights / (device.multiprocessors * rate)) + 16'000;
}

/// The instance with the least estimated time.
Matmul4bitCudaPlan best_large(const Matmul4bitParams& p, const DeviceProperties& device,
                              bool backward) {
  Matmul4bitCudaPlan best;
  int64_t least = 0;
  for (int variant = 0; variant < kLargeVariantCount; ++variant) {
    for (const int together : {2, 1}) {
      for (int splits = 1; splits <= kLargeMaxSplits; splits *= 2) {
        const Matmul4bitCudaPlan plan = plan_large(p, device, variant, together, splits, backward);
        if (plan.grid_x == 0) continue;
        const int64_t cycles = large_cycles(plan, p, device, backward);
        if (best.grid_x == 0 || cycles < least) best = plan, least = cycles;
      }
    }
  }
  if (best.grid_x > 0) best.fused = least <= library_cycles(p, device, backward);
  return best;
}

/// The instance and the split of K with the least estimated time.
Matmul4bitCudaPlan best_mid(const Matmul4bitParams& p, const DeviceProperties& device) {
  Matmul4bitCudaPlan best;
  for (const int r64 : {0, 4}) {
    for (int splits = 1; splits <= kMidSplitsTried; splits *= 2) {
      const Matmul4bitCudaPlan plan = plan_mid(p, device, mid_token_class(p.m) + r64, splits);
      if (plan.grid_x > 0 &&
          (best.grid_x == 0 || mid_cycles(plan, p, device) < mid_cycles(best, p, device))) {
        best = plan;
      }
    }
  }
  return best;
}

}  // namespace

bool small_applies(const Matmul4bitParams& p) noexcept {
  return p.dtype != DType::kFloat32 && p.code == nullptr && power_of_two(p.blocksize) &&
         p.blocksize >= 32 && p.k % 64 == 0 && p.k % p.blocksize == 0 && p.k <= (1 << 20) &&
         p.n * (p.k / 64) < (int64_t{1} << 26) &&  // offsets fit 32 bits
         p.input_stride % 8 == 0 && aligned(p.input, 16) && aligned(p.packed, 16);
}

Matmul4bitCudaPlan plan_small(const Matmul4bitParams& p, const DeviceProperties& device,
                              int variant) noexcept {
  const SmallVariant& v = kSmallVariants[variant];
  Matmul4bitCudaPlan plan;
  plan.kernel = v.name;
  plan.id = kSmall + variant;
  plan.fused = p.m <= (little(p) ? kSmallFusedLittle : kSmallFused);
  if (v.engine && device.compute_capability < 90) return plan;
  plan.threads = v.warps * 32;
  const int64_t tiles = ceil_div(p.n, kSmallRows);
  const int64_t wave = std::min<int64_t>(device.multiprocessors, tiles);
  const auto fits = [&](int64_t grid, int64_t limit) {
    const SmallLayout l = small_layout(v, p.m, p.n, p.k, p.blocksize, p.scales.nested(), grid);
    if (l.bytes > limit) return false;
    plan.grid_x = static_cast<int32_t>(grid);
    plan.grid_y = static_cast<int32_t>(ceil_div(p.m, v.tokens));
    plan.shared_bytes = l.bytes;
    return true;
  };
  // A multiprocessor keeps 1 KB of each block for itself.
  const int64_t limit = device.shared_bytes_per_block;
  if (v.blocks > 1 && fits(wave, (limit + 1024) / v.blocks - 1024)) return plan;
  // One wave, or as many as the scales and sums of a block's rows need room.
  for (int64_t grid = wave; !fits(grid, limit) && grid < tiles;) {
    grid = std::min<int64_t>(grid + wave, tiles);
  }
  return plan;
}

Matmul4bitCudaPlan best_small(const Matmul4bitParams& p, const DeviceProperties& device) noexcept {
  int order[4];
  preferred_variants(p, device, order);
  // The first one that fits in two waves of blocks, else the one with the fewest.
  Matmul4bitCudaPlan best;
  for (const int variant : order) {
    if (variant < 0) break;
    const Matmul4bitCudaPlan plan = plan_small(p, device, variant);
    const auto passes = [&](const Matmul4bitCudaPlan& q) {
      return std::max<int64_t>(2, ceil_div(q.grid_x, device.multiprocessors));
    };
    if (plan.grid_x > 0 && (best.grid_x == 0 || passes(plan) < passes(best))) best = plan;
  }
  return best;
}

bool mid_applies(const Matmul4bitParams& p) noexcept {
  return small_applies(p) && p.blocksize >= 64 && p.m < (1 << 20);
}

Matmul4bitCudaPlan plan_mid(const Matmul4bitParams& p, const DeviceProperties& device, int variant,
                            int splits) noexcept {
  const MidVariant& v = kMidVariants[variant];
  Matmul4bitCudaPlan plan;
  plan.kernel = v.name;
  plan.id = kMid + variant;
  plan.threads = mid_threads(v);
  plan.splits = splits;
  plan.grid_y = static_cast<int32_t>(ceil_div(p.m, v.tokens));
  plan.shared_bytes = mid_layout(v).bytes;
  const bool fits =
      plan.shared_bytes <= device.shared_bytes_per_block && ceil_div(p.k, kMidColumns) >= splits;
  if (fits) plan.grid_x = static_cast<int32_t>(ceil_div(p.n, 64 * v.row_groups) * splits);
  return plan;
}

bool large_applies(const Matmul4bitParams& p) noexcept {
  return p.dtype != DType::kFloat32 && p.code == nullptr && power_of_two(p.blocksize) &&
         p.blocksize >= 64 && p.k > 0 && p.k % 64 == 0 && p.m < (1 << 24) &&
         p.n * (p.k / 64) < (int64_t{1} << 26) &&  // offsets fit 32 bits
         p.input_stride % 8 == 0 && aligned(p.input, 16) && aligned(p.packed, 16);
}

Matmul4bitCudaPlan plan_large(const Matmul4bitParams& p, const DeviceProperties& device,
                              int variant, int together, int splits, bool backward) noexcept {
  const LargeVariant& v = kLargeVariants[variant];
  Matmul4bitCudaPlan plan;
  plan.kernel = backward ? v.backward_name : v.name;
  plan.id = kLarge + variant;
  plan.threads = kLargeThreads;
  plan.shared_bytes = large_layout(v).bytes;
  plan.together = together;
  plan.splits = splits;
  const int64_t blocks = int64_t{together} * splits;
  const int64_t tiles =
      ceil_div(backward ? p.k : p.n, kLargeFeatures * together) * ceil_div(p.m, v.tokens);
  if (plan.shared_bytes > device.shared_bytes_per_block) return plan;
  if (splits == 1) {
    // The two multiprocessors of a pair are neighbours: no pair lacks room.
    plan.grid_x = static_cast<int32_t>(
        blocks * std::min<int64_t>(tiles, std::max<int64_t>(1, device.multiprocessors / blocks)));
  } else if (ceil_div(backward ? p.n : p.k, kLargeDepth) >= splits && v.tokens / splits % 16 == 0 &&
             tiles <= device.multiprocessors) {
    plan.grid_x = static_cast<int32_t>(blocks * tiles);
  }
  return plan;
}

Matmul4bitCudaPlan plan_matmul_4bit(const Matmul4bitParams& p,
                                    const DeviceProperties& device) noexcept {
  if (p.m <= 0 || p.n <= 0) return {};
  // wgmma is a matter of sm_90a alone.
  if (device.compute_capability == 90 && p.k > 0 && p.m >= kMidFrom) {
    Matmul4bitCudaPlan mid, large;
    if (mid_applies(p)) {
      mid = best_mid(p, device);
      if (mid.grid_x > 0) {
        mid.fused = mid_cycles(mid, p, device) <= library_cycles(p, device, false);
      }
    }
    if (p.m >= kLargeFrom && large_applies(p)) large = best_large(p, device, false);
    if (large.grid_x > 0 &&
        (mid.grid_x == 0 || large_cycles(large, p, device, false) < mid_cycles(mid, p, device))) {
      return large;
    }
    if (mid.grid_x > 0) return mid;
  }
  // With a tile or none for each multiprocessor the small kernel, whose warps share K, is faster.
  const bool few = p.m <= kSmallMost && ceil_div(p.n, kSmallRows) <= device.multiprocessors &&
                   p.blocksize >= 64 && small_applies(p);
  if (p.k > 0 && p.m >= kMidFrom && !few) {
    const Matmul4bitCudaPlan mid = best_mid_sm80(&p, 1, device);
    if (mid.grid_x > 0) return mid;
  }
  if (p.k > 0 && device.compute_capability >= 80 && p.m <= 4096 && small_applies(p)) {
    const Matmul4bitCudaPlan small = best_small(p, device);
    if (small.grid_x > 0) return small;
  }
  if (p.k > 0) {  // few tokens, but K or the blocks are not the small kernel's
    const Matmul4bitCudaPlan mid = best_mid_sm80(&p, 1, device);
    if (mid.grid_x > 0) return mid;
  }
  return plan_general(p);
}

int64_t matmul_4bit_first_tokens(const Matmul4bitParams& p,
                                 const DeviceProperties& device) noexcept {
  if (device.compute_capability != 90 || p.m < 2 * kLargeFrom || !large_applies(p)) return p.m;
  const auto cycles_of = [&](const Matmul4bitParams& part) {
    const Matmul4bitCudaPlan plan = plan_matmul_4bit(part, device);
    if (!plan.fused) return library_cycles(part, device, false);
    if (plan.id >= kLarge) return large_cycles(plan, part, device, false);
    return plan.id >= kMid ? mid_cycles(plan, part, device) : small_cycles(part);
  };
  // What two launches must save, for an estimate is no more than that.
  int64_t first = p.m, least = cycles_of(p) * 24 / 25;
  const int64_t places = device.multiprocessors / 2;
  const int64_t feature_tiles = ceil_div(p.n, 2 * kLargeFeatures);
  int64_t tried = 0;
  for (int variant = kLargeVariantCount - 1; variant > 2; --variant) {  // of 192 tokens or more
    const int64_t tokens = kLargeVariants[variant].tokens, tiles = p.m / tokens;
    // All whole tiles of tokens, or as many of them as fill the last round of pairs.
    for (const int64_t count : {tiles, tiles * feature_tiles / places * places / feature_tiles}) {
      Matmul4bitParams head = p, rest = p;
      head.m = count * tokens;
      rest.m = p.m - head.m;
      // No kernel multiplies faster than the one with the widest tiles.
      const int64_t fastest = kLargeBlockCycles[kLargeVariantCount - 1] * head.m / 256 * p.n /
                              kLargeFeatures * p.k / 64 / device.multiprocessors;
      if (head.m == 0 || rest.m == 0 || head.m == tried ||
          fastest + 2 * kLargeLaunchCycles >= least) {
        continue;
      }
      tried = head.m;
      const int64_t both = cycles_of(head) + cycles_of(rest);
      if (both < least && plan_matmul_4bit(head, device).fused &&
          plan_matmul_4bit(rest, device).fused) {
        least = both, first = head.m;
      }
    }
  }
  return first;
}

Matmul4bitCudaPlan plan_matmul_4bit_backward_input(const Matmul4bitParams& p,
                                                   const DeviceProperties& device) noexcept {
  if (p.m <= 0 || p.k <= 0) return {};
  if (device.compute_capability == 90 && p.n > 0 && large_applies(p)) {
    const Matmul4bitCudaPlan large = best_large(p, device, true);
    if (large.grid_x > 0) return large;
  }
  Matmul4bitCudaPlan plan;
  plan.kernel = "backward_general";
  plan.id = kGeneral;
  // In 16 bits it is slower than writing the weight out, also for one token: 41 us against 25 for
  // 4096x4096 on an H200, 121 against 78 for 14336x4096.
  plan.fused = p.dtype == DType::kFloat32 && p.m <= kGeneralFused;
  plan.threads = kBackwardThreads;
  const int64_t columns = ceil_div(p.k, kBackwardColumns);
  const int64_t passes = ceil_div(p.m, general_tokens(p.m));
  plan.grid_x = static_cast<int32_t>(columns);
  plan.grid_y = static_cast<int32_t>(std::min<int64_t>(passes, 65535));
  // Enough blocks to fill the device four times, none with fewer than 32 rows of W.
  const int64_t wanted = ceil_div(4 * device.multiprocessors, columns * passes);
  plan.splits = static_cast<int32_t>(
      std::max<int64_t>(1, std::min<int64_t>({wanted, ceil_div(p.n, 32), 512})));
  plan.workspace_bytes = plan.splits > 1 ? plan.splits * p.m * p.k * 4 : 0;
  return plan;
}

}  // namespace lowbit::kernels::cuda
