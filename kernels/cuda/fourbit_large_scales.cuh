// The scales of the large-M kernel (fourbit_matmul_large.cu): how they are read, decoded, split in
// two elements and brought to shared memory.
#pragma once

#include "cuda/common/async_copy.cuh"
#include "cuda/fourbit_large.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_pairs.cuh"

namespace lowbit::kernels::cuda {

struct LargeArgs {
  BlockScales scales;
  const void* bias;
  void* output;
  int m, n, features;
  int row_chunks;  // of 64 columns, in a row of W
  int shift;       // log2 of the columns of a scale, over 64
  int stages;      // of depth: of every part, and one more for the first `rest` parts
  int rest;
  int log_pair, log_splits;
  int feature_tiles, token_tiles;
  int tile;            // tokens of a tile
  bool vector_output;  // eight outputs of a token may be stored at once
  bool vector_scales;  // the scales of two (backward) or four chunks may be read at once
  DType bias_dtype;
  float inverse_factor;
  PairTable table;
};

/// Two warps: the scales of a stage, divided by the table's factor and split.
template <typename T, bool kBackward>
struct LargeScaleProducer {
  const LargeArgs& a;
  const float* map;
  float offset;
  int id;  // 0..63

  /// Scales of kCount chunks of 64 columns, of every row. All reads are under way
  /// before the first is used, so that none stands behind a branch: the latency of one.
  template <int kRows, int kCount>
  __device__ __forceinline__ void load(float (&s)[kRows][kCount], const int (&rows)[kRows],
                                       int chunk) const {
    const auto first = [&](int r) { return min(rows[r], a.n - 1) * a.row_chunks; };
    const auto block = [&](int r, int j) {
      return (first(r) + min(chunk + j, a.row_chunks - 1)) >> a.shift;
    };
    const int start = min(chunk, a.row_chunks - kCount);  // a.vector_scales: a multiple of kCount
    if (a.scales.absmax_8bit == nullptr) {
      const float* absmax = a.scales.absmax;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kCount; j += 2) {
          if (a.vector_scales) {
            const float2 two =
                __ldg(reinterpret_cast<const float2*>(absmax + first(r) + start + j));
            s[r][j] = two.x, s[r][j + 1] = two.y;
          } else {
            s[r][j] = __ldg(absmax + block(r, j)), s[r][j + 1] = __ldg(absmax + block(r, j + 1));
          }
        }
      }
    } else if (a.vector_scales) {
      uint32_t words[kRows];
      float high[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* from = a.scales.absmax_8bit + first(r) + start;
        words[r] = kCount == 4 ? __ldg(reinterpret_cast<const uint32_t*>(from))
                               : __ldg(reinterpret_cast<const uint16_t*>(from));
        high[r] = __ldg(a.scales.absmax2 + (first(r) + start) / kNestedBlocksize);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) s[r][j] = nested(words[r] >> (8 * j) & 255, high[r]);
      }
    } else {
      uint8_t codes[kRows][kCount];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          codes[r][j] = __ldg(a.scales.absmax_8bit + block(r, j));
          s[r][j] = __ldg(a.scales.absmax2 + block(r, j) / kNestedBlocksize);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) s[r][j] = nested(codes[r][j], s[r][j]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        s[r][j] = rows[r] < a.n && chunk + j < a.row_chunks ? s[r][j] * a.inverse_factor : 0.0f;
      }
    }
  }
  __device__ __forceinline__ float nested(uint32_t code, float high) const {
    return __fadd_rn(__fmul_rn(map[code], high), offset);
  }

  /// Forward: [feature][chunk of the stage]. Backward, where both of a pair differ in depth:
  /// [chunk][block of 64][16 of depth][lane % 4][half of the 16], {two rounded ones, two rests}.
  __device__ __forceinline__ void fill(uint8_t* to, int first_feature, int stage) const {
    if constexpr (!kBackward) {
      const int rows[2] = {first_feature + id, first_feature + id + 64};
      float s[2][4];
      load(s, rows, stage * 4);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<uint4*>(to + (id + 64 * h) * 16) =
            make_uint4(split<T>(s[h][0]), split<T>(s[h][1]), split<T>(s[h][2]), split<T>(s[h][3]));
      }
    } else {
      const int row = stage * kLargeDepth + 2 * id;
      const int rows[4] = {row, row + 1, row + 128, row + 129};
      float s[4][2];
      load(s, rows, first_feature / 64);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int pair = id + 64 * h, eight = pair % 32 / 4;
        uint8_t* at = to + pair / 32 * 256 + eight / 2 * 64 + pair % 4 * 16 + eight % 2 * 8;
#pragma unroll
        for (int chunk = 0; chunk < 2; ++chunk) {
          const uint32_t first = split<T>(s[2 * h][chunk]), second = split<T>(s[2 * h + 1][chunk]);
          *reinterpret_cast<uint2*>(at + chunk * 1024) =
              make_uint2(__byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632));
        }
      }
    }
  }
};

}  // namespace lowbit::kernels::cuda
