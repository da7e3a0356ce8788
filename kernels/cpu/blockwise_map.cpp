// Turns an ascending map of 256 values into bounds and buckets.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "cpu/blockwise_isa.h"
#include "scalar.h"

namespace lowbit::kernels::cpu {
namespace {

/// The largest float below x, where subnormals do not exist.
float previous(float x) {
  if (x == 0.0f) return -FLT_MIN;
  return flush(std::bit_cast<float>(std::bit_cast<uint32_t>(x) + (x > 0.0f ? -1u : 1u)));
}

/// y belongs to code u rather than u - 1 iff y > bound. In the map's own words: y goes to the
/// nearer value, a tie goes to the even code.
float bound_between(float low, float high, bool upper_is_even) {
  if (!(low < high)) return low;  // repeated values: only the first of them is used
  const float mid = flush(flush(low + high) * 0.5f);
  if (!upper_is_even) return mid;
  return std::max(low, previous(mid));  // y >= mid, but y == low has its own code
}

int bucket_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const int key =
      std::clamp(static_cast<int>((bits & 0x7fffffff) >> MapSearch::kShift) - MapSearch::kFirst, 0,
                 MapSearch::kSide - 1);
  return bits >> 31 != 0 ? MapSearch::kSide - 1 - key : MapSearch::kSide + key;
}

}  // namespace

MapSearch::MapSearch(const float* map) noexcept {
  for (int k = 0; k < 255; ++k) {
    // + 0 makes -0 a 0, which are one value but would sit in two buckets.
    bound[k] = bound_between(flush(map[k]), flush(map[k + 1]), (k + 1) % 2 == 0) + 0.0f;
  }
  bound[255] = std::numeric_limits<float>::infinity();
  int filled = 0;
  for (int k = 0; k < 255;) {
    const int bucket = bucket_of(bound[k]);
    const int first = k;
    while (k < 255 && bucket_of(bound[k]) == bucket) ++k;
    comparisons = std::max(comparisons, k - first);
    if (bucket < filled) continue;  // only a map that does not ascend comes here
    std::memset(passed + filled, first, static_cast<size_t>(bucket + 1 - filled));
    filled = bucket + 1;
  }
  std::memset(passed + filled, 255, static_cast<size_t>(2 * kSide - filled));
}

}  // namespace lowbit::kernels::cpu
