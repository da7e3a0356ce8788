// LLM.int8(), part two: the fused linear layers and the embedding.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "lowbit/kernels/int8.h"
#include "ops/device.h"
#include "ops/direct.h"
#include "ops/int8.h"
#include "ops/int8_cuda.h"
#include "ops/operands.h"
#include "ops/rows.h"
#include "ops/weight.h"

namespace lowbit::ops {
namespace direct {
namespace {

const int8_t* codes(const Weight8bit& w) {
  return static_cast<const int8_t*>(w.q.const_data_ptr());
}
const float* statistics(const Weight8bit& w) {
  return static_cast<const float*>(w.stats.const_data_ptr());
}

void dequantize_into(const char* op, const Weight8bit& w, const at::Tensor& output) {
  const kernels::DequantizeRowwiseParams params{.q = codes(w),
                                                .stats = statistics(w),
                                                .rows = w.q.size(0),
                                                .cols = w.q.size(1),
                                                .output = output.mutable_data_ptr(),
                                                .output_dtype = kernel_dtype(output.scalar_type())};
  run(op, w.q.device(), params, {params.rows, grain_of(params.cols)},
      &kernels::cpu::dequantize_rowwise, LOWBIT_CUDA_KERNEL(dequantize_rowwise));
}

// The columns that hold outliers, in the activations' own values times the dequantized weight,
// float32.
void add_outliers(const at::Tensor& output, const Rows& rows, const Weight8bit& w,
                  const at::Tensor& mask) {
  const int64_t k = w.q.size(1);
  const at::Tensor columns = mask.nonzero().squeeze(1);
  const at::Tensor a = rows.owner.reshape({rows.count, k}).index_select(1, columns).to(at::kFloat);
  const at::Tensor b = empty({w.q.size(0), columns.numel()}, at::kFloat, at::kCPU);
  dequantize_into("lowbit::linear_8bit", {w.q.index_select(1, columns).contiguous(), w.stats}, b);
  output.view({rows.count, w.q.size(0)}).addmm_(a, b.t());
}

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

at::Tensor linear_8bit(const at::Tensor& input, const Weight8bit& w, const at::Tensor& bias,
                       double threshold) {
  constexpr const char* kOp = "lowbit::linear_8bit";
  const int64_t n = w.q.size(0), k = w.q.size(1);
  check_activations(kOp, "input", input, k, w.q.device());
  check_bias(kOp, bias, n, w.q.device());
  check_quantize_int8(kOp, input, threshold);
  const Rows rows = as_rows(input, k);
  const int64_t m = rows.count;
  at::Tensor output = empty(with_last(input.sizes(), n), input.scalar_type(), input.device());
  if (output.numel() == 0) return output;
  const at::Tensor dense_bias = bias.defined() ? bias.contiguous() : bias;
  if constexpr (kHasCuda) {
    if (input.is_cuda()) {
      cuda::linear_8bit(kOp, rows, w, dense_bias, threshold, output);
      return output;
    }
  }

  const int64_t q_bytes = align(m * k), stats_bytes = align(m * 4);
  const Workspace workspace(q_bytes + stats_bytes + k);
  auto* memory = static_cast<uint8_t*>(workspace.data());
  uint8_t* mask = memory + q_bytes + stats_bytes;
  std::fill(mask, mask + k, uint8_t{0});
  const kernels::QuantizeRowwiseParams quantize{.input = rows.data,
                                                .input_stride = rows.stride,
                                                .input_dtype = kernel_dtype(input.scalar_type()),
                                                .rows = m,
                                                .cols = k,
                                                .threshold = static_cast<float>(threshold),
                                                .q = reinterpret_cast<int8_t*>(memory),
                                                .stats = reinterpret_cast<float*>(memory + q_bytes),
                                                .outlier_columns = mask};
  for_units(kOp, m, grain_of(k), [&](int64_t begin, int64_t end) {
    return kernels::cpu::quantize_rowwise(quantize, begin, end);
  });
  const bool outliers = threshold > 0.0 && std::find(mask, mask + k, uint8_t{1}) != mask + k;
  if (outliers && m > 1) {
    for_units(kOp, m, grain_of(k), [&](int64_t begin, int64_t end) {
      return kernels::cpu::zero_outlier_columns(quantize, begin, end);
    });
  }

  // With outliers the two parts are added in float32 and rounded once.
  const at::Tensor sum = outliers ? empty(output.sizes(), at::kFloat, at::kCPU) : output;
  kernels::MatmulInt8Params matmul{.a = quantize.q,
                                   .b = codes(w),
                                   .m = m,
                                   .n = n,
                                   .k = k,
                                   .row_stats = quantize.stats,
                                   .col_stats = statistics(w),
                                   .output = sum.mutable_data_ptr(),
                                   .output_dtype = kernel_dtype(sum.scalar_type())};
  if (bias.defined()) {
    matmul.bias = dense_bias.const_data_ptr();
    matmul.bias_dtype = kernel_dtype(bias.scalar_type());
  }
  for_units(kOp, n, grain_of(m * k), [&](int64_t begin, int64_t end) {
    return kernels::cpu::matmul_int8(matmul, begin, end);
  });
  if (!outliers) return output;
  const at::NoGradGuard no_grad;
  add_outliers(sum, rows, w, at::from_blob(mask, {k}, at::kByte));
  return sum.to(output.scalar_type());
}

at::Tensor linear_8bit_weight_only(const at::Tensor& input, const Weight8bit& w,
                                   const at::Tensor& bias) {
  constexpr const char* kOp = "lowbit::linear_8bit_weight_only";
  const int64_t n = w.q.size(0), k = w.q.size(1);
  check_activations(kOp, "input", input, k, w.q.device());
  check_bias(kOp, bias, n, w.q.device());
  const Rows rows = as_rows(input, k);
  at::Tensor output = empty(with_last(input.sizes(), n), input.scalar_type(), input.device());
  if (output.numel() == 0) return output;
  const at::Tensor dense_bias = bias.defined() ? bias.contiguous() : bias;
  kernels::LinearInt8Params params{.input = rows.data,
                                   .input_stride = rows.stride,
                                   .dtype = kernel_dtype(input.scalar_type()),
                                   .m = rows.count,
                                   .n = n,
                                   .k = k,
                                   .q = codes(w),
                                   .stats = statistics(w),
                                   .output = output.mutable_data_ptr()};
  if (bias.defined()) {
    params.bias = dense_bias.const_data_ptr();
    params.bias_dtype = kernel_dtype(bias.scalar_type());
  }
  if constexpr (kHasCuda) {
    if (input.is_cuda() && params.m > kernels::cuda::kMostRowsOfLinearInt8) {
      cuda::linear(rows, direct::dequantize_8bit(w, input.scalar_type()), dense_bias, output);
      return output;
    }
  }
  run(kOp, input.device(), params, {n, grain_of(rows.count * k)}, &kernels::cpu::linear_int8,
      LOWBIT_CUDA_KERNEL(linear_int8));
  return output;
}

at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const Weight8bit& w) {
  constexpr const char* kOp = "lowbit::linear_8bit_backward_input";
  check_activations(kOp, "grad_output", grad_output, w.q.size(0), w.q.device());
  if constexpr (kHasCuda) {
    if (grad_output.is_cuda()) {
      const Rows rows = as_rows(grad_output, w.q.size(0));
      at::Tensor output = empty(with_last(grad_output.sizes(), w.q.size(1)),
                                grad_output.scalar_type(), grad_output.device());
      cuda::product(rows, direct::dequantize_8bit(w, grad_output.scalar_type()), output);
      return output;
    }
  }
  const at::NoGradGuard no_grad;
  return at::matmul(grad_output, direct::dequantize_8bit(w, grad_output.scalar_type()));
}

at::Tensor embedding_8bit(const at::Tensor& ids, const Weight8bit& table, at::ScalarType dtype) {
  constexpr const char* kOp = "lowbit::embedding_8bit";
  check_float(kOp, "dtype", dtype);
  check_ids(kOp, ids, table.q.device());
  const at::Tensor indices = checked_ids(kOp, ids, table.q.size(0));
  at::DimVector sizes(ids.sizes());
  sizes.push_back(table.q.size(1));
  at::Tensor output = empty(sizes, dtype, ids.device());
  const kernels::EmbeddingInt8Params params{
      .ids = static_cast<const int64_t*>(indices.const_data_ptr()),
      .count = indices.numel(),
      .rows = table.q.size(0),
      .dim = table.q.size(1),
      .q = codes(table),
      .stats = statistics(table),
      .output = output.mutable_data_ptr(),
      .output_dtype = kernel_dtype(dtype)};
  run(kOp, ids.device(), params, {params.count, grain_of(params.dim)},
      &kernels::cpu::embedding_int8, LOWBIT_CUDA_KERNEL(embedding_int8));
  return output;
}

at::Tensor dequantize_8bit(const Weight8bit& w, at::ScalarType dtype) {
  constexpr const char* kOp = "lowbit::dequantize_8bit";
  check_float(kOp, "dtype", dtype);
  at::Tensor output = empty(w.q.sizes(), dtype, w.q.device());
  dequantize_into(kOp, w, output);
  return output;
}

}  // namespace direct

namespace {
namespace entry {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor linear_8bit(const at::Tensor& input, const at::Tensor& CB, const at::Tensor& SCB,
                       const OptionalTensor& bias, double threshold) {
  return direct::linear_8bit(input, make_weight_8bit("lowbit::linear_8bit", CB, SCB),
                             value_or_undefined(bias), threshold);
}

at::Tensor linear_8bit_weight_only(const at::Tensor& input, const at::Tensor& CB,
                                   const at::Tensor& SCB, const OptionalTensor& bias) {
  return direct::linear_8bit_weight_only(
      input, make_weight_8bit("lowbit::linear_8bit_weight_only", CB, SCB),
      value_or_undefined(bias));
}

at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const at::Tensor& CB,
                                      const at::Tensor& SCB) {
  return direct::linear_8bit_backward_input(
      grad_output, make_weight_8bit("lowbit::linear_8bit_backward_input", CB, SCB));
}

at::Tensor embedding_8bit(const at::Tensor& ids, const at::Tensor& CB, const at::Tensor& SCB,
                          at::ScalarType dtype) {
  return direct::embedding_8bit(ids, make_weight_8bit("lowbit::embedding_8bit", CB, SCB), dtype);
}

}  // namespace entry
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("linear_8bit", &entry::linear_8bit);
  m.impl("linear_8bit_weight_only", &entry::linear_8bit_weight_only);
  m.impl("linear_8bit_backward_input", &entry::linear_8bit_backward_input);
  m.impl("embedding_8bit", &entry::embedding_8bit);
}

#ifdef LOWBIT_HAS_CUDA
TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("linear_8bit", &entry::linear_8bit);
  m.impl("linear_8bit_weight_only", &entry::linear_8bit_weight_only);
  m.impl("linear_8bit_backward_input", &entry::linear_8bit_backward_input);
  m.impl("embedding_8bit", &entry::embedding_8bit);
}
#endif
