// The largest magnitude of a quantization block.
#pragma once

#include <type_traits>

#include "cuda/common/cast.cuh"

namespace lowbit::kernels::cuda {

/// absmax of a block that holds only NaN.
inline constexpr float kNothing = -3.402823466e38f;

/// Two elements in one register: max.f16x2 and max.bf16x2 do two at a time and prefer a number to
/// NaN, as fmaxf does.
template <typename T>
struct Pair;
template <>
struct Pair<__half> {
  using Type = __half2;
};
template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

/// Largest magnitudes of kTurns blocks at once, each spread over kLanes lanes (32 at most) and
/// kVectors registers packs a lane; in every lane. NaN is ignored, subnormals count as zero (the
/// file is compiled with -ftz=true). 16-bit types reduce two blocks in one register.
template <int kLanes, typename T, int kTurns, int kVectors>
__device__ __forceinline__ void group_absmax(const Pack8<T> (&x)[kTurns][kVectors],
                                             float (&largest)[kTurns]) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int r = 0; r < kTurns; ++r) {
      float mine = kNothing;
#pragma unroll
      for (int i = 0; i < kVectors * 8; ++i) mine = fmaxf(mine, fabsf(x[r][i / 8].values[i % 8]));
      largest[r] = group_max<kLanes>(mine);
    }
  } else {
    using P = typename Pair<T>::Type;
    P mine[kTurns];
#pragma unroll
    for (int r = 0; r < kTurns; ++r) {
      const auto* pairs = reinterpret_cast<const P*>(&x[r][0]);
      mine[r] = __habs2(pairs[0]);
#pragma unroll
      for (int i = 1; i < kVectors * 4; ++i) mine[r] = __hmax2(mine[r], __habs2(pairs[i]));
    }
#pragma unroll
    for (int r = 0; r < kTurns; r += 2) {
      const P a = mine[r], b = mine[r + 1 < kTurns ? r + 1 : r];
      P both = __hmax2(P(a.x, b.x), P(a.y, b.y));
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        both = __hmax2(both, __shfl_xor_sync(0xffffffffu, both, offset));
      }
      largest[r] = fmaxf(kNothing, to_float(both.x));
      if (r + 1 < kTurns) largest[r + 1] = fmaxf(kNothing, to_float(both.y));
    }
  }
}

/// From the largest magnitudes of warps to those of groups of kLanes threads, kTurns blocks at
/// once. `partial` belongs to this call and the one after next: one barrier a call is enough. A
/// lane reads one warp's value: reading all of them cost 4 instructions an element of a block of
/// 4096.
template <int kLanes, int kTurns, int kWarps>
__device__ __forceinline__ void across_warps(float (&largest)[kTurns],
                                             float (&partial)[kTurns][kWarps]) {
  constexpr int kParts = kLanes / 32;
  const int first = threadIdx.x / kLanes * kParts + threadIdx.x % kParts;
#pragma unroll
  for (int r = 0; r < kTurns; ++r) {
    if (threadIdx.x % 32 == 0) partial[r][threadIdx.x / 32] = largest[r];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kTurns; ++r) {
    const float mine = partial[r][first];
#if __CUDA_ARCH__ >= 800
    // The bits of numbers that are not negative order as integers do, and kNothing comes first.
    largest[r] = __int_as_float(__reduce_max_sync(0xffffffffu, __float_as_int(mine)));
#else
    largest[r] = group_max<kParts>(mine);
#endif
  }
}

/// NaN if one of the eight is, else a number.
template <typename T>
__device__ __forceinline__ float any_nan8(const Pack8<T>& x) {
  if constexpr (std::is_same_v<T, float>) {
    float sum = 0.0f;  // infinities count, too: the caller looks closer
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = __fmaf_rn(x.values[i], 0.0f, sum);
    return sum;
  } else {
    const auto* pairs = reinterpret_cast<const typename Pair<T>::Type*>(&x);
    auto largest = __hmax2_nan(pairs[0], pairs[1]);
    largest = __hmax2_nan(largest, __hmax2_nan(pairs[2], pairs[3]));
    return __fmaf_rn(to_float(largest.x), 0.0f, to_float(largest.y) * 0.0f);
  }
}

}  // namespace lowbit::kernels::cuda
