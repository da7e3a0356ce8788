// Several 4-bit weights over one input, in one launch. Plain C++.
#pragma once

#include "cuda/fourbit_matmul.h"
#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

/// Whether the members have the same input, and kernels may tell them apart by their weight, bias
/// and output alone.
inline bool is_group(const Matmul4bitParams* members, int32_t count) noexcept {
  if (count < 1 || count > kMatmulGroupMost) return false;
  const Matmul4bitParams& p = members[0];
  for (int32_t i = 1; i < count; ++i) {
    const Matmul4bitParams& q = members[i];
    if (q.input != p.input || q.input_stride != p.input_stride || q.dtype != p.dtype ||
        q.m != p.m || q.k != p.k || q.blocksize != p.blocksize || q.quant_type != p.quant_type ||
        q.code != p.code || q.scales.nested() != p.scales.nested() || q.n < 1 ||
        q.programmatic_launch != p.programmatic_launch) {
      return false;
    }
  }
  return p.m > 0 && p.n > 0;
}

/// Blocks of the small-M kernel that a member gets when each takes up to `tiles` of its tiles.
constexpr int64_t small_member_blocks(const Matmul4bitParams& p, int64_t tiles) noexcept {
  return ceil_div(ceil_div(p.n, kSmallRows), tiles);
}

/// The fewest tiles of a block with which the members fill at most `grid` blocks. A block belongs
/// to one member, so that it needs one table of scales and one pointer of everything.
constexpr int64_t small_group_tiles(const Matmul4bitParams* members, int32_t count,
                                    int64_t grid) noexcept {
  int64_t all = 0, most = 1;
  for (int32_t i = 0; i < count; ++i) {
    const int64_t tiles = ceil_div(members[i].n, kSmallRows);
    all += tiles;
    if (tiles > most) most = tiles;
  }
  for (int64_t tiles = ceil_div(all, grid); tiles < most; ++tiles) {
    int64_t blocks = 0;
    for (int32_t i = 0; i < count; ++i) blocks += small_member_blocks(members[i], tiles);
    if (blocks <= grid) return tiles;
  }
  return most;
}

}  // namespace lowbit::kernels::cuda
