// What the plan and the kernels for stacks of experts share. Plain C++.
#pragma once

#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

/// The general kernel: a block makes kExpertsTile columns of the output of as many tokens at a
/// time.
inline constexpr int kExpertsThreads = 256;
inline constexpr int kExpertsTile = 32;

/// Thread blocks of an expert's rows that a grid holds: experts with tokens, at most.
constexpr int64_t expert_places(const GroupedMatmul4bitParams& p) noexcept {
  return p.experts < p.stack.m ? p.experts : p.stack.m;
}

/// The tensor-core kernel (fourbit_matmul_mid_sm80.cu) with one of its variants; grid_x = 0 if it
/// does not fit.
Matmul4bitCudaPlan plan_experts(const GroupedMatmul4bitParams& p, const DeviceProperties& device,
                                int variant) noexcept;
/// The variant with the least estimated time; grid_x = 0 if none applies.
Matmul4bitCudaPlan best_experts(const GroupedMatmul4bitParams& p,
                                const DeviceProperties& device) noexcept;

#ifdef __CUDACC__
Status launch_experts(const Matmul4bitCudaPlan& plan, const GroupedMatmul4bitParams& p,
                      Stream stream) noexcept;
#endif

}  // namespace lowbit::kernels::cuda
