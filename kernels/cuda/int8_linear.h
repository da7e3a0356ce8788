// What the plan and the kernels of LLM.int8() share: instances, and how a block's shared memory is
// laid out. Plain C++.
#pragma once

#include <cstdint>

#include "lowbit/kernels/int8.h"

namespace lowbit::kernels::cuda {

// ---- few tokens (int8_linear_small.cu)

inline constexpr int kMixedSmallWarps = 16;
inline constexpr int kMixedSmallRows = 16;    ///< of the weight, in a tile
inline constexpr int kMixedSmallDepth = 128;  ///< columns of a tile that a warp takes at a time
inline constexpr int kMixedSmallMostTokens = 32;

/// An instance: up to 8 * token_tiles tokens, `stages` turns of every warp in flight.
struct MixedSmallVariant {
  int token_tiles, stages;
  const char* name;
};
inline constexpr MixedSmallVariant kMixedSmallVariants[] = {{1, 4, "small_8"},
                                                            {1, 2, "small_8_shallow"},
                                                            {2, 4, "small_16"},
                                                            {2, 2, "small_16_shallow"},
                                                            {4, 2, "small_32_shallow"}};
inline constexpr int kMixedSmallVariantCount =
    sizeof kMixedSmallVariants / sizeof kMixedSmallVariants[0];

inline constexpr int kMixedSmallListed = 8;  ///< outlier columns whose weights are read ahead
/// Makes the tokens of a lane's two sums and their features fall into different banks.
inline constexpr int kMixedSmallSumStride = 20;
/// Columns of outliers are listed in 16 bits.
inline constexpr int64_t kMixedSmallMostColumns = 65536;

constexpr int64_t aligned_up(int64_t x, int64_t to) noexcept { return (x + to - 1) / to * to; }

/// Offsets in a block's shared memory, in bytes; the ring of weights is at 0.
struct MixedSmallLayout {
  int64_t activations = 0;  ///< [m][row] codes
  int64_t row = 0;          ///< bytes from one token to the next: 64 past a multiple of 128
  int64_t listed = 0;       ///< the outlier columns, uint16
  int64_t flags = 0;        ///< a bit a column
  int64_t inputs = 0;   ///< [kMixedSmallListed][kMixedSmallMostTokens] floats of outlier columns
  int64_t weights = 0;  ///< two buffers of [kMixedSmallListed][kMixedSmallRows] floats of them
  int64_t count = 0;    ///< of the listed columns, int32
  int64_t sums = 0;     ///< two buffers of [tokens][kMixedSmallSumStride] int32
  int64_t bytes = 0;
};
constexpr MixedSmallLayout mixed_small_layout(const MixedSmallVariant& v, int64_t m,
                                              int64_t k) noexcept {
  MixedSmallLayout l;
  l.activations = int64_t{v.stages} * kMixedSmallWarps * kMixedSmallRows * kMixedSmallDepth;
  l.row = aligned_up(k, 128) + 64;
  l.listed = l.activations + m * l.row;
  l.flags = l.listed + aligned_up(2 * k, 16);
  l.inputs = l.flags + aligned_up(k, 128) / 8;
  l.weights = l.inputs + 4 * kMixedSmallListed * kMixedSmallMostTokens;
  l.count = l.weights + 2 * 4 * kMixedSmallListed * kMixedSmallRows;
  l.sums = l.count + 16;
  l.bytes = l.sums + 2 * 8 * v.token_tiles * kMixedSmallSumStride * 4;
  return l;
}

/// What the quantizing launch leaves in the workspace; the codes [m][k] are at 0.
struct MixedSmallWorkspace {
  int64_t stats = 0;  ///< [m] floats
  int64_t flags = 0;  ///< [m][flags_row]: a bit a column, set by the outliers of the row
  int64_t flags_row = 0;
  int64_t bytes = 0;
};
constexpr MixedSmallWorkspace mixed_small_workspace(int64_t m, int64_t k) noexcept {
  MixedSmallWorkspace w;
  w.stats = aligned_up(m * k, 16);
  w.flags = w.stats + aligned_up(4 * m, 16);
  w.flags_row = aligned_up(k, 128) / 8;
  w.bytes = w.flags + m * w.flags_row;
  return w;
}

// ---- many tokens (int8_linear_large.cu)

/// An instance: a block makes kMixedLargeFeatures columns of the output for up to `tokens` tokens.
struct MixedLargeVariant {
  int tokens, stages;
  const char* name;
};
inline constexpr MixedLargeVariant kMixedLargeVariants[] = {
    {64, 8, "large_64"}, {128, 6, "large_128"}, {256, 4, "large_256"}};
inline constexpr int kMixedLargeVariantCount =
    sizeof kMixedLargeVariants / sizeof kMixedLargeVariants[0];

inline constexpr int kMixedLargeFeatures = 128;
inline constexpr int kMixedLargeCluster = 2;  // blocks side by side, which share the activations
inline constexpr int kMixedLargeDepth = 128;  // of a stage
inline constexpr int kMixedLargeThreads = 384;
inline constexpr int kMixedLargePass = 64;   // tokens whose outputs are turned around together
inline constexpr int kMixedLargeListed = 8;  // outlier columns at a time

/// Offsets in bytes; the stages of weights are at 0.
struct MixedLargeLayout {
  int weight_stage = 0;   ///< bytes
  int inputs = 0;         ///< stages of [token][128 bytes], swizzled
  int input_stage = 0;    ///< bytes
  int outputs = 0;        ///< [warpgroup][kMixedLargePass][128 bytes]
  int row_stats = 0;      ///< [tokens]
  int listed_input = 0;   ///< [kMixedLargeListed][tokens]
  int listed_weight = 0;  ///< [kMixedLargeListed][kMixedLargeFeatures]
  int columns = 0;        ///< [2][kMixedLargeListed] int32
  int batch = 0;          ///< two int32
  int barriers = 0;
  int bytes = 0;
};
constexpr MixedLargeLayout mixed_large_layout(const MixedLargeVariant& v) noexcept {
  MixedLargeLayout l;
  l.weight_stage = kMixedLargeFeatures * kMixedLargeDepth;
  l.inputs = v.stages * l.weight_stage;
  l.input_stage = v.tokens * kMixedLargeDepth;
  l.outputs = l.inputs + v.stages * l.input_stage;
  l.row_stats = l.outputs + 2 * kMixedLargePass * 128;
  l.listed_input = l.row_stats + v.tokens * 4;
  l.listed_weight = l.listed_input + kMixedLargeListed * v.tokens * 4;
  l.columns = l.listed_weight + kMixedLargeListed * kMixedLargeFeatures * 4;
  l.batch = l.columns + 2 * kMixedLargeListed * 4;
  l.barriers = l.batch + 16;
  l.bytes = l.barriers + (v.stages + 1) * 16;
  return l;
}

#ifdef __CUDACC__
Status launch_mixed_small(const LinearMixedPlan& plan, const LinearMixedInt8Params& p,
                          Stream stream) noexcept;
Status launch_mixed_large(const LinearMixedPlan& plan, const LinearMixedInt8Params& p,
                          Stream stream) noexcept;
#endif

}  // namespace lowbit::kernels::cuda
