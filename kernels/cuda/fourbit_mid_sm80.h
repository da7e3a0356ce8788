// What the plan and the mid-M kernel of sm_80 (fourbit_matmul_mid_sm80.cu) share: its instances,
// and how a block's shared memory is laid out. Plain C++.
#pragma once

#include <cstdint>

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

inline constexpr int32_t kMidSm80 = 32;  ///< Matmul4bitCudaPlan::id, plus the index of the variant

/// An instance: a block makes 16 * tiles * row_groups columns of the output for up to `tokens`
/// tokens. Its warps are row_groups times slices, which share a stage along K.
struct MidSm80Variant {
  int tokens;  ///< 16, 32 or 64
  int warps;
  int tiles;  ///< of 16 rows, of a warp
  int row_groups;
  int stages;
  int granule;  ///< columns that one scale is applied to: 64, 32 or 16
  int cycles;   ///< of a stage of a block that has a multiprocessor to itself (H200)
  const char* name;
  bool experts = true;  ///< made for stacks of experts, too (64_r128 would spill)
};
inline constexpr MidSm80Variant kMidSm80Variants[] = {
    {16, 8, 2, 4, 4, 64, 1640, "mid_sm80_16_r128"},
    {32, 8, 2, 4, 3, 64, 2190, "mid_sm80_32_r128"},
    {64, 8, 2, 4, 3, 64, 3550, "mid_sm80_64_r128", false},
    {16, 16, 1, 4, 4, 64, 1050, "mid_sm80_16_r64"},
    {32, 8, 2, 2, 3, 64, 1300, "mid_sm80_32_r64"},
    {64, 8, 2, 2, 3, 64, 2000, "mid_sm80_64_r64"},
    {16, 8, 1, 2, 4, 64, 660, "mid_sm80_16_r32"},
    {32, 8, 1, 2, 3, 64, 880, "mid_sm80_32_r32"},
    {64, 8, 1, 2, 3, 64, 1360, "mid_sm80_64_r32"},
    {16, 8, 1, 2, 4, 32, 840, "mid_sm80_16_fine32", false},
    {32, 8, 1, 2, 3, 32, 1150, "mid_sm80_32_fine32", false},
    {64, 8, 1, 2, 3, 32, 1580, "mid_sm80_64_fine32", false},
    {16, 8, 1, 2, 4, 16, 1020, "mid_sm80_16_fine16"},
    {32, 8, 1, 2, 2, 16, 1950, "mid_sm80_32_fine16", false},
    {64, 8, 1, 2, 3, 16, 1820, "mid_sm80_64_fine16"}};
inline constexpr int kMidSm80VariantCount = sizeof kMidSm80Variants / sizeof kMidSm80Variants[0];

inline constexpr int kMidSm80Columns = 256;    // of W in a stage
inline constexpr int kMidSm80ScaleStages = 2;  // whose scales lie together
inline constexpr int kMidSm80PairTable = 256 * 128;

constexpr int mid_sm80_rows(const MidSm80Variant& v) noexcept {
  return 16 * v.tiles * v.row_groups;
}
constexpr int mid_sm80_slices(const MidSm80Variant& v) noexcept { return v.warps / v.row_groups; }
/// Scales of a row that lie together.
constexpr int mid_sm80_scales(const MidSm80Variant& v) noexcept {
  return kMidSm80ScaleStages * kMidSm80Columns / v.granule;
}

/// Offsets in a block's shared memory, in bytes; the pair table is at 0.
struct MidSm80Layout {
  int map = 0;           ///< the 256 values of nested scales
  int scales = 0;        ///< two slots of [row][scale_pitch] floats
  int scale_pitch = 0;   ///< 4 * an odd number: eight rows lie in different banks
  int scale_slot = 0;    ///< bytes
  int codes = 0;         ///< the ring of codes: stages of [row][128 bytes], swizzled
  int codes_stage = 0;   ///< bytes
  int inputs = 0;        ///< the ring of activations: [block of 64][token][128 bytes], swizzled
  int inputs_stage = 0;  ///< bytes
  int sum_pitch = 0;     ///< floats of a token's sums; sums[slice][token][row] overlay the rings
  int bytes = 0;
};

constexpr MidSm80Layout mid_sm80_layout(const MidSm80Variant& v) noexcept {
  MidSm80Layout l;
  const int rows = mid_sm80_rows(v);
  l.map = kMidSm80PairTable;
  l.scales = l.map + 1024;
  l.scale_pitch = mid_sm80_scales(v) + 4;
  l.scale_slot = rows * l.scale_pitch * 4;
  l.codes = l.scales + 2 * l.scale_slot;
  l.codes_stage = rows * kMidSm80Columns / 2;
  l.inputs = l.codes + v.stages * l.codes_stage;
  l.inputs_stage = v.tokens * kMidSm80Columns * 2;
  l.bytes = l.inputs + v.stages * l.inputs_stage;
  l.sum_pitch = rows + 4;
  const int sums = l.codes + mid_sm80_slices(v) * v.tokens * l.sum_pitch * 4;
  if (sums > l.bytes) l.bytes = sums;
  return l;
}

/// The columns that one scale may be applied to: none of them crosses a block of W's flat index.
constexpr int mid_sm80_granule(const Matmul4bitParams& p) noexcept {
  return p.k % 64 == 0 && p.blocksize >= 64 ? 64 : p.k % 32 == 0 ? 32 : 16;
}

/// Whether the kernel can run the problem at all (on sm_80 and later): sizes and alignment.
bool mid_sm80_applies(const Matmul4bitParams& p) noexcept;
/// The plan for one variant and `count` members (1: a plain product); grid_x = 0 if it does not
/// fit.
Matmul4bitCudaPlan plan_mid_sm80(const Matmul4bitParams* members, int32_t count,
                                 const DeviceProperties& device, int variant) noexcept;
/// The instance with the least estimated time; grid_x = 0 if none applies.
Matmul4bitCudaPlan best_mid_sm80(const Matmul4bitParams* members, int32_t count,
                                 const DeviceProperties& device) noexcept;

#ifdef __CUDACC__
Status launch_mid_sm80(const Matmul4bitCudaPlan& plan, const Matmul4bitParams* members,
                       int32_t count, Stream stream) noexcept;
#endif

}  // namespace lowbit::kernels::cuda
