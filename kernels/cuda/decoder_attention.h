// What the plan and the kernel of decode attention share. Plain C++.
#pragma once

#include "lowbit/kernels/decoder.h"

namespace lowbit::kernels::cuda {

/// Query heads that a block serves while it reads a kv head's keys and values once.
inline constexpr int kMostQueryHeads = 4;
inline constexpr int kMostSplits = 64;

/// Offsets in the workspace, in bytes: a counter for every unit, then for every unit, slice and
/// query head the maximum and the sum of the weights, and the weighted sum of the values.
struct AttentionLayout {
  int64_t softmax = 0;  ///< float2 [units, splits, query_heads]
  int64_t sums = 0;     ///< float [units, splits, query_heads, head_dim]
  int64_t bytes = 0;
};

constexpr AttentionLayout attention_layout(const AttentionCudaPlan& plan,
                                           int64_t head_dim) noexcept {
  const int64_t rows = plan.units * plan.splits * plan.query_heads;
  AttentionLayout layout;
  layout.softmax = ceil_div(plan.units * 4, 16) * 16;
  layout.sums = layout.softmax + ceil_div(rows * 8, 16) * 16;
  layout.bytes = layout.sums + rows * head_dim * 4;
  return layout;
}

}  // namespace lowbit::kernels::cuda
