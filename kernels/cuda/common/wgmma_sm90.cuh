// wgmma m64nNk16 (sm_90a): A (64x16, 16-bit) in registers, B (16xN) in shared memory, float32 sums.
//
// Warp w of the warpgroup has rows 16w..16w+15; in them the fragments of A and of the sums are
// those of mma_sm80.cuh, the sums repeated for every eight columns. B is K-major: rows of 128 bytes
// (64 elements of one column) in the 128-byte swizzle, eight rows a kilobyte.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lowbit::kernels::cuda {

/// Registers that a product still under way reads or writes must not move: fence before the first
/// product, wait before the sums are read.
__device__ __forceinline__ void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Uses of the registers stay on their side of this line.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i]));
}

/// B at a shared address that is a multiple of 1024 (behind it, 16 columns of k are 32 bytes).
__device__ __forceinline__ uint64_t swizzled_operand(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzle128 = uint64_t{1} << 62;
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128;
}

// d = A * B (+ d if accumulate)
#define LOWBIT_WGMMA(TYPE, NAME, N, COUNT, SUMS, A, B, P, ...)                                     \
  __device__ __forceinline__ void wgmma(TYPE, float(&d)[COUNT], uint32_t a0, uint32_t a1,          \
                                        uint32_t a2, uint32_t a3, uint64_t b, int accumulate) {    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                             \
                 ", 0;\n"                                                                          \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." NAME "." NAME " {" SUMS "}, {" A \
                 "}, " B ", p, 1, 1, 0;\n}\n"                                                      \
                 : __VA_ARGS__                                                                     \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate));                   \
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
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "16", 8, LOWBIT_SUMS_0, "%8, %9, %10, %11", "%12", "%13",
             LOWBIT_OUT(0))
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "32", 16, LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1,
             "%16, %17, %18, %19", "%20", "%21", LOWBIT_OUT(0), LOWBIT_OUT(8))
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "64", 32,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3,
             "%32, %33, %34, %35", "%36", "%37", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24))
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "128", 64,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7,
             "%64, %65, %66, %67", "%68", "%69", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56))
LOWBIT_WGMMA(__half, "f16", "16", 8, LOWBIT_SUMS_0, "%8, %9, %10, %11", "%12", "%13", LOWBIT_OUT(0))
LOWBIT_WGMMA(__half, "f16", "32", 16, LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1, "%16, %17, %18, %19", "%20",
             "%21", LOWBIT_OUT(0), LOWBIT_OUT(8))
LOWBIT_WGMMA(__half, "f16", "64", 32,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3,
             "%32, %33, %34, %35", "%36", "%37", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24))
LOWBIT_WGMMA(__half, "f16", "128", 64,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7,
             "%64, %65, %66, %67", "%68", "%69", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56))
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "160", 80,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9,
             "%80, %81, %82, %83", "%84", "%85", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72))
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "192", 96,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9
                           ", " LOWBIT_SUMS_10 ", " LOWBIT_SUMS_11,
             "%96, %97, %98, %99", "%100", "%101", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72), LOWBIT_OUT(80), LOWBIT_OUT(88))
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "224", 112,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9
                           ", " LOWBIT_SUMS_10 ", " LOWBIT_SUMS_11 ", " LOWBIT_SUMS_12
                           ", " LOWBIT_SUMS_13,
             "%112, %113, %114, %115", "%116", "%117", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72), LOWBIT_OUT(80), LOWBIT_OUT(88), LOWBIT_OUT(96),
             LOWBIT_OUT(104))
LOWBIT_WGMMA(__nv_bfloat16, "bf16", "256", 128,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9
                           ", " LOWBIT_SUMS_10 ", " LOWBIT_SUMS_11 ", " LOWBIT_SUMS_12
                           ", " LOWBIT_SUMS_13 ", " LOWBIT_SUMS_14 ", " LOWBIT_SUMS_15,
             "%128, %129, %130, %131", "%132", "%133", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72), LOWBIT_OUT(80), LOWBIT_OUT(88), LOWBIT_OUT(96),
             LOWBIT_OUT(104), LOWBIT_OUT(112), LOWBIT_OUT(120))
LOWBIT_WGMMA(__half, "f16", "160", 80,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9,
             "%80, %81, %82, %83", "%84", "%85", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72))
LOWBIT_WGMMA(__half, "f16", "192", 96,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9
                           ", " LOWBIT_SUMS_10 ", " LOWBIT_SUMS_11,
             "%96, %97, %98, %99", "%100", "%101", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72), LOWBIT_OUT(80), LOWBIT_OUT(88))
LOWBIT_WGMMA(__half, "f16", "224", 112,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9
                           ", " LOWBIT_SUMS_10 ", " LOWBIT_SUMS_11 ", " LOWBIT_SUMS_12
                           ", " LOWBIT_SUMS_13,
             "%112, %113, %114, %115", "%116", "%117", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72), LOWBIT_OUT(80), LOWBIT_OUT(88), LOWBIT_OUT(96),
             LOWBIT_OUT(104))
LOWBIT_WGMMA(__half, "f16", "256", 128,
             LOWBIT_SUMS_0 ", " LOWBIT_SUMS_1 ", " LOWBIT_SUMS_2 ", " LOWBIT_SUMS_3
                           ", " LOWBIT_SUMS_4 ", " LOWBIT_SUMS_5 ", " LOWBIT_SUMS_6
                           ", " LOWBIT_SUMS_7 ", " LOWBIT_SUMS_8 ", " LOWBIT_SUMS_9
                           ", " LOWBIT_SUMS_10 ", " LOWBIT_SUMS_11 ", " LOWBIT_SUMS_12
                           ", " LOWBIT_SUMS_13 ", " LOWBIT_SUMS_14 ", " LOWBIT_SUMS_15,
             "%128, %129, %130, %131", "%132", "%133", LOWBIT_OUT(0), LOWBIT_OUT(8), LOWBIT_OUT(16),
             LOWBIT_OUT(24), LOWBIT_OUT(32), LOWBIT_OUT(40), LOWBIT_OUT(48), LOWBIT_OUT(56),
             LOWBIT_OUT(64), LOWBIT_OUT(72), LOWBIT_OUT(80), LOWBIT_OUT(88), LOWBIT_OUT(96),
             LOWBIT_OUT(104), LOWBIT_OUT(112), LOWBIT_OUT(120))
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
