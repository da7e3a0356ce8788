// wgmma m64nNk32 of int8 (sm_90a): A (64x32) and B (32xN) in shared memory, exact int32 sums.
//
// Both operands are K-major: rows of 128 bytes (128 of depth) of one row of A or column of B, in
// the 128-byte swizzle, eight rows a kilobyte. The sums lie as those of wgmma_sm90.cuh.
#pragma once

#include <cstdint>

#include "cuda/common/wgmma_sm90.cuh"

namespace lowbit::kernels::cuda {

/// Uses of the registers stay on their side of this line.
template <int kCount>
__device__ __forceinline__ void pin(int (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// d = A * B (+ d if accumulate)
#define LOWBIT_WGMMA(N, COUNT, SUMS, A, B, P, ...)                                                \
  __device__ __forceinline__ void wgmma(int(&d)[COUNT], uint64_t a, uint64_t b, int accumulate) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                            \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" N "k32.s32.s8.s8 {" SUMS "}, " A ", " B      \
                 ", p;\n}\n"                                                                      \
                 : __VA_ARGS__                                                                    \
                 : "l"(a), "l"(b), "r"(accumulate));                                              \
  }
#define LOWBIT_SUMS_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define LOWBIT_SUMS_1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define LOWBIT_SUMS_2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define LOWBIT_SUMS_3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define LOWBIT_SUMS_4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define LOWBIT_SUMS_5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define LOWBIT_SUMS_6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define LOWBIT_SUMS_7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define LOWBIT_SUMS_8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define LOWBIT_SUMS_9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define LOWBIT_SUMS_10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define LOWBIT_SUMS_11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define LOWBIT_SUMS_12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define LOWBIT_SUMS_13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define LOWBIT_SUMS_14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define LOWBIT_SUMS_15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define LOWBIT_OUT(i)                                                                         \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), \
      "+r"(d[i + 6]), "+r"(d[i + 7])
LOWBIT_WGMMA("64", 32, LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3,
             "%32", "%33", "%34", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16), LOWBIT_OUT(24))
LOWBIT_WGMMA("128", 64,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7,
             "%64", "%65", "%66", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16), LOWBIT_OUT(24),
             LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56))
LOWBIT_WGMMA("256", 128,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9
                           ", " LOWBIT_SUMS_10 ", " LOWBIT_SUMS_11 ", " LOWBIT_SUMS_12
                           ", " LOWBIT_SUMS_13 ", " LOWBIT_SUMS_14 ", " LOWBIT_SUMS_15,
             "%128", "%129", "%130", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16), LOWBIT_OUT(24),
             LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56), LOWBIT_OUT(64),
             LOWBIT_OUT(72), LOWBIT_OUT(80), LOWBIT_OUT(88), LOWBIT_OUT(96), LOWBIT_OUT(104),
             LOWBIT_OUT(112), LOWBIT_OUT(120))
#undef LOWBIT_WGMMA
#undef LOWBIT_OUT
#undef LOWBIT_SUMS_0
#undef LOWBIT_SUMS_1
#undef LOWBIT_SUMS_2
#undef LOWBIT_SUMS_3
#undef LOWBIT_SUMS_4
#undef LOWBIT_SUMS_5
#undef LOWBIT_SUMS_6
#undef LOWBIT_SUMS_7
#undef LOWBIT_SUMS_8
#undef LOWBIT_SUMS_9
#undef LOWBIT_SUMS_10
#undef LOWBIT_SUMS_11
#undef LOWBIT_SUMS_12
#undef LOWBIT_SUMS_13
#undef LOWBIT_SUMS_14
#undef LOWBIT_SUMS_15

}  // namespace lowbit::kernels::cuda
