// The products of int8 weights on CUDA devices.
#pragma once

#include "lowbit/kernels/int8.h"
#include "ops/cuda.h"
#include "ops/linear.h"

namespace lowbit::ops::cuda {

/// a [.., K] * b [N, K]^T: params (sizes, outputs) complete, a and b contiguous. Exact for every
/// size.
void matmul_int8(const char* op, const at::Tensor& a, const at::Tensor& b,
                 const kernels::MatmulInt8Params& params);

/// LLM.int8(). The outlier columns are found, listed and multiplied on the device: nothing depends
/// on how many there are, on the host.
void linear_8bit(const char* op, const Rows& rows, const Weight8bit& weight, const at::Tensor& bias,
                 double threshold, const at::Tensor& output);

}  // namespace lowbit::ops::cuda
