// What the plan and the mid-M kernel (fourbit_matmul_mid.cu) share: its instances, and how a
// block's shared memory is laid out. Plain C++.
#pragma once

#include <cstdint>

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

/// An instance of the mid-M kernel: a block makes 64 * row_groups columns of the output for up to
/// `tokens` tokens.
struct MidVariant {
  int tokens;  ///< 16, 32, 64 or 128
  int row_groups;
  int slices;  ///< warpgroups that share a stage along K: each takes 4 / slices blocks of 64
  int weight_stages, input_stages;
  bool scaled;  ///< codes are scaled in 16 bits, not the products in float32
  const char* name;
};
inline constexpr MidVariant kMidVariants[] = {
    {16, 2, 2, 3, 3, false, "mid_16_r128"}, {32, 2, 2, 3, 3, false, "mid_32_r128"},
    {64, 2, 2, 3, 3, true, "mid_64_r128"},  {128, 2, 1, 3, 2, true, "mid_128_r128"},
    {16, 1, 2, 4, 4, false, "mid_16_r64"},  {32, 1, 2, 4, 3, false, "mid_32_r64"},
    {64, 1, 2, 4, 3, false, "mid_64_r64"},  {128, 1, 2, 4, 2, true, "mid_128_r64"}};
inline constexpr int kMidVariantCount = sizeof kMidVariants / sizeof kMidVariants[0];

inline constexpr int kMidColumns = 256;    // of W in a stage
inline constexpr int kMidScaleStages = 4;  // whose scales lie together: 16 of a row
inline constexpr int kMidMaxSplits = 8;    // blocks of a cluster, which share K
inline constexpr int kMidPairTable = 256 * 128;

constexpr int mid_groups(const MidVariant& v) noexcept { return v.row_groups * v.slices; }
constexpr int mid_threads(const MidVariant& v) noexcept { return (mid_groups(v) + 1) * 128; }
/// Blocks of 64 columns that one barrier of the input's ring stands for.
constexpr int mid_input_blocks(const MidVariant& v) noexcept { return v.slices == 2 ? 2 : 1; }

/// Offsets in a block's shared memory, in bytes; the pair table is at 0.
struct MidLayout {
  int map = 0;           ///< the 256 values of nested scales
  int scales = 0;        ///< two slots of [row][16]
  int scale_slot = 0;    ///< bytes
  int weights = 0;       ///< the ring of codes: stages of [row][128 bytes], swizzled
  int weight_stage = 0;  ///< bytes
  int inputs = 0;        ///< the ring of activations: slots of [block of 64][token][128 bytes]
  int input_slot = 0;    ///< bytes
  int input_slots = 0;   ///< count
  int sum_pitch = 0;     ///< floats of a token's sums; sums[slice][token][row] overlay the rings
  int received = 0;      ///< sums from the other blocks of the cluster, behind the own ones
  int barriers = 0;
  int bytes = 0;
};

constexpr MidLayout mid_layout(const MidVariant& v) noexcept {
  MidLayout l;
  const int rows = 64 * v.row_groups;
  l.map = kMidPairTable;
  l.scales = l.map + 1024;
  l.scale_slot = rows * kMidScaleStages * 16;
  l.weights = l.scales + 2 * l.scale_slot;
  l.weight_stage = rows * kMidColumns / 2;
  l.inputs = l.weights + v.weight_stages * l.weight_stage;
  l.input_slot = mid_input_blocks(v) * v.tokens * 128;
  l.input_slots = v.input_stages * 4 / mid_input_blocks(v);
  l.barriers = l.inputs + l.input_slots * l.input_slot;
  l.sum_pitch = rows + 4;
  l.received = l.weights + v.slices * v.tokens * l.sum_pitch * 4;
  l.bytes = l.barriers + (2 + v.weight_stages + l.input_slots) * 16;
  return l;
}

/// Whether the mid-M kernel can run the problem at all (on sm_90).
bool mid_applies(const Matmul4bitParams& p) noexcept;
/// The plan for one variant and 1, 2, 4 or 8 splits of K; grid_x = 0 if it does not fit.
Matmul4bitCudaPlan plan_mid(const Matmul4bitParams& p, const DeviceProperties& device, int variant,
                            int splits) noexcept;

#ifdef __CUDACC__
Status launch_mid(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p,
                  Stream stream) noexcept;
#endif

}  // namespace lowbit::kernels::cuda
