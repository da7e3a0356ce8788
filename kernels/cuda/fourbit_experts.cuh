// What the kernels for stacks of experts share: which tokens belong to whom. The ends of the groups
// are device memory, and no end leads outside of the tokens.
#pragma once

#include <cstdint>

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

struct TokenGroup {
  int expert, begin, end;
};

__device__ __forceinline__ int group_end(const int32_t* ends, int expert, int m) {
  return min(max(ends[expert], 0), m);
}

/// The `place`-th expert that has tokens, of a warp, whose lanes search together; no tokens where
/// there are fewer. Experts without tokens get no thread blocks that way: there are at most as many
/// groups as tokens.
__device__ __forceinline__ TokenGroup token_group(const int32_t* ends, int experts, int m,
                                                  int place, int lane) {
  for (int first = 0; first < experts; first += 32) {
    const int expert = first + lane;
    const int end = expert < experts ? group_end(ends, expert, m) : 0;
    const int begin = expert < experts && expert > 0 ? group_end(ends, expert - 1, m) : 0;
    const uint32_t some = __ballot_sync(0xffffffffu, end > begin);
    const int before = __popc(some & ((1u << lane) - 1));
    const uint32_t mine = __ballot_sync(0xffffffffu, end > begin && before == place);
    if (mine != 0) {
      const int source = __ffs(static_cast<int>(mine)) - 1;
      return {first + source, __shfl_sync(0xffffffffu, begin, source),
              __shfl_sync(0xffffffffu, end, source)};
    }
    place -= __popc(some);
  }
  return {0, 0, 0};
}

/// Zeros in `columns` columns of the tokens behind the last group: of each `step`-th one.
template <typename T>
__device__ __forceinline__ void zero_tokens_behind(const int32_t* ends, int experts, int m,
                                                   void* output, int n, int first_column,
                                                   int columns, int first, int step) {
  for (int token = group_end(ends, experts - 1, m) + first; token < m; token += step) {
    T* to = static_cast<T*>(output) + int64_t{token} * n + first_column;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) to[i] = T(0.0f);
  }
}

}  // namespace lowbit::kernels::cuda
