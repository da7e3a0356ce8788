// Codes of 8-bit optimizer states in shared memory: decoding without bank conflicts, encoding with
// one look into a table.
//
// Decoding: a row of 256 bytes for each code holds its value in map1 for every lane, then in map2,
// so that a lane reads its own bank. The rows begin at a multiple of 64 KB: an address is then the
// bytes (lane * 4, code, place of the rows), put together by one instruction.
//
// Encoding: a state's code is found from its magnitude. The signed dynamic map is symmetric around
// code 127 (value 0), a tie goes to the even code on either side, and 127 + r and 127 - r have the
// same parity, so one table of ranks r serves both signs. As in nearest_code.cuh a bucket is 1/128
// octave, which holds at most one boundary of the dynamic maps, and magnitudes come scaled such
// that those below all boundaries are flushed to 0 and buckets count from there. The word of a
// bucket is made so that adding the bits of the magnitude leaves the positive code in byte 2: its
// upper half is that code less the bucket's number, its lower half carries when the low bits are
// above the boundary's. Bytes are then gathered, and turned into those of negative states, four at
// a time. A table begins at a multiple of 16 KB: mask and place are one instruction. Maps that are
// not like that (two boundaries in a bucket, not symmetric) are searched by bisection.
#pragma once

#include <cstdint>

#include "cuda/common/boundaries.cuh"
#include "optimizer_math.h"

namespace lowbit::kernels::cuda {

/// prmt.b32: bytes chosen by the nibbles of kSelector; a nibble's bit 3 spreads the byte's sign.
template <uint32_t kSelector>
__device__ __forceinline__ uint32_t choose_bytes(uint32_t low, uint32_t high) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "n"(kSelector));
  return result;
}

/// Loads of shared memory whose address is an integer; kOffset is part of the instruction.
template <int kOffset>
__device__ __forceinline__ float load_shared_float(uint32_t address) {
  float value;
  asm("ld.shared.f32 %0, [%1 + %2];" : "=f"(value) : "r"(address), "n"(kOffset));
  return value;
}
template <int kOffset>
__device__ __forceinline__ uint32_t load_shared_word(uint32_t address) {
  uint32_t value;
  asm("ld.shared.u32 %0, [%1 + %2];" : "=r"(value) : "r"(address), "n"(kOffset));
  return value;
}

/// Where the tables of map1 and map2 and the rows of values are: in this order, in dynamic shared
/// memory. Places are addresses in the shared window.
struct StateLayout {
  static constexpr uint32_t kTableBytes = 0x4000;
  static constexpr uint32_t kWideRowsBytes = 0x10000, kNarrowRowsBytes = 0x1000;
// Where a thread block may have 227 KB. Elsewhere two lanes of a half share a value, and places are
// added.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1100
  static constexpr bool kWide = true;
#else
  static constexpr bool kWide = false;
#endif
  static constexpr uint32_t kCopies = kWide ? 32 : 2;  ///< of a value, before the other map's
  static constexpr uint32_t kRowFloats = 2 * kCopies;

  /// Enough wherever the memory begins. major: of the compute capability.
  static int64_t shared_bytes(int major) {
    return 2 * kTableBytes +
           (major == 9 || major == 10 ? 2 * kWideRowsBytes : int64_t{kNarrowRowsBytes});
  }
  static __device__ __forceinline__ uint32_t rows_in(uint32_t begin) {
    const uint32_t after = begin + 2 * kTableBytes;
    return kWide ? (after + kWideRowsBytes - 1) & ~(kWideRowsBytes - 1) : after;
  }
  /// Of the lane's copies.
  static __device__ __forceinline__ uint32_t place_of_lane(uint32_t rows) {
    return rows + threadIdx.x % kCopies * 4;
  }
  static __device__ __forceinline__ uint32_t table_of(uint32_t place_of_lane) {
    return place_of_lane - threadIdx.x % kCopies * 4 - 2 * kTableBytes;
  }
};

/// The value of byte kByte of `codes` in map 1 or 2. place: of the lane's copies.
template <int kMap, int kByte>
__device__ __forceinline__ float state_value(uint32_t codes, uint32_t place) {
  constexpr int kOffset = 4 * StateLayout::kCopies * (kMap - 1);
  if constexpr (StateLayout::kWide) {
    return load_shared_float<kOffset>(choose_bytes<0x7604 + 16 * kByte>(codes, place));
  } else {
    const uint32_t code = choose_bytes<0x4440 + kByte>(codes, 0);
    return load_shared_float<kOffset>(code * (4 * StateLayout::kRowFloats) + place);
  }
}

/// 256 ascending values, and how a normalized state is turned into a code. kSigned: state1 (codes
/// 127 - r and 127 + r); otherwise all values count from code 0.
template <bool kSigned>
struct StateCode {
  /// Takes 2^-24, below the lowest boundary, to the smallest normal float.
  static constexpr float kToSmallest = 0x1p-102f;
  static constexpr int kBuckets = (25 << 7) + 1;   // 0, [1, 128) unused, the last one holds 1.0
  static constexpr int kZero = kSigned ? 127 : 0;  // code of 0
  static_assert(kBuckets * 4 <= StateLayout::kTableBytes);

  float boundaries[256];  // [1, 255]: code = number of boundaries below y
  int search;             // bisect instead

  /// All threads of the block; begins and ends with a barrier.
  __device__ void fill(const float* __restrict__ map, uint32_t* table) {
    __syncthreads();
    if (threadIdx.x == 0) search = 0;
    for (int k = threadIdx.x; k < 256; k += blockDim.x) {
      if (k == 0) continue;
      boundaries[k] = boundary_below(map, k);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < 256; k += blockDim.x) {
      if (k == 0) continue;
      bool plain = k == 1 || boundaries[k] > boundaries[k - 1];
      if (kSigned) plain = plain && (k > 127 || map[k - 1] == -map[255 - k]) && map[127] == 0.0f;
      if (!kSigned) plain = plain && map[0] == 0.0f;
      if (k > kZero) {
        const float b = boundaries[k];
        plain = plain && b > 0x1p-24f && b < 1.0f &&
                (k == kZero + 1 ||
                 __float_as_uint(b) >> 16 != __float_as_uint(boundaries[k - 1]) >> 16);
      }
      if (!plain) search = 1;
    }
    __syncthreads();
    if (search) {  // repeated values give their smallest index
      if (threadIdx.x == 0) {
        for (int k = 2; k < 256; ++k) boundaries[k] = fmaxf(boundaries[k], boundaries[k - 1]);
      }
      __syncthreads();
      return;
    }
    // A run of buckets for each thread: one bisection, then steps.
    const int run = (kBuckets + blockDim.x - 1) / blockDim.x;
    const int begin = threadIdx.x * run, end = min(begin + run, kBuckets);
    if (begin < end) {
      constexpr uint32_t kShift = (127 - 25) << 7;  // bucket 128 is that of 2^-24
      int rank = max(count_below(boundaries, __uint_as_float((kShift + begin) << 16)) - kZero, 0);
      for (int i = begin; i < end; ++i) {
        const uint32_t first = (kShift + i) << 16;
        while (rank + kZero < 255 && __uint_as_float(first) > boundaries[rank + kZero + 1]) ++rank;
        uint32_t low = 0xffffu;  // no low bits are larger
        if (rank + kZero < 255) {
          const uint32_t bits = __float_as_uint(boundaries[rank + kZero + 1]);
          if (bits >> 16 == first >> 16) low = bits & 0xffffu;
        }
        table[i] = ((static_cast<uint32_t>(rank + kZero) - i) << 16) + (0xffffu - low);
      }
    }
    __syncthreads();
  }

  /// Codes of four states. y: each over the largest magnitude of its block, times kToSmallest; a
  /// number of at most 1 then. The sign is that of `state`. lowest: -boundaries[255] * kToSmallest.
  /// positive: states from here on are not 0 over the largest one. table: place of the first one.
  template <CodeRule kRule>
  __device__ __forceinline__ uint32_t encode(const float* y, const float* state, float lowest,
                                             float positive, uint32_t table) const {
    uint32_t sums[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // A negative state has no code for -1: up to its last boundary.
      float number = kSigned ? fmaxf(y[j], lowest) : y[j];
      if (kRule == CodeRule::kPositive && state[j] >= positive) {
        const float above = __uint_as_float(__float_as_uint(boundaries[kZero + 1]) + 1);
        number = fmaxf(number, above * kToSmallest);
      }
      // The sign is in no byte that matters.
      const uint32_t bits = __float_as_uint(number);
      constexpr int kOffset = kSigned ? 0 : StateLayout::kTableBytes;
      const uint32_t bucket = bits >> 14 & (StateLayout::kTableBytes - 4);
      const uint32_t at = StateLayout::kWide ? bucket | table : bucket + table;
      sums[j] = load_shared_word<kOffset>(at) + bits;
    }
    uint32_t codes = choose_bytes<0x5410>(choose_bytes<0x0062>(sums[0], sums[1]),
                                          choose_bytes<0x0062>(sums[2], sums[3]));
    if constexpr (kSigned) {
      // 127 + r becomes 127 - r = ~(127 + r + 1) where the state is negative.
      const auto signs = [&](int j) {
        return choose_bytes<0x00fb>(__float_as_uint(state[j]), __float_as_uint(state[j + 1]));
      };
      const uint32_t negative = choose_bytes<0x5410>(signs(0), signs(2));
      uint32_t more = negative & 0x01010101u;
      // A negative state, -0 too, never reads as +0: r is at least 1. Only r = 0 has bit 7 clear.
      if constexpr (kRule == CodeRule::kKeepSign) more += (~codes & negative & 0x80808080u) >> 7;
      codes = (codes + more) ^ negative;
    }
    return codes;
  }

  /// Any map, any y. values: of code k at values[k * kRowFloats].
  template <CodeRule kRule>
  __device__ __noinline__ uint32_t encode_general(const float* values, float y) const {
    if (!(y == y)) return 0;
    int code = count_below(boundaries, y);
    const auto value = [&](int k) { return values[k * StateLayout::kRowFloats]; };
    if (kRule == CodeRule::kKeepSign) {
      const bool negative = __float_as_int(y) < 0;
      const bool reads_negative = __float_as_int(value(code)) < 0;
      code += negative == reads_negative ? 0 : negative ? -1 : 1;
    } else if (kRule == CodeRule::kPositive && y > 0.0f) {
      while (code < 255 && !(value(code) > 0.0f)) ++code;
    }
    return static_cast<uint32_t>(min(max(code, 0), 255));
  }
};

}  // namespace lowbit::kernels::cuda
