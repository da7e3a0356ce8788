// Who multiplies int8 matrices on the device. Needs no CUDA.
#include <algorithm>

#include "cuda/int8_linear.h"

namespace lowbit::kernels::cuda {
namespace {

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

/// Whether rows of 16 bytes of the codes can be copied at once.
bool whole_chunks(const LinearMixedInt8Params& p) { return p.k % 16 == 0 && aligned(p.q, 16); }

LinearMixedPlan plan_small(const LinearMixedInt8Params& p, const DeviceProperties& device) {
  const bool input_in_packs = aligned(p.input, 16) && p.input_stride * itemsize(p.dtype) % 16 == 0;
  if (p.m > kMixedSmallMostTokens || p.k > kMixedSmallMostColumns || !whole_chunks(p) ||
      !input_in_packs || device.compute_capability < 80) {
    return {};
  }
  for (int i = 0; i < kMixedSmallVariantCount; ++i) {
    const MixedSmallVariant& v = kMixedSmallVariants[i];
    const int64_t bytes = mixed_small_layout(v, p.m, p.k).bytes;
    // An instance for twice as many tokens does needless work.
    if (p.m > 8 * v.token_tiles || bytes > device.shared_bytes_per_block) continue;
    const int64_t tiles = ceil_div(p.n, kMixedSmallRows);
    return {.route = LinearMixedRoute::kSmall,
            .variant = i,
            .grid = static_cast<int32_t>(std::min<int64_t>(tiles, device.multiprocessors)),
            .threads = 32 * kMixedSmallWarps,
            .shared_bytes = bytes,
            .workspace_bytes = mixed_small_workspace(p.m, p.k).bytes,
            .programmatic = device.compute_capability >= 90,
            .name = v.name};
  }
  return {};
}

/// Rounds of all clusters times the time of a tile, in columns of tokens. A tile costs as much as
/// its tokens and what does not depend on them: the weight's way into shared memory, the epilogue.
int64_t cost_of_large(const LinearMixedInt8Params& p, int tokens, int64_t clusters) {
  constexpr int64_t kFixed = 24;
  const int64_t tiles = ceil_div(p.n, int64_t{kMixedLargeFeatures} * kMixedLargeCluster) *
                        ceil_div(p.m, int64_t{tokens});
  return ceil_div(tiles, clusters) * (tokens + kFixed);
}

LinearMixedPlan plan_large(const LinearMixedInt8Params& p, const DeviceProperties& device) {
  constexpr int64_t kMost = int64_t{1} << 30;  // the copy engine's coordinates
  const int64_t clusters = device.multiprocessors / kMixedLargeCluster;
  if (device.compute_capability != 90 || p.dtype == DType::kFloat32 || !whole_chunks(p) ||
      p.k == 0 || std::max({p.m, p.n, p.k}) > kMost || clusters == 0) {
    return {};
  }
  int best = 0;
  for (int i = 1; i < kMixedLargeVariantCount; ++i) {
    const auto cost = [&](int v) {
      return cost_of_large(p, kMixedLargeVariants[v].tokens, clusters);
    };
    if (cost(i) < cost(best)) best = i;
  }
  const MixedLargeVariant& v = kMixedLargeVariants[best];
  const int64_t bytes = mixed_large_layout(v).bytes;
  const int64_t tiles = ceil_div(p.n, int64_t{kMixedLargeFeatures} * kMixedLargeCluster) *
                        ceil_div(p.m, int64_t{v.tokens});
  if (bytes > device.shared_bytes_per_block || tiles > kMost) return {};
  return {.route = LinearMixedRoute::kLarge,
          .variant = best,
          .grid = static_cast<int32_t>(kMixedLargeCluster * std::min(tiles, clusters)),
          .threads = kMixedLargeThreads,
          .shared_bytes = bytes,
          .name = v.name};
}

}  // namespace

MatmulInt8Route plan_matmul_int8(int64_t m, int64_t n, int64_t k) noexcept {
  // The library's tensor-core kernels want more than 16 rows and sizes in multiples of 8.
  constexpr int64_t kFewRows = 16;
  // Beyond so many rows, copying both matrices costs less than reading the weight again and again.
  constexpr int64_t kWorthPadding = 64;
  if (m <= kFewRows || n == 0 || k == 0) return MatmulInt8Route::kKernel;
  if (n % 8 == 0 && k % 8 == 0) return MatmulInt8Route::kLibrary;
  return m <= kWorthPadding ? MatmulInt8Route::kKernel : MatmulInt8Route::kPadded;
}

LinearMixedPlan plan_linear_mixed_int8(const LinearMixedInt8Params& p,
                                       const DeviceProperties& device) noexcept {
  if (p.m <= 0 || p.n <= 0 || p.k <= 0) return {};
  const LinearMixedPlan small = plan_small(p, device);
  return small.route == LinearMixedRoute::kSmall ? small : plan_large(p, device);
}

}  // namespace lowbit::kernels::cuda
