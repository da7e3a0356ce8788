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

/// The buckets at the ends of a side hold values of other high bits too.
bool is_end(int bucket) {
  constexpr int kSide = MapSearch::kSide;
  return bucket == 0 || bucket == kSide - 1 || bucket == kSide || bucket == 2 * kSide - 1;
}

}  // namespace

MapSearch::MapSearch(const float* map) noexcept {
  for (int k = 0; k < 255; ++k) {
    // + 0 makes -0 a 0, which are one value but would sit in two buckets.
    bound[k] = bound_between(flush(map[k]), flush(map[k + 1]), (k + 1) % 2 == 0) + 0.0f;
  }
  bound[255] = std::numeric_limits<float>::infinity();
  int filled = 0;
  bool ends_are_empty = true;
  const auto fill_to = [&](int bucket, int count) {
    std::memset(passed + filled, count, static_cast<size_t>(bucket - filled));
    std::fill(step + filled, step + bucket, static_cast<uint32_t>(count) << 16 | 0xffff);
    filled = bucket;
  };
  for (int k = 0; k < 255;) {
    const int bucket = bucket_of(bound[k]);
    const int first = k;
    while (k < 255 && bucket_of(bound[k]) == bucket) ++k;
    comparisons = std::max(comparisons, k - first);
    ends_are_empty = ends_are_empty && !is_end(bucket);
    if (bucket < filled) continue;  // only a map that does not ascend comes here
    fill_to(bucket + 1, first);
    const uint32_t bits = std::bit_cast<uint32_t>(bound[first]);
    const uint32_t ascending_low = (bits >> 31 != 0 ? ~bits : bits) & 0xffff;
    step[bucket] = static_cast<uint32_t>(first) << 16 | ascending_low;
  }
  fill_to(2 * kSide, 255);
  one_look = comparisons <= 1 && ends_are_empty;
}

}  // namespace lowbit::kernels::cpu
