// Nearest of 256 ascending values, exactly, for any map.
//
// Eight bisection steps in shared memory are eight dependent, bank-conflicted reads. Instead the
// exponent and the top seven mantissa bits of y choose one word of a table. A bucket of 1/128
// octave holds at most one boundary of the dynamic maps, so the word holds all that is left to
// know: a code, and the low 16 bits of the boundary.
//
// Boundary k lies between the codes k - 1 and k, at m = f32(f32(c[k-1] + c[k]) / 2). Ties go to the
// even code: an odd k needs y > m, an even one y >= m, which is y > the float below m (subnormals
// do not exist here). Boundaries are made monotone, so that repeated values give their smallest
// index; code = number of boundaries below y.
//
// How it gets by on ten instructions: y * 2^-102 takes 2^-24 to the smallest normal float, so that
// flushing subnormals clamps small magnitudes for free and the buckets that are left are few and
// contiguous. Turning the magnitude bits of negative numbers makes the bits an integer that grows
// with y: its high half is the bucket, for both signs, and its low half is compared by the carry of
// an addition into the code, which sits in the word's top byte. A minimum with the first float
// above all others sends NaN to a bucket of its own.
//
// A map with two boundaries in a bucket, or one closer to zero than 2^-24, is searched by
// bisection.
#pragma once

#include <cstdint>

#include "cuda/common/boundaries.cuh"

namespace lowbit::kernels::cuda {

struct NearestCode {
  static constexpr float kToSmallest = 0x1p-102f;
  static constexpr int kTop = (25 << 7) + 1;  // the bucket after that of 2^-102
  static constexpr int kRows = 2 * kTop + 1;  // [-kTop, kTop]; the last is NaN's
  static constexpr uint32_t kTopBits = kTop << 16;

  uint32_t table[kRows];  // code << 24 | (0xffff - low half of the boundary) << 8
  float boundaries[256];  // [1, 255]
  int places[256];        // [1, 255]: ordered() of them, scaled
  bool search;            // bisect instead

  /// All threads of the block, 32 at least; begins and ends with a barrier.
  __device__ void fill(const float* __restrict__ code) {
    if (threadIdx.x == 0) search = false;
    if (threadIdx.x < 32) fill_boundaries(code);
    __syncthreads();
    for (int k = threadIdx.x; k < 256; k += blockDim.x) {
      if (k == 0) continue;
      const float b = boundaries[k];
      places[k] = ordered(__float_as_int(b * kToSmallest));
      if (fabsf(b) <= 0x1p-24f) search = true;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < 255; k += blockDim.x) {
      if (k > 0 && places[k] >> 16 == places[k + 1] >> 16) search = true;
    }
    __syncthreads();
    if (search) return;
    // A thread writes a stretch of rows: one search, then a merge.
    const int stretch = (kRows + blockDim.x - 1) / blockDim.x | 1;  // odd: no bank conflicts
    const int begin = threadIdx.x * stretch, end = min(begin + stretch, kRows);
    int below = begin < kRows ? count_below(places, (begin - kTop) * 65536) : 0;
    for (int i = begin; i < end; ++i) {
      const int row = i - kTop;
      while (below < 255 && places[below + 1] < row * 65536) ++below;
      const bool inside = below < 255 && places[below + 1] >> 16 == row;
      const uint32_t low = inside ? places[below + 1] & 0xffff : 0xffff;
      table[i] = static_cast<uint32_t>(below) << 24 | (0xffff - low) << 8;
    }
    __syncthreads();
    if (threadIdx.x == 0) table[kRows - 1] = 0;  // NaN has code 0
    __syncthreads();
  }

  /// y: NaN, or within [-1.007, 1.007].
  __device__ __forceinline__ uint32_t operator()(float y) const {
    return search ? searched(y) : in_top_byte(y) >> 24;
  }

  /// Eight codes in memory order. One branch for all: every thread of the grid takes the same side.
  __device__ __forceinline__ uint2 eight(const float (&y)[8]) const {
    uint32_t codes[8];
    if (search) {
#pragma unroll
      for (int i = 0; i < 8; ++i) codes[i] = searched(y[i]) << 24;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) codes[i] = in_top_byte(y[i]);
    }
    return make_uint2(top_bytes(codes[0], codes[1], codes[2], codes[3]),
                      top_bytes(codes[4], codes[5], codes[6], codes[7]));
  }

 private:
  __device__ __forceinline__ uint32_t searched(float y) const {
    return y == y ? static_cast<uint32_t>(count_below(boundaries, y)) : 0;
  }

  /// The code in the top byte; what is below it has no meaning.
  __device__ __forceinline__ uint32_t in_top_byte(float y) const {
    const int place = ordered(__float_as_int(fminf(y * kToSmallest, __uint_as_float(kTopBits))));
    const uint32_t word = *reinterpret_cast<const uint32_t*>(
        reinterpret_cast<const char*>(table + kTop) + (place >> 14 & ~3));
    return word + ((place & 0xffff) << 8);
  }

  __device__ static __forceinline__ uint32_t top_bytes(uint32_t a, uint32_t b, uint32_t c,
                                                       uint32_t d) {
    return __byte_perm(__byte_perm(a, b, 0x0073), __byte_perm(c, d, 0x0073), 0x5410);
  }

  /// An integer that grows with the float of these bits.
  __device__ static __forceinline__ int ordered(int bits) {
    return bits ^ (bits >> 31 & 0x7fffffff);
  }

  /// One warp: eight boundaries a lane, made monotone by a scan.
  __device__ void fill_boundaries(const float* __restrict__ code) {
    const int lane = threadIdx.x;
    float mine[8], largest = -3.402823466e38f;
    for (int i = 0; i < 8; ++i) {
      const int k = lane * 8 + i;
      if (k > 0) {
        largest = fmaxf(largest, boundary_below(code, k));
      }
      mine[i] = largest;
    }
    for (int offset = 1; offset < 32; offset *= 2) {
      const float before = __shfl_up_sync(0xffffffffu, largest, offset);
      if (lane >= offset) largest = fmaxf(largest, before);
    }
    const float before = __shfl_up_sync(0xffffffffu, largest, 1);
    for (int i = 0; i < 8; ++i) {
      boundaries[lane * 8 + i] = lane > 0 ? fmaxf(mine[i], before) : mine[i];
    }
  }
};

}  // namespace lowbit::kernels::cuda
