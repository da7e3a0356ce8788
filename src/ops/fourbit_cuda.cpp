#include "ops/fourbit_cuda.h"

#include "ops/cuda.h"
#include "ops/plan_log.h"

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

/// The tensor-core kernels read 16 bytes of a row at a time. An input that lies otherwise is
/// copied, which costs less than a slower kernel; params then points to the copy, which is
/// returned.
at::Tensor aligned_copy(kernels::Matmul4bitParams& p, const Rows& rows, const at::Tensor& output) {
  const bool aligned = p.input_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.input) % 16 == 0;
  if (aligned || p.dtype == kernels::DType::kFloat32 || p.k % 16 != 0) return {};
  at::Tensor copy = cuda::empty({p.m, p.k}, output.scalar_type(), output.device());
  copy_matrix(rows, copy);
  p.input = copy.const_data_ptr();
  p.input_stride = p.k;
  return copy;
}

/// Whether the library multiplies groups without reading their ends back: bfloat16, on sm_90 and
/// sm_100, in rows of 16 bytes.
bool library_groups(const kernels::GroupedMatmul4bitParams& p, at::Device device) {
  const kernels::Matmul4bitParams& q = p.stack;
  const int32_t capability = properties(device).compute_capability;
  constexpr int64_t kMostGroups = 1024;
  return q.dtype == kernels::DType::kBFloat16 && (capability == 90 || capability == 100) &&
         p.experts < kMostGroups && q.k > 0 && q.k % 8 == 0 && (q.n / p.experts) % 8 == 0 &&
         q.input_stride % 8 == 0 && reinterpret_cast<uintptr_t>(q.input) % 16 == 0;
}

}  // namespace

bool linear_4bit_group(const char* op, c10::SmallVectorImpl<kernels::Matmul4bitParams>& members,
                       const at::Tensor& input, at::Tensor* outputs) {
  const at::Device device = input.device();
  const auto count = static_cast<int32_t>(members.size());
  const Scope scope(op, device);
  const auto plan =
      kernels::cuda::plan_matmul_4bit_group(members.data(), count, properties(device));
  if (plan.grid_x == 0) return false;
  for (kernels::Matmul4bitParams& p : members) {
    *outputs = cuda::empty({p.m, p.n}, input.scalar_type(), device);
    p.output = outputs++->mutable_data_ptr();
  }
  if (C10_UNLIKELY(logs_plans())) log_plan(op, device, members.data(), count, plan, false);
  check_launch(op, kernels::cuda::matmul_4bit_group(plan, members.data(), count, scope.stream()));
  return true;
}

void linear_4bit(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                 const at::Tensor& bias, const at::Tensor& output) {
  const Scope scope(op, output.device());
  const at::Tensor copy = aligned_copy(params, rows, output);
  const kernels::DeviceProperties& device = properties(output.device());
  const int64_t tokens = params.m, item = output.element_size();
  params.m = kernels::cuda::matmul_4bit_first_tokens(params, device);
  for (int64_t done = 0;;) {
    const auto plan = kernels::cuda::plan_matmul_4bit(params, device);
    if (C10_UNLIKELY(logs_plans())) log_plan(op, output.device(), &params, 1, plan, !plan.fused);
    if (!plan.fused && params.m == tokens) {
      return linear(rows, dequantized(op, params, output), bias, output);
    }
    const at::Tensor workspace = workspace_of(plan, output.device());
    params.workspace = workspace.defined() ? workspace.mutable_data_ptr() : nullptr;
    check_launch(op, kernels::cuda::matmul_4bit(plan, params, scope.stream()));
    if ((done += params.m) == tokens) return;
    params.input = static_cast<const char*>(params.input) + params.m * params.input_stride * item;
    params.output = static_cast<char*>(params.output) + params.m * params.n * item;
    params.m = tokens - done;
  }
}

at::Tensor grouped_mm_4bit(const char* op, kernels::GroupedMatmul4bitParams params,
                           const Rows& rows, const at::Tensor& ends) {
  const at::Device device = ends.device();
  const Scope scope(op, device);
  kernels::Matmul4bitParams& stack = params.stack;
  at::Tensor output =
      cuda::empty({stack.m, stack.n / params.experts}, rows.owner.scalar_type(), device);
  if (output.numel() == 0) return output;
  stack.output = output.mutable_data_ptr();
  const at::Tensor copy = aligned_copy(stack, rows, output);
  const auto plan = kernels::cuda::plan_grouped_matmul_4bit(params, properties(device));
  const bool library = !plan.fused && library_groups(params, device);
  if (C10_UNLIKELY(logs_plans())) log_plan(op, device, &stack, 1, plan, library);
  if (!library) {
    check_launch(op, kernels::cuda::grouped_matmul_4bit(plan, params, scope.stream()));
    return output;
  }
  const at::Tensor weights =
      dequantized(op, stack, output).view({params.experts, output.size(1), stack.k});
  grouped_product(copy.defined() ? copy : rows.owner, weights.transpose(1, 2), ends, output);
  return output;
}

at::Tensor grouped_mm_4bit_backward_input(const char* op, kernels::GroupedMatmul4bitParams params,
                                          const Rows& rows, const at::Tensor& ends) {
  const at::Device device = ends.device();
  const Scope scope(op, device);
  kernels::Matmul4bitParams& stack = params.stack;
  at::Tensor output = cuda::empty({stack.m, stack.k}, rows.owner.scalar_type(), device);
  if (output.numel() == 0) return output;
  stack.output = output.mutable_data_ptr();
  if (stack.n == 0 || !library_groups(params, device)) {
    check_launch(op, kernels::cuda::grouped_matmul_4bit_backward_input(params, scope.stream()));
    return output;
  }
  const at::Tensor weights = dequantized(op, stack, output);
  grouped_product(rows.owner, weights.view({params.experts, rows.owner.size(1), stack.k}), ends,
                  output);
  return output;
}

void linear_4bit_backward_input(const char* op, kernels::Matmul4bitParams params, const Rows& rows,
                                const at::Tensor& output) {
  const Scope scope(op, output.device());
  const auto plan =
      kernels::cuda::plan_matmul_4bit_backward_input(params, properties(output.device()));
  if (C10_UNLIKELY(logs_plans())) log_plan(op, output.device(), &params, 1, plan, !plan.fused);
  if (!plan.fused) return product(rows, dequantized(op, params, output), output);
  const at::Tensor workspace = workspace_of(plan, output.device());
  params.workspace = workspace.defined() ? workspace.mutable_data_ptr() : nullptr;
  check_launch(op, kernels::cuda::matmul_4bit_backward_input(plan, params, scope.stream()));
}

}  // namespace lowbit::ops::cuda
