// CUDA devices: what the ops need beside lowbit's own kernels. Nothing here waits for the device.
#pragma once

#include "ops/device.h"
#include "ops/rows.h"

namespace lowbit::ops::cuda {

/// rows [M, K] * weight [N, K]^T + bias into output [.., N], through cuBLAS. rows, weight and
/// output have one dtype; a bias of another one is added in float32.
void linear(const Rows& rows, const at::Tensor& weight, const at::Tensor& bias,
            const at::Tensor& output);
/// The rows [M, K] into a contiguous output [M, K] of their dtype.
void copy_matrix(const Rows& rows, const at::Tensor& output);
/// rows [M, N] * weight [N, K] into output [.., K].
void product(const Rows& rows, const at::Tensor& weight, const at::Tensor& output);
/// Rows [M, depth] in groups, bfloat16, times weights [E, depth, width] of their groups, into
/// output [M, width], zeros in the rows behind the last end. ends: int32 [E], any values.
void grouped_product(const at::Tensor& rows, const at::Tensor& weights, const at::Tensor& ends,
                     const at::Tensor& output);
/// a [M, K] * b [N, K]^T into c [M, N], int32, through cuBLASLt. K and N are multiples of 8, M
/// > 16.
void product_int8(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c);

}  // namespace lowbit::ops::cuda
