// Shapes and dtypes of every op without data: for tracing, fake tensors and the meta device.
// Activations may have symbolic sizes.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/blockwise.h"
#include "ops/grouped_mm.h"
#include "ops/int8.h"
#include "ops/operands.h"
#include "ops/rows.h"
#include "ops/weight.h"

namespace lowbit::ops {
namespace {
namespace meta {

using OptionalTensor = std::optional<at::Tensor>;
using Dtype = std::optional<at::ScalarType>;

at::Tensor empty(c10::SymIntArrayRef sizes, const at::Tensor& like, at::ScalarType dtype) {
  return at::empty_symint(sizes, like.options().dtype(dtype));
}

c10::SymInt ceil_div(const c10::SymInt& a, int64_t b) { return (a + (b - 1)) / b; }

/// Product of the sizes but the last.
c10::SymInt rows_of(const at::Tensor& tensor) {
  c10::SymInt rows = 1;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) rows = rows * tensor.sym_size(i);
  return rows;
}

std::tuple<at::Tensor, at::Tensor> quantize_4bit(const at::Tensor& A, int64_t blocksize,
                                                 std::string_view quant_type,
                                                 at::ScalarType storage) {
  constexpr const char* kOp = "lowbit::quantize_4bit";
  check_float(kOp, "A", A);
  check_blocksize(kOp, blocksize);
  check_storage(kOp, storage);
  check_quant_type(kOp, quant_type);
  const c10::SymInt numel = A.sym_numel();
  const c10::SymInt items =
      ceil_div(ceil_div(numel, 2), static_cast<int64_t>(c10::elementSize(storage)));
  return {empty({items, 1}, A, storage), empty({ceil_div(numel, blocksize)}, A, at::kFloat)};
}

at::Tensor dequantize_4bit(const at::Tensor& A, const at::Tensor& absmax, int64_t blocksize,
                           std::string_view quant_type, at::IntArrayRef shape,
                           at::ScalarType dtype) {
  constexpr const char* kOp = "lowbit::dequantize_4bit";
  check_float(kOp, "dtype", dtype);
  check_quant_type(kOp, quant_type);
  check_blocksize(kOp, blocksize);
  check_shape(kOp, "shape", shape);
  check_dtype(kOp, "absmax", absmax, at::kFloat);
  return at::empty(shape, A.options().dtype(dtype));
}

void dequantize_4bit_out(const at::Tensor& A, const at::Tensor& absmax, int64_t blocksize,
                         std::string_view quant_type, at::IntArrayRef shape, at::ScalarType dtype,
                         const at::Tensor& out) {
  dequantize_4bit(A, absmax, blocksize, quant_type, shape, dtype);
  check_out("lowbit::dequantize_4bit", out, shape, dtype, A.device());
}

at::Tensor linear(const char* op, const char* input_name, const at::Tensor& input,
                  const at::Tensor& weight, at::IntArrayRef shape, int64_t blocksize,
                  const at::Tensor& bias, bool transposed) {
  LOWBIT_CHECK(shape.size() == 2, op, "shape", "[out_features, in_features]", shape);
  check_shape(op, "shape", shape);
  check_blocksize(op, blocksize);
  const int64_t width = shape[transposed ? 0 : 1], result = shape[transposed ? 1 : 0];
  check_activations(op, input_name, input, width, weight.device());
  check_bias(op, bias, result, weight.device());
  return empty(with_last(input.sym_sizes(), result), input, input.scalar_type());
}

at::Tensor linear_4bit(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef shape,
                       const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                       const OptionalTensor& bias, const OptionalTensor& absmax_8bit,
                       const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  constexpr const char* kOp = "lowbit::linear_4bit";
  check_quant_type(kOp, quant_type);
  return linear(kOp, "input", input, weight, shape, blocksize, value_or_undefined(bias), false);
}

at::Tensor gemm_4bit(const at::Tensor& A, const at::Tensor& B, at::IntArrayRef shape,
                     const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                     const OptionalTensor& bias, const OptionalTensor& absmax_8bit,
                     const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  constexpr const char* kOp = "lowbit::gemm_4bit";
  check_quant_type(kOp, quant_type);
  return linear(kOp, "A", A, B, shape, blocksize, value_or_undefined(bias), false);
}

at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                      at::IntArrayRef shape, const at::Tensor& absmax,
                                      int64_t blocksize, std::string_view quant_type,
                                      const OptionalTensor& absmax_8bit,
                                      const OptionalTensor& absmax_code,
                                      const OptionalTensor& absmax_offset) {
  constexpr const char* kOp = "lowbit::linear_4bit_backward_input";
  check_quant_type(kOp, quant_type);
  return linear(kOp, "grad_output", grad_output, weight, shape, blocksize, {}, true);
}

at::Tensor grouped_mm(const char* op, const char* input_name, const at::Tensor& input,
                      const at::Tensor& weight, at::IntArrayRef shape, int64_t blocksize,
                      std::string_view quant_type, const at::Tensor& offs, bool transposed) {
  stack_shape(op, "shape", shape);
  check_shape(op, "shape", shape);
  check_blocksize(op, blocksize);
  check_quant_type(op, quant_type);
  check_groups(op, input_name, input, shape[transposed ? 1 : 2], shape[0], offs, weight.device());
  return empty(with_last(input.sym_sizes(), shape[transposed ? 2 : 1]), input, input.scalar_type());
}

at::Tensor grouped_mm_4bit(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef shape,
                           const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                           const at::Tensor& offs, const OptionalTensor& absmax_8bit,
                           const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  return grouped_mm("lowbit::grouped_mm_4bit", "input", input, weight, shape, blocksize, quant_type,
                    offs, false);
}

at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                          at::IntArrayRef shape, const at::Tensor& absmax,
                                          int64_t blocksize, std::string_view quant_type,
                                          const at::Tensor& offs, const OptionalTensor& absmax_8bit,
                                          const OptionalTensor& absmax_code,
                                          const OptionalTensor& absmax_offset) {
  return grouped_mm("lowbit::grouped_mm_4bit_backward_input", "grad_output", grad_output, weight,
                    shape, blocksize, quant_type, offs, true);
}

at::Tensor embedding(const char* op, const at::Tensor& ids, c10::SymInt width,
                     const at::Tensor& table, at::ScalarType dtype) {
  check_float(op, "dtype", dtype);
  check_ids(op, ids, table.device());
  c10::SymDimVector sizes(ids.sym_sizes());
  sizes.push_back(std::move(width));
  return empty(sizes, table, dtype);
}

at::Tensor embedding_4bit(const at::Tensor& ids, const at::Tensor& weight, at::IntArrayRef shape,
                          const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                          at::ScalarType dtype, const OptionalTensor& absmax_8bit,
                          const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  constexpr const char* kOp = "lowbit::embedding_4bit";
  LOWBIT_CHECK(shape.size() == 2, kOp, "shape", "[rows, dim]", shape);
  check_quant_type(kOp, quant_type);
  return embedding(kOp, ids, shape[1], weight, dtype);
}

at::Tensor gemv_4bit(const at::Tensor& A, const at::Tensor& B, at::IntArrayRef shape,
                     const at::Tensor& absmax, const at::Tensor& code, int64_t blocksize) {
  return linear("lowbit::gemv_4bit", "A", A, B, shape, blocksize, {}, false);
}

void gemv_4bit_out(const at::Tensor& A, const at::Tensor& B, at::IntArrayRef shape,
                   const at::Tensor& absmax, const at::Tensor& code, int64_t blocksize,
                   const at::Tensor& out) {
  const at::Tensor result = gemv_4bit(A, B, shape, absmax, code, blocksize);
  check_out("lowbit::gemv_4bit", out, result.sym_sizes(), A.scalar_type(), A.device());
}

std::tuple<at::Tensor, at::Tensor> quantize_blockwise(const at::Tensor& A, const at::Tensor& code,
                                                      int64_t blocksize) {
  check_quantize_blockwise("lowbit::quantize_blockwise", A, code, blocksize);
  return {empty(A.sym_sizes(), A, at::kByte),
          empty({ceil_div(A.sym_numel(), blocksize)}, A, at::kFloat)};
}

at::Tensor dequantize_blockwise(const at::Tensor& A, const at::Tensor& absmax,
                                const at::Tensor& code, int64_t blocksize, at::ScalarType dtype) {
  check_dequantize_blockwise("lowbit::dequantize_blockwise", A, absmax, code, blocksize, dtype);
  return empty(A.sym_sizes(), A, dtype);
}

void dequantize_blockwise_out(const at::Tensor& A, const at::Tensor& absmax, const at::Tensor& code,
                              int64_t blocksize, at::ScalarType dtype, const at::Tensor& out) {
  dequantize_blockwise(A, absmax, code, blocksize, dtype);
  check_out("lowbit::dequantize_blockwise", out, A.sym_sizes(), dtype, A.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> int8_rowwise_quant(const at::Tensor& A,
                                                                  double threshold) {
  check_quantize_int8("lowbit::int8_rowwise_quant", A, threshold);
  return {empty(A.sym_sizes(), A, at::kChar), empty({rows_of(A)}, A, at::kFloat),
          empty({A.sym_size(-1)}, A, at::kByte)};
}

std::tuple<at::Tensor, at::Tensor> int8_colwise_quant(const at::Tensor& A, double threshold) {
  check_quantize_int8("lowbit::int8_colwise_quant", A, threshold);
  return {empty(A.sym_sizes(), A, at::kChar), empty({A.sym_size(-1)}, A, at::kFloat)};
}

at::Tensor int8_vectorwise_dequant(const at::Tensor& A, const at::Tensor& stats) {
  check_dtype("lowbit::int8_vectorwise_dequant", "A", A, at::kChar);
  return empty(A.sym_sizes(), A, at::kFloat);
}

at::Tensor int8_linear_matmul(const at::Tensor& A, const at::Tensor& B) {
  check_matmul_int8("lowbit::int8_linear_matmul", A, B);
  return empty(with_last(A.sym_sizes(), B.sym_size(0)), A, at::kInt);
}

void int8_linear_matmul_out(const at::Tensor& A, const at::Tensor& B, const at::Tensor& out) {
  const at::Tensor result = int8_linear_matmul(A, B);
  check_out("lowbit::int8_linear_matmul", out, result.sym_sizes(), at::kInt, A.device());
}

at::Tensor int8_mm_dequant(const at::Tensor& A, const at::Tensor& row_stats,
                           const at::Tensor& col_stats, Dtype dtype, const OptionalTensor& bias) {
  constexpr const char* kOp = "lowbit::int8_mm_dequant";
  check_dtype(kOp, "A", A, at::kInt);
  const at::ScalarType type = dtype.value_or(at::kHalf);
  check_epilogue(kOp, "row_stats", "col_stats", row_stats, col_stats, rows_of(A), A.sym_size(-1),
                 A.device(), type);
  return empty(A.sym_sizes(), A, type);
}

at::Tensor int8_scaled_mm(const at::Tensor& A, const at::Tensor& B, const at::Tensor& row_stats,
                          const at::Tensor& col_stats, const OptionalTensor& bias, Dtype dtype) {
  constexpr const char* kOp = "lowbit::int8_scaled_mm";
  check_matmul_int8(kOp, A, B);
  const at::ScalarType type = dtype.value_or(at::kHalf);
  check_epilogue(kOp, "row_stats", "col_stats", row_stats, col_stats, rows_of(A), B.sym_size(0),
                 A.device(), type);
  return empty(with_last(A.sym_sizes(), B.sym_size(0)), A, type);
}

at::Tensor linear_int8(const char* op, const char* input_name, const at::Tensor& input,
                       const at::Tensor& CB, const at::Tensor& bias, bool transposed) {
  check_dtype(op, "CB", CB, at::kChar);
  check_rank(op, "CB", CB, 2);
  const c10::SymInt width = CB.sym_size(transposed ? 0 : 1);
  const c10::SymInt result = CB.sym_size(transposed ? 1 : 0);
  check_activations(op, input_name, input, width, CB.device());
  check_bias(op, bias, result, CB.device());
  return empty(with_last(input.sym_sizes(), result), input, input.scalar_type());
}

at::Tensor linear_8bit(const at::Tensor& input, const at::Tensor& CB, const at::Tensor& SCB,
                       const OptionalTensor& bias, double threshold) {
  check_quantize_int8("lowbit::linear_8bit", input, threshold);
  return linear_int8("lowbit::linear_8bit", "input", input, CB, value_or_undefined(bias), false);
}

at::Tensor linear_8bit_weight_only(const at::Tensor& input, const at::Tensor& CB,
                                   const at::Tensor& SCB, const OptionalTensor& bias) {
  return linear_int8("lowbit::linear_8bit_weight_only", "input", input, CB,
                     value_or_undefined(bias), false);
}

at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const at::Tensor& CB,
                                      const at::Tensor& SCB) {
  return linear_int8("lowbit::linear_8bit_backward_input", "grad_output", grad_output, CB, {},
                     true);
}

at::Tensor embedding_8bit(const at::Tensor& ids, const at::Tensor& CB, const at::Tensor& SCB,
                          at::ScalarType dtype) {
  constexpr const char* kOp = "lowbit::embedding_8bit";
  check_rank(kOp, "CB", CB, 2);
  return embedding(kOp, ids, CB.sym_size(1), CB, dtype);
}

}  // namespace meta
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, Meta, m) {
  namespace meta = lowbit::ops::meta;
  m.impl("quantize_4bit", &meta::quantize_4bit);
  m.impl("dequantize_4bit", &meta::dequantize_4bit);
  m.impl("dequantize_4bit.out", &meta::dequantize_4bit_out);
  m.impl("gemm_4bit", &meta::gemm_4bit);
  m.impl("gemv_4bit", &meta::gemv_4bit);
  m.impl("gemv_4bit.out", &meta::gemv_4bit_out);
  m.impl("linear_4bit", &meta::linear_4bit);
  m.impl("linear_4bit_backward_input", &meta::linear_4bit_backward_input);
  m.impl("embedding_4bit", &meta::embedding_4bit);
  m.impl("grouped_mm_4bit", &meta::grouped_mm_4bit);
  m.impl("grouped_mm_4bit_backward_input", &meta::grouped_mm_4bit_backward_input);
  m.impl("quantize_blockwise", &meta::quantize_blockwise);
  m.impl("dequantize_blockwise", &meta::dequantize_blockwise);
  m.impl("dequantize_blockwise.out", &meta::dequantize_blockwise_out);
  m.impl("int8_rowwise_quant", &meta::int8_rowwise_quant);
  m.impl("int8_colwise_quant", &meta::int8_colwise_quant);
  m.impl("int8_vectorwise_dequant", &meta::int8_vectorwise_dequant);
  m.impl("int8_linear_matmul", &meta::int8_linear_matmul);
  m.impl("int8_linear_matmul.out", &meta::int8_linear_matmul_out);
  m.impl("int8_mm_dequant", &meta::int8_mm_dequant);
  m.impl("int8_scaled_mm", &meta::int8_scaled_mm);
  m.impl("linear_8bit", &meta::linear_8bit);
  m.impl("linear_8bit_weight_only", &meta::linear_8bit_weight_only);
  m.impl("linear_8bit_backward_input", &meta::linear_8bit_backward_input);
  m.impl("embedding_8bit", &meta::embedding_8bit);
}
