// mma.sync m16n8k32 (sm_80) of int8: exact int32 sums.
//
// Lane 4g + t holds, of A (16x32): rows g, g+8 (registers 0, 1) at columns 4t..4t+3, the same at
// columns 4t+16..4t+19 (registers 2, 3); of B (32x8): rows 4t..4t+3 and 4t+16..4t+19 of column g;
// of the sums (16x8): columns 2t, 2t+1 of row g (0, 1) and of row g+8 (2, 3).
#pragma once

#include <cstdint>

namespace lowbit::kernels::cuda {

__device__ __forceinline__ void mma_16x8x32(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace lowbit::kernels::cuda
