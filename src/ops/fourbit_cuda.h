// The products of 4-bit weights on CUDA devices.
#pragma once

#include "lowbit/kernels/fourbit.h"
#include "ops/rows.h"

namespace lowbit::ops::cuda {

/// params: complete but for the workspace. rows: what params.input points to. The packed weight is
/// read once where a fused kernel fits, otherwise dequantized for cuBLAS.
void linear_4bit(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                 const at::Tensor& bias, const at::Tensor& output);
/// Several weights over one input in one launch (kernels::cuda::matmul_4bit_group). False, and
/// nothing done, where one launch for each is the better choice.
/// members: complete but for the outputs, which are made.
bool linear_4bit_group(const char* op, c10::SmallVectorImpl<kernels::Matmul4bitParams>& members,
                       const at::Tensor& input, at::Tensor* outputs);
/// A stack of experts over rows in groups: [M, N], or [M, K] of grad_output's rows. params:
/// complete but for the output. The packed stack is read where a fused kernel fits, or where there
/// is no library's product of groups; otherwise it is dequantized for that one.
at::Tensor grouped_mm_4bit(const char* op, kernels::GroupedMatmul4bitParams params,
                           const Rows& rows, const at::Tensor& ends);
at::Tensor grouped_mm_4bit_backward_input(const char* op, kernels::GroupedMatmul4bitParams params,
                                          const Rows& rows, const at::Tensor& ends);
void linear_4bit_backward_input(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                                const at::Tensor& output);

}  // namespace lowbit::ops::cuda
