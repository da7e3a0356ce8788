// What the plan and the kernels of the 4-bit matmul share: their numbers, and how a block's shared
// memory is laid out. Plain C++.
#pragma once

#include <cstdint>

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

/// Matmul4bitCudaPlan::id. kSmall and kMid: plus the index of the variant, like
/// kLarge (fourbit_large.h).
enum MatmulKernel : int32_t { kEmpty = 0, kGeneral = 1, kSmall = 16, kMid = 64 };

/// The general kernel: a block of kGeneralThreads threads makes kGeneralRows outputs of up to 8
/// tokens.
inline constexpr int kGeneralThreads = 128;
inline constexpr int kGeneralRows = 4;

/// The backward kernel: a warp covers 256 columns of W, the warps of a block share the rows of a
/// slice.
inline constexpr int kBackwardThreads = 128;
inline constexpr int kBackwardColumns = 256;

/// Tokens that one pass over the weight serves in the general kernels: 1, 4 or 8.
constexpr int general_tokens(int64_t m) noexcept { return m <= 1 ? 1 : m <= 4 ? 4 : 8; }

/// An instance of the small-M kernel. Its unit of work is 16 rows x 256 columns of W.
struct SmallVariant {
  int tokens;  ///< 1, 8 or 16
  int warps;
  int stages;   ///< of 2 KB, a ring for every warp
  int blocks;   ///< that share a multiprocessor
  bool fine;    ///< a scale for every 32 columns instead of 64
  bool engine;  ///< the copy engine of sm_90 fetches the codes
  const char* name;
};
inline constexpr SmallVariant kSmallVariants[] = {{1, 16, 3, 1, false, false, "small_1_w16_s3"},
                                                  {1, 16, 2, 1, false, false, "small_1_w16_s2"},
                                                  {1, 8, 3, 2, false, false, "small_1_w8_s3"},
                                                  {8, 16, 3, 1, false, false, "small_8_w16_s3"},
                                                  {8, 16, 2, 1, false, false, "small_8_w16_s2"},
                                                  {8, 8, 3, 2, false, false, "small_8_w8_s3"},
                                                  {16, 8, 3, 1, false, false, "small_16_w8_s3"},
                                                  {8, 8, 3, 1, true, false, "small_8_w8_s3_fine"},
                                                  {16, 8, 3, 1, true, false, "small_16_w8_s3_fine"},
                                                  {8, 16, 2, 1, false, true, "small_8_w16_e"},
                                                  {8, 8, 3, 2, false, true, "small_8_w8_e"}};
inline constexpr int kSmallVariantCount = sizeof kSmallVariants / sizeof kSmallVariants[0];

inline constexpr int kSmallRows = 16;      // of a tile
inline constexpr int kSmallColumns = 256;  // of a slot
inline constexpr int kSmallStage = kSmallRows * kSmallColumns / 2;
inline constexpr int kPairTable = 256 * 128;  // byte -> two elements, a copy for every bank

/// Offsets in a block's shared memory, in bytes, behind the pair table (at 0) and the rings.
struct SmallLayout {
  int tiles_base = 0, tiles_rest = 0;  ///< tiles of a block: base, plus one for the first `rest`
  int pitch = 0;  ///< floats between the scales of two rows; 4 * an odd number, so that the scales
                  ///< of eight rows lie in different banks
  int sum_pitch = 0;  ///< partial sums of a row: tokens rounded up to even; 4 for one token
  int map = 0;        ///< the 256 values of nested scales
  int absmax2 = 0;
  int scales = 0;
  int sums = 0;      ///< [warp][tile][16][sum_pitch]; before the first sum, the raw nested scales
  int barriers = 0;  ///< of the rings
  int bytes = 0;
};

constexpr int round_up(int64_t x, int unit) noexcept {
  return static_cast<int>((x + unit - 1) / unit * unit);
}

constexpr SmallLayout small_layout(const SmallVariant& v, int64_t m, int64_t n, int64_t k,
                                   int64_t blocksize, bool nested, int64_t grid) noexcept {
  SmallLayout l;
  const int64_t tiles = ceil_div(n, kSmallRows), slots = ceil_div(k, kSmallColumns);
  l.tiles_base = static_cast<int>(tiles / grid);
  l.tiles_rest = static_cast<int>(tiles % grid);
  const int64_t rows = (l.tiles_base + (l.tiles_rest > 0)) * int64_t{kSmallRows};
  const int64_t tokens = m < v.tokens ? m : v.tokens;
  l.pitch = static_cast<int>(4 * ((v.fine ? 2 * slots : slots) | 1));
  l.sum_pitch = static_cast<int>(v.tokens == 1 ? 4 : (tokens + 1) / 2 * 2);
  const int64_t raw = nested ? rows * (k / blocksize) : 0;
  l.map = kPairTable + v.warps * v.stages * kSmallStage;
  l.absmax2 = l.map + (nested ? 1024 : 0);
  l.scales = round_up(l.absmax2 + (nested ? (raw / kNestedBlocksize + 2) * 4 : 0), 16);
  l.sums = round_up(l.scales + rows * l.pitch * 4, 16);
  const int64_t sums = v.warps * rows * l.sum_pitch * 4;
  l.barriers = round_up(l.sums + (sums > raw + 32 ? sums : raw + 32), 16);
  l.bytes = l.barriers + (v.engine ? round_up(v.warps * v.stages * 8, 16) : 0);
  return l;
}

/// Whether the small-M kernel can run the problem at all: sizes and alignment.
bool small_applies(const Matmul4bitParams& p) noexcept;
/// The plan for one variant; grid_x = 0 if it does not fit the device.
Matmul4bitCudaPlan plan_small(const Matmul4bitParams& p, const DeviceProperties& device,
                              int variant) noexcept;
/// The instance that suits the problem; grid_x = 0 if none fits the device.
Matmul4bitCudaPlan best_small(const Matmul4bitParams& p, const DeviceProperties& device) noexcept;

#ifdef __CUDACC__
Status launch_small(const Matmul4bitCudaPlan& plan, const Matmul4bitParams* members, int32_t count,
                    Stream stream) noexcept;
#endif

}  // namespace lowbit::kernels::cuda
