// The decision rule of 8-bit maps.
#pragma once

#include <algorithm>

#include "scalar.h"

namespace lowbit::kernels::ref {

/// Index of the nearest entry of an ascending map; an exact tie goes to the even index. NaN gives
/// 0.
static inline int nearest_code(const float* code, float y) {
  if (std::isnan(y)) return 0;
  const auto below = [](float entry, float value) { return flush(entry) < value; };
  const auto upper = static_cast<int>(std::lower_bound(code, code + 255, y, below) - code);
  if (upper == 0) return 0;
  const float mid = flush(flush(code[upper - 1]) + flush(code[upper])) * 0.5f;
  const bool up = upper % 2 == 0 ? !(y < flush(mid)) : y > flush(mid);
  return up ? upper : upper - 1;
}

}  // namespace lowbit::kernels::ref
