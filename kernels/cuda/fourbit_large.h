// What the plan and the large-M kernel (fourbit_matmul_large.cu) share: its instances, and how a
// block's shared memory is laid out. Plain C++.
//
// The kernel runs both directions. "Features" are the columns of its output, "depth" is what it
// sums over: N and K forward, K and N backward.
#pragma once

#include <cstdint>

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

inline constexpr int32_t kLarge = 96;  ///< Matmul4bitCudaPlan::id, plus the index of the variant

/// An instance: a block makes kLargeFeatures columns of the output for up to `tokens` tokens.
struct LargeVariant {
  int tokens;
  int weight_stages;  ///< of kLargeDepth
  int input_stages;   ///< of 64 columns of the activations
  const char* name;
  const char* backward_name;
};
inline constexpr LargeVariant kLargeVariants[] = {
    {64, 6, 8, "large_64", "backward_large_64"},    {128, 3, 6, "large_128", "backward_large_128"},
    {160, 3, 6, "large_160", "backward_large_160"}, {192, 3, 5, "large_192", "backward_large_192"},
    {224, 2, 5, "large_224", "backward_large_224"}, {256, 2, 4, "large_256", "backward_large_256"}};
inline constexpr int kLargeVariantCount = sizeof kLargeVariants / sizeof kLargeVariants[0];

inline constexpr int kLargeFeatures = 128;
inline constexpr int kLargeMaxSplits = 4;  // of the depth, in a cluster
inline constexpr int kLargeDepth = 256;    // of W in a stage
inline constexpr int kLargeThreads = 384;
inline constexpr int kLargePass = 64;  // tokens whose outputs are turned around together
inline constexpr int kLargePairTable = 256 * 128;

/// Offsets in a block's shared memory, in bytes; the pair table is at 0.
struct LargeLayout {
  int codes = 0;         ///< stages of 16 KB
  int codes_stage = 0;   ///< bytes
  int inputs = 0;        ///< stages of [token][128 bytes], swizzled
  int input_stage = 0;   ///< bytes
  int outputs = 0;       ///< [warpgroup][kLargePass][128 bytes]
  int scales = 0;        ///< stages of [kLargeFeatures * 4] pairs of elements
  int scales_stage = 0;  ///< bytes
  int map = 0;           ///< the 256 values of nested scales
  int barriers = 0;
  int bytes = 0;
};

constexpr LargeLayout large_layout(const LargeVariant& v) noexcept {
  LargeLayout l;
  l.codes = kLargePairTable;
  l.codes_stage = kLargeFeatures * kLargeDepth / 2;
  l.inputs = l.codes + v.weight_stages * l.codes_stage;
  l.input_stage = v.tokens * 128;
  l.outputs = l.inputs + v.input_stages * l.input_stage;
  l.scales = l.outputs + 2 * kLargePass * 128;
  l.scales_stage = kLargeFeatures * 4 * 4;
  l.map = l.scales + v.weight_stages * l.scales_stage;
  l.barriers = l.map + 1024;
  l.bytes = l.barriers + (v.weight_stages + v.input_stages) * 16;
  return l;
}

/// Whether the large-M kernel can run the problem at all (on sm_90).
bool large_applies(const Matmul4bitParams& p) noexcept;
/// The plan for one variant, for `together` (1 or 2) blocks that share the activations, and for 1,
/// 2 or 4 parts of the depth; grid_x = 0 if it does not fit.
Matmul4bitCudaPlan plan_large(const Matmul4bitParams& p, const DeviceProperties& device,
                              int variant, int together, int splits, bool backward) noexcept;

#ifdef __CUDACC__
Status launch_large(const Matmul4bitCudaPlan& plan, const Matmul4bitParams& p, bool backward,
                    Stream stream) noexcept;
#endif

}  // namespace lowbit::kernels::cuda
