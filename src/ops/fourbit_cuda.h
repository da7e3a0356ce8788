// The products of 4-bit weights on CUDA devices.
#pragma once

#include "lowbit/kernels/fourbit.h"
#include "ops/rows.h"

namespace lowbit::ops::cuda {

/// params: complete but for the workspace. rows: what params.input points to. The packed weight is
/// read once where a fused kernel fits, otherwise dequantized for cuBLAS.
void linear_4bit(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                 const at::Tensor& bias, const at::Tensor& output);
void linear_4bit_backward_input(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                                const at::Tensor& output);

}  // namespace lowbit::ops::cuda
