// Which CUDA kernel runs a 4-bit matmul, and on what grid. Needs no CUDA.
#include <algorithm>

#include "cuda/fourbit_matmul.h"

namespace lowbit::kernels::cuda {
namespace {

bool power_of_two(int64_t x) { return x > 0 && (x & (x - 1)) == 0; }

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Passes over the weight up to which a fused kernel beats writing it out in 16 bits (8 times its
// bytes) and reading that back.
constexpr int64_t kGeneralFused = 16;  // tokens
constexpr int64_t kSmallFused = 64;

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

/// The variants worth trying, best first.
void preferred_variants(const Matmul4bitParams& p, int (&order)[4]) {
  enum { k1W16S3, k1W16S2, k1W8, k8W16S3, k8W16S2, k8W8, k16, k8Fine, k16Fine };
  // Small weights: two launches share a multiprocessor, so that the next one starts early.
  const bool little = p.n * p.k <= 17'000'000;
  const auto choose = [&](int a, int b, int c, int d) {
    order[0] = a, order[1] = b, order[2] = c, order[3] = d;
  };
  if (p.blocksize == 32) {
    p.m <= 8 ? choose(k8Fine, -1, -1, -1) : choose(k16Fine, k8Fine, -1, -1);
  } else if (p.m == 1) {
    little ? choose(k1W8, k1W16S2, k8W8, -1) : choose(k1W16S3, k1W16S2, k1W8, k8W8);
  } else if (p.m <= 8) {
    little ? choose(k8W8, k8W16S2, -1, -1) : choose(k8W16S3, k8W16S2, k8W8, -1);
  } else {
    choose(k16, k8W16S2, k8W8, -1);
  }
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
  plan.fused = p.m <= kSmallFused;
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
    grid = std::min<int64_t>(grid * 2, tiles);
  }
  return plan;
}

Matmul4bitCudaPlan plan_matmul_4bit(const Matmul4bitParams& p,
                                    const DeviceProperties& device) noexcept {
  if (p.m <= 0 || p.n <= 0) return {};
  if (p.k > 0 && device.compute_capability >= 80 && p.m <= 4096 && small_applies(p)) {
    int order[4];
    preferred_variants(p, order);
    for (const int variant : order) {
      if (variant < 0) break;
      const Matmul4bitCudaPlan plan = plan_small(p, device, variant);
      if (plan.grid_x > 0) return plan;
    }
  }
  return plan_general(p);
}

Matmul4bitCudaPlan plan_matmul_4bit_backward_input(const Matmul4bitParams& p,
                                                   const DeviceProperties& device) noexcept {
  if (p.m <= 0 || p.k <= 0) return {};
  Matmul4bitCudaPlan plan;
  plan.kernel = "backward_general";
  plan.id = kGeneral;
  plan.fused = p.m <= kGeneralFused;
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
