#include "ops/int8_cuda.h"

#include <ATen/ATen.h>

namespace lowbit::ops::cuda {
namespace {

using kernels::cuda::MatmulInt8Route;

bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

int64_t round_up(int64_t size, int64_t unit) { return kernels::ceil_div(size, unit) * unit; }

/// A copy [rows, cols] with zeros around the matrix.
at::Tensor padded(const char* op, const at::Tensor& matrix, int64_t rows, int64_t cols) {
  at::Tensor result = cuda::empty({rows, cols}, matrix.scalar_type(), matrix.device());
  cuda::zero_bytes(op, matrix.device(), result.mutable_data_ptr(), rows * cols);
  result.narrow(0, 0, matrix.size(0)).narrow(1, 0, matrix.size(1)).copy_(matrix);
  return result;
}

/// a [M, K] * b [N, K]^T: int32 [M, N] through the library, whatever the sizes.
at::Tensor library_product(const char* op, const at::Tensor& a, const at::Tensor& b,
                           MatmulInt8Route route) {
  const at::NoGradGuard no_grad;
  const int64_t m = a.size(0), n = b.size(0), k = a.size(1);
  if (route == MatmulInt8Route::kPadded) {
    const int64_t width = round_up(k, 16), columns = round_up(n, 8);
    const at::Tensor c = cuda::empty({m, columns}, at::kInt, a.device());
    product_int8(padded(op, a, m, width), padded(op, b, columns, width), c);
    return c.narrow(1, 0, n).contiguous();
  }
  at::Tensor c = cuda::empty({m, n}, at::kInt, a.device());
  product_int8(is_aligned(a) ? a : a.clone(), is_aligned(b) ? b : b.clone(), c);
  return c;
}

}  // namespace

void matmul_int8(const char* op, const at::Tensor& a, const at::Tensor& b,
                 const kernels::MatmulInt8Params& p) {
  const auto route = kernels::cuda::plan_matmul_int8(p.m, p.n, p.k);
  if (route == MatmulInt8Route::kKernel) {
    const Scope scope(op, a.device());
    return check_launch(op, kernels::cuda::matmul_int8(p, scope.stream()));
  }
  const at::Tensor sums = library_product(op, a.view({p.m, p.k}), b, route);
  const Scope scope(op, a.device());
  if (p.c != nullptr) {
    at::from_blob(p.c, {p.m, p.n}, sums.options()).copy_(sums);
  }
  if (p.output == nullptr) return;
  const kernels::DequantizeMatmulParams epilogue{
      .a = static_cast<const int32_t*>(sums.const_data_ptr()),
      .row_stats = p.row_stats,
      .col_stats = p.col_stats,
      .bias = p.bias,
      .bias_dtype = p.bias_dtype,
      .rows = p.m,
      .cols = p.n,
      .output = p.output,
      .output_dtype = p.output_dtype};
  check_launch(op, kernels::cuda::dequantize_matmul(epilogue, scope.stream()));
}

namespace {

using kernels::cuda::LinearMixedRoute;

/// The rows in 8 bits and, with a threshold, the flags of the columns that hold outliers.
struct QuantizedRows {
  at::Tensor q, stats, flags;
  kernels::QuantizeRowwiseParams params;

  QuantizedRows(const char* op, const kernels::LinearMixedInt8Params& p, const Scope& scope,
                at::Device device)
      : q(cuda::empty({p.m, p.k}, at::kChar, device)),
        stats(cuda::empty({p.m}, at::kFloat, device)) {
    params = {.input = p.input,
              .input_stride = p.input_stride,
              .input_dtype = p.dtype,
              .rows = p.m,
              .cols = p.k,
              .threshold = p.threshold,
              .q = static_cast<int8_t*>(q.mutable_data_ptr()),
              .stats = static_cast<float*>(stats.mutable_data_ptr())};
    if (p.threshold > 0.0f) {
      flags = cuda::empty({p.k}, at::kByte, device);
      cuda::zero_bytes(op, device, flags.mutable_data_ptr(), p.k);
      params.outlier_columns = static_cast<uint8_t*>(flags.mutable_data_ptr());
    }
    check_launch(op, kernels::cuda::quantize_rowwise(params, scope.stream()));
  }
};

/// Where no kernel does it all: a matmul into int32, and the epilogue over it.
void linear_in_parts(const char* op, const kernels::LinearMixedInt8Params& p,
                     const QuantizedRows& rows, const at::Tensor& weight, const Scope& scope) {
  kernels::MatmulInt8Params matmul{.a = rows.params.q,
                                   .b = p.q,
                                   .m = p.m,
                                   .n = p.n,
                                   .k = p.k,
                                   .row_stats = rows.params.stats,
                                   .col_stats = p.stats,
                                   .bias = p.bias,
                                   .bias_dtype = p.bias_dtype,
                                   .output = p.output,
                                   .output_dtype = p.dtype};
  if (p.threshold == 0.0f) return matmul_int8(op, rows.q, weight, matmul);
  if (p.m > 1) {
    check_launch(op, kernels::cuda::zero_outlier_columns(rows.params, scope.stream()));
  }
  const at::Tensor columns = cuda::empty({p.k + 1}, at::kInt, weight.device());
  auto* list = static_cast<int32_t*>(columns.mutable_data_ptr());  // the last one: how many
  const kernels::CompactColumnsParams compact{
      .flags = rows.params.outlier_columns, .cols = p.k, .columns = list, .count = list + p.k};
  check_launch(op, kernels::cuda::compact_columns(compact, scope.stream()));
  const auto route = kernels::cuda::plan_matmul_int8(p.m, p.n, p.k);
  at::Tensor sums;
  if (route == MatmulInt8Route::kKernel) {
    sums = cuda::empty({p.m, p.n}, at::kInt, weight.device());
    matmul.c = static_cast<int32_t*>(sums.mutable_data_ptr());
    matmul.output = nullptr;
    check_launch(op, kernels::cuda::matmul_int8(matmul, scope.stream()));
  } else {
    sums = library_product(op, rows.q, weight, route);
  }
  const kernels::DequantizeMixedParams mixed{
      .matmul = {.a = static_cast<const int32_t*>(sums.const_data_ptr()),
                 .row_stats = matmul.row_stats,
                 .col_stats = matmul.col_stats,
                 .bias = matmul.bias,
                 .bias_dtype = matmul.bias_dtype,
                 .rows = p.m,
                 .cols = p.n,
                 .output = p.output,
                 .output_dtype = p.dtype},
      .input = p.input,
      .input_stride = p.input_stride,
      .input_dtype = p.dtype,
      .q = p.q,
      .k = p.k,
      .columns = list,
      .count = list + p.k};
  check_launch(op, kernels::cuda::dequantize_mixed(mixed, scope.stream()));
}

}  // namespace

void linear_8bit(const char* op, const Rows& rows, const Weight8bit& w, const at::Tensor& bias,
                 double threshold, const at::Tensor& output) {
  const at::Device device = output.device();
  kernels::LinearMixedInt8Params params{
      .input = rows.data,
      .input_stride = rows.stride,
      .dtype = kernel_dtype(output.scalar_type()),
      .m = rows.count,
      .n = w.q.size(0),
      .k = w.q.size(1),
      .q = static_cast<const int8_t*>(w.q.const_data_ptr()),
      .stats = static_cast<const float*>(w.stats.const_data_ptr()),
      .threshold = static_cast<float>(threshold),
      .output = output.mutable_data_ptr()};
  if (bias.defined()) {
    params.bias = bias.const_data_ptr();
    params.bias_dtype = kernel_dtype(bias.scalar_type());
  }
  const Scope scope(op, device);
  const auto plan = kernels::cuda::plan_linear_mixed_int8(params, properties(device));
  if (plan.route == LinearMixedRoute::kSmall) {
    const at::Tensor workspace = cuda::empty({plan.workspace_bytes}, at::kByte, device);
    params.workspace = workspace.mutable_data_ptr();
    return check_launch(op, kernels::cuda::linear_mixed_int8(plan, params, scope.stream()));
  }
  const QuantizedRows quantized(op, params, scope, device);
  if (plan.route == LinearMixedRoute::kParts) {
    return linear_in_parts(op, params, quantized, w.q, scope);
  }
  params.input_q = quantized.params.q;
  params.input_stats = quantized.params.stats;
  params.outlier_columns = quantized.params.outlier_columns;
  check_launch(op, kernels::cuda::linear_mixed_int8(plan, params, scope.stream()));
}

}  // namespace lowbit::ops::cuda
