#include "ops/fourbit_cuda.h"

#include "ops/cuda.h"

namespace lowbit::ops::cuda {
namespace {

/// The weight [N, K] in the dtype of the product, for as long as the product takes: the caching
/// allocator reuses its memory for the next layer.
at::Tensor dequantized(const char* op, const kernels::Matmul4bitParams& p,
                       const at::Tensor& output) {
  const at::Device device = output.device();
  at::Tensor weight = cuda::empty({p.n, p.k}, output.scalar_type(), device);
  const kernels::Dequantize4bitParams params{.packed = p.packed,
                                             .scales = p.scales,
                                             .numel = p.n * p.k,
                                             .blocksize = p.blocksize,
                                             .quant_type = p.quant_type,
                                             .code = p.code,
                                             .output = weight.mutable_data_ptr(),
                                             .output_dtype = p.dtype};
  const Scope scope(op, device);
  check_launch(op, kernels::cuda::dequantize_4bit(params, scope.stream()));
  return weight;
}

at::Tensor workspace_of(const kernels::Matmul4bitCudaPlan& plan, at::Device device) {
  return plan.workspace_bytes > 0 ? cuda::empty({plan.workspace_bytes}, at::kByte, device)
                                  : at::Tensor();
}

}  // namespace

void linear_4bit(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                 const at::Tensor& bias, const at::Tensor& output) {
  const Scope scope(op, output.device());
  const auto plan = kernels::cuda::plan_matmul_4bit(params, properties(output.device()));
  if (!plan.fused) return linear(rows, dequantized(op, params, output), bias, output);
  const at::Tensor workspace = workspace_of(plan, output.device());
  params.workspace = workspace.defined() ? workspace.mutable_data_ptr() : nullptr;
  check_launch(op, kernels::cuda::matmul_4bit(plan, params, scope.stream()));
}

void linear_4bit_backward_input(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                                const at::Tensor& output) {
  const Scope scope(op, output.device());
  const auto plan =
      kernels::cuda::plan_matmul_4bit_backward_input(params, properties(output.device()));
  if (!plan.fused) return product(rows, dequantized(op, params, output), output);
  const at::Tensor workspace = workspace_of(plan, output.device());
  params.workspace = workspace.defined() ? workspace.mutable_data_ptr() : nullptr;
  check_launch(op, kernels::cuda::matmul_4bit_backward_input(plan, params, scope.stream()));
}

}  // namespace lowbit::ops::cuda
