// LLM.int8(), part one: the ops that Python's library has.
#include "lowbit/kernels/int8.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/device.h"
#include "ops/int8.h"
#include "ops/int8_cuda.h"
#include "ops/operands.h"
#include "ops/rows.h"

namespace lowbit::ops {
namespace {
namespace entry {

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor, at::Tensor> int8_rowwise_quant(const at::Tensor& A,
                                                                  double threshold) {
  constexpr const char* kOp = "lowbit::int8_rowwise_quant";
  check_quantize_int8(kOp, A, threshold);
  const int64_t cols = A.size(-1);
  const Rows rows = as_rows(A, cols);
  at::Tensor q = empty(A.sizes(), at::kChar, A.device());
  at::Tensor stats = empty({rows.count}, at::kFloat, A.device());
  at::Tensor outliers = empty({cols}, at::kByte, A.device());
  zero_bytes(kOp, A.device(), outliers.mutable_data_ptr(), cols);
  const kernels::QuantizeRowwiseParams params{
      .input = rows.data,
      .input_stride = rows.stride,
      .input_dtype = kernel_dtype(A.scalar_type()),
      .rows = rows.count,
      .cols = cols,
      .threshold = static_cast<float>(threshold),
      .q = static_cast<int8_t*>(q.mutable_data_ptr()),
      .stats = static_cast<float*>(stats.mutable_data_ptr()),
      .outlier_columns = static_cast<uint8_t*>(outliers.mutable_data_ptr())};
  const Units units{rows.count, grain_of(cols)};
  run(kOp, A.device(), params, units, &kernels::cpu::quantize_rowwise,
      LOWBIT_CUDA_KERNEL(quantize_rowwise));
  if (threshold > 0.0 && rows.count > 1) {
    run(kOp, A.device(), params, units, &kernels::cpu::zero_outlier_columns,
        LOWBIT_CUDA_KERNEL(zero_outlier_columns));
  }
  return {q, stats, outliers};
}

std::tuple<at::Tensor, at::Tensor> int8_colwise_quant(const at::Tensor& A, double threshold) {
  constexpr const char* kOp = "lowbit::int8_colwise_quant";
  check_quantize_int8(kOp, A, threshold);
  const int64_t cols = A.size(-1);
  const Rows rows = as_rows(A, cols);
  at::Tensor q = empty(A.sizes(), at::kChar, A.device());
  at::Tensor stats = empty({cols}, at::kFloat, A.device());
  const kernels::QuantizeColwiseParams params{
      .input = rows.data,
      .input_stride = rows.stride,
      .input_dtype = kernel_dtype(A.scalar_type()),
      .rows = rows.count,
      .cols = cols,
      .threshold = static_cast<float>(threshold),
      .q = static_cast<int8_t*>(q.mutable_data_ptr()),
      .stats = static_cast<float*>(stats.mutable_data_ptr())};
  run(kOp, A.device(), params, {cols, grain_of(rows.count)}, &kernels::cpu::quantize_colwise,
      LOWBIT_CUDA_KERNEL(quantize_colwise));
  return {q, stats};
}

at::Tensor int8_vectorwise_dequant(const at::Tensor& A, const at::Tensor& stats) {
  constexpr const char* kOp = "lowbit::int8_vectorwise_dequant";
  check_dtype(kOp, "A", A, at::kChar);
  LOWBIT_CHECK(A.dim() >= 1, kOp, "A", "[..., K]", "a 0-dim tensor");
  const Rows rows = as_rows(A.contiguous(), A.size(-1));
  check_dtype(kOp, "stats", stats, at::kFloat);
  check_device(kOp, "stats", stats, A.device());
  check_numel(kOp, "stats", stats, rows.count);
  const at::Tensor scales = stats.contiguous();
  at::Tensor output = empty(A.sizes(), at::kFloat, A.device());
  const kernels::DequantizeRowwiseParams params{
      .q = static_cast<const int8_t*>(rows.data),
      .stats = static_cast<const float*>(scales.const_data_ptr()),
      .rows = rows.count,
      .cols = A.size(-1),
      .output = output.mutable_data_ptr()};
  run(kOp, A.device(), params, {rows.count, grain_of(params.cols)},
      &kernels::cpu::dequantize_rowwise, LOWBIT_CUDA_KERNEL(dequantize_rowwise));
  return output;
}

void run_matmul(const char* op, const at::Tensor& A, const at::Tensor& B,
                kernels::MatmulInt8Params params) {
  const at::Tensor a = A.contiguous(), b = B.contiguous();
  params.a = static_cast<const int8_t*>(a.const_data_ptr());
  params.b = static_cast<const int8_t*>(b.const_data_ptr());
  params.n = B.size(0);
  params.k = B.size(1);
  params.m = as_rows(a, params.k).count;
  if constexpr (kHasCuda) {
    if (a.is_cuda()) return cuda::matmul_int8(op, a, b, params);
  }
  for_units(op, params.n, grain_of(params.m * params.k), [&](int64_t begin, int64_t end) {
    return kernels::cpu::matmul_int8(params, begin, end);
  });
}

void int8_linear_matmul_out(const at::Tensor& A, const at::Tensor& B, const at::Tensor& out) {
  constexpr const char* kOp = "lowbit::int8_linear_matmul";
  check_matmul_int8(kOp, A, B);
  check_out(kOp, out, with_last(A.sizes(), B.size(0)), at::kInt, A.device());
  const at::Tensor dense = out.is_contiguous() ? out : empty(out.sizes(), at::kInt, A.device());
  if (dense.numel() > 0) {
    run_matmul(kOp, A, B, {.c = static_cast<int32_t*>(dense.mutable_data_ptr())});
  }
  if (!dense.is_same(out)) out.copy_(dense);
}

at::Tensor int8_linear_matmul(const at::Tensor& A, const at::Tensor& B) {
  check_matmul_int8("lowbit::int8_linear_matmul", A, B);
  at::Tensor out = empty(with_last(A.sizes(), B.size(0)), at::kInt, A.device());
  int8_linear_matmul_out(A, B, out);
  return out;
}

at::Tensor int8_mm_dequant(const at::Tensor& A, const at::Tensor& row_stats,
                           const at::Tensor& col_stats, std::optional<at::ScalarType> dtype,
                           const OptionalTensor& bias) {
  constexpr const char* kOp = "lowbit::int8_mm_dequant";
  check_dtype(kOp, "A", A, at::kInt);
  LOWBIT_CHECK(A.dim() >= 1, kOp, "A", "[..., N]", "a 0-dim tensor");
  const int64_t cols = A.size(-1);
  const Rows rows = as_rows(A.contiguous(), cols);
  const at::ScalarType type = dtype.value_or(at::kHalf);
  check_epilogue(kOp, "row_stats", "col_stats", row_stats, col_stats, rows.count, cols, A.device(),
                 type);
  const at::Tensor& b = value_or_undefined(bias);
  check_bias(kOp, b, cols, A.device());
  const at::Tensor r = row_stats.contiguous(), c = col_stats.contiguous();
  const at::Tensor dense_bias = b.defined() ? b.contiguous() : b;
  at::Tensor output = empty(A.sizes(), type, A.device());
  kernels::DequantizeMatmulParams params{.a = static_cast<const int32_t*>(rows.data),
                                         .row_stats = static_cast<const float*>(r.const_data_ptr()),
                                         .col_stats = static_cast<const float*>(c.const_data_ptr()),
                                         .rows = rows.count,
                                         .cols = cols,
                                         .output = output.mutable_data_ptr(),
                                         .output_dtype = kernel_dtype(type)};
  if (b.defined()) {
    params.bias = dense_bias.const_data_ptr();
    params.bias_dtype = kernel_dtype(b.scalar_type());
  }
  run(kOp, A.device(), params, {rows.count, grain_of(cols)}, &kernels::cpu::dequantize_matmul,
      LOWBIT_CUDA_KERNEL(dequantize_matmul));
  return output;
}

at::Tensor int8_scaled_mm(const at::Tensor& A, const at::Tensor& B, const at::Tensor& row_stats,
                          const at::Tensor& col_stats, const OptionalTensor& bias,
                          std::optional<at::ScalarType> dtype) {
  constexpr const char* kOp = "lowbit::int8_scaled_mm";
  check_matmul_int8(kOp, A, B);
  const at::ScalarType type = dtype.value_or(at::kHalf);
  const int64_t rows = as_rows(A, A.size(-1)).count;
  check_epilogue(kOp, "row_stats", "col_stats", row_stats, col_stats, rows, B.size(0), A.device(),
                 type);
  const at::Tensor& b = value_or_undefined(bias);
  check_bias(kOp, b, B.size(0), A.device());
  const at::Tensor r = row_stats.contiguous(), c = col_stats.contiguous();
  const at::Tensor dense_bias = b.defined() ? b.contiguous() : b;
  at::Tensor output = empty(with_last(A.sizes(), B.size(0)), type, A.device());
  if (output.numel() == 0) return output;
  kernels::MatmulInt8Params params{.row_stats = static_cast<const float*>(r.const_data_ptr()),
                                   .col_stats = static_cast<const float*>(c.const_data_ptr()),
                                   .output = output.mutable_data_ptr(),
                                   .output_dtype = kernel_dtype(type)};
  if (b.defined()) {
    params.bias = dense_bias.const_data_ptr();
    params.bias_dtype = kernel_dtype(b.scalar_type());
  }
  run_matmul(kOp, A, B, params);
  return output;
}

}  // namespace entry
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("int8_rowwise_quant", &entry::int8_rowwise_quant);
  m.impl("int8_colwise_quant", &entry::int8_colwise_quant);
  m.impl("int8_vectorwise_dequant", &entry::int8_vectorwise_dequant);
  m.impl("int8_linear_matmul", &entry::int8_linear_matmul);
  m.impl("int8_linear_matmul.out", &entry::int8_linear_matmul_out);
  m.impl("int8_mm_dequant", &entry::int8_mm_dequant);
  m.impl("int8_scaled_mm", &entry::int8_scaled_mm);
}

#ifdef LOWBIT_HAS_CUDA
TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("int8_rowwise_quant", &entry::int8_rowwise_quant);
  m.impl("int8_colwise_quant", &entry::int8_colwise_quant);
  m.impl("int8_vectorwise_dequant", &entry::int8_vectorwise_dequant);
  m.impl("int8_linear_matmul", &entry::int8_linear_matmul);
  m.impl("int8_linear_matmul.out", &entry::int8_linear_matmul_out);
  m.impl("int8_mm_dequant", &entry::int8_mm_dequant);
  m.impl("int8_scaled_mm", &entry::int8_scaled_mm);
}
#endif
