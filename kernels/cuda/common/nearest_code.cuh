// Nearest of 256 ascending values, exactly, for any map.
//
// Eight bisection steps in shared memory are eight dependent, bank-conflicted reads. Instead the
// exponent and the top seven mantissa bits of y choose one word of a table. A bucket of 1/128
// octave holds at most one boundary of the dynamic maps, so the word holds all that is left to
// know: a code, and the low 16 bits of the boundary's magnitude.
//
// Boundary k lies between the codes k - 1 and k, at m = f32(f32(c[k-1] + c[k]) / 2). Ties go to the
// even code: an odd k needs y > m, an even one y >= m, which is y > the float below m (subnormals
// do not exist here). Boundaries are made monotone, so that repeated values give their smallest
// index; code = number of boundaries below y. A map with two boundaries in a bucket, or one closer
// to zero than 2^-24, is searched by bisection.
#pragma once

#include <cstdint>

namespace lowbit::kernels::cuda {

struct NearestCode {
  static constexpr int kOctaves = 24;
  static constexpr uint32_t kLowest = (127 - kOctaves) << 7;  // bucket number of 2^-24
  static constexpr int kPerSign =
      (kOctaves << 7) + 1;                    // the last one holds 1.0 and what lies above
  static constexpr uint32_t kNone = 0xffffu;  // no magnitude's low bits exceed it

  uint32_t
      table[2 * kPerSign];  // low bits of the boundary << 8 | code; positive y, then negative y
  float boundaries[256];    // [1, 255]
  bool search;              // bisect instead

  /// All threads of the block; begins and ends with a barrier.
  __device__ void fill(const float* __restrict__ code) {
    if (threadIdx.x == 0) search = false;
    for (int k = threadIdx.x; k < 256; k += blockDim.x) {
      if (k == 0) continue;
      const float middle = __fmul_rn(__fadd_rn(code[k - 1], code[k]), 0.5f);
      boundaries[k] = k % 2 == 0 ? below(middle) : middle;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int k = 2; k < 256; ++k) boundaries[k] = fmaxf(boundaries[k], boundaries[k - 1]);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < 256; k += blockDim.x) {
      if (k == 0) continue;
      const float b = boundaries[k];
      if (fabsf(b) <= 0x1p-24f || (k > 1 && place(b) == place(boundaries[k - 1]))) search = true;
    }
    __syncthreads();
    if (search) return;
    for (int i = threadIdx.x; i < 2 * kPerSign; i += blockDim.x) {
      const bool negative = i >= kPerSign;
      const uint32_t bits = (kLowest + (negative ? i - kPerSign : i))
                            << 16;  // the smallest magnitude of the bucket
      const float near = __uint_as_float(negative ? bits | 0x80000000u : bits);
      const float far = __uint_as_float((negative ? bits | 0x80000000u : bits) + 0x10000u);
      // The boundary inside, if there is one, and the code at the end next to zero.
      int at = count_below(near);
      uint32_t low = kNone;
      const int inside = negative ? at : at + 1;
      if (inside >= 1 && inside <= 255) {
        const float b = boundaries[inside];
        if (negative) {
          // `at` counts this boundary; y = -m stays above it while m < |b|.
          if (b > far) low = (__float_as_uint(b) & 0xffffu) - 1;
        } else if (b >= near && b < far) {
          low = __float_as_uint(b) & 0xffffu;
        }
      }
      table[i] = low << 8 | static_cast<uint32_t>(at);
    }
    __syncthreads();
  }

  __device__ __forceinline__ uint32_t operator()(float y) const {
    if (search) return y == y ? count_below(y) : 0;
    const uint32_t bits = __float_as_uint(fmaxf(fabsf(y), 0x1p-24f));
    const bool negative = y < 0.0f;
    const uint32_t word =
        table[min(bits >> 16, kLowest + kPerSign - 1) - kLowest + (negative ? kPerSign : 0)];
    const int step = (bits & 0xffffu) > word >> 8 ? (negative ? -1 : 1) : 0;
    return y == y ? (word & 255u) + step : 0;
  }

 private:
  /// Number of boundaries below y.
  __device__ __forceinline__ int count_below(float y) const {
    int low = 0, high = 255;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (y > boundaries[middle]) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  /// Sign and bucket of a boundary.
  __device__ static uint32_t place(float b) { return __float_as_uint(b) >> 16; }

  /// The next normal float towards -inf; zero's is the smallest negative one.
  __device__ static float below(float x) {
    const int bits = __float_as_int(x);
    if ((bits & 0x7fffffff) == 0) return __int_as_float(0x80800000);
    return __int_as_float(bits < 0 ? bits + 1 : bits - 1);
  }
};

}  // namespace lowbit::kernels::cuda
