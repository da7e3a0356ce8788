// NF4 and FP4: memory and devices around the kernels.
#include "lowbit/kernels/fourbit.h"

#include <torch/library.h>

#include "ops/device.h"
#include "ops/direct.h"
#include "ops/fourbit_cuda.h"
#include "ops/operands.h"
#include "ops/plan_log.h"
#include "ops/rows.h"
#include "ops/weight.h"

namespace lowbit::ops {
namespace direct {
namespace {

using kernels::Matmul4bitParams;

Matmul4bitParams matmul_params(const Rows& rows, at::ScalarType dtype, const Weight4bit& w) {
  return {.input = rows.data,
          .input_stride = rows.stride,
          .dtype = kernel_dtype(dtype),
          .m = rows.count,
          .n = w.rows,
          .k = w.cols,
          .packed = packed_bytes(w),
          .scales = block_scales(w),
          .blocksize = w.blocksize,
          .quant_type = kernel_type(w.quant_type)};
}

/// A matmul with its output, and the bias that it reads.
struct Product {
  Matmul4bitParams params;
  at::Tensor output, bias;
};

Product make_product(const char* op, const at::Tensor& input, const Rows& rows, const Weight4bit& w,
                     const at::Tensor& bias) {
  check_bias(op, bias, w.rows, w.packed.device());
  Product product{matmul_params(rows, input.scalar_type(), w),
                  empty(with_last(input.sizes(), w.rows), input.scalar_type(), input.device()),
                  bias.defined() ? bias.contiguous() : bias};
  product.params.output = product.output.mutable_data_ptr();
  if (bias.defined()) {
    product.params.bias = product.bias.const_data_ptr();
    product.params.bias_dtype = kernel_dtype(bias.scalar_type());
  }
  return product;
}

void run_on_cpu(const char* op, Matmul4bitParams params) {
  const kernels::Matmul4bitPlan plan = kernels::cpu::plan_matmul_4bit(params);
  if (C10_UNLIKELY(logs_plans())) log_plan(op, &params, 1, plan);
  const Workspace workspace(plan.workspace_bytes);
  params.workspace = workspace.data();
  for_units(op, plan.prepare_units, plan.prepare_grain, [&](int64_t begin, int64_t end) {
    return kernels::cpu::matmul_4bit_prepare(plan, params, begin, end);
  });
  for_units(op, plan.units, plan.grain, [&](int64_t begin, int64_t end) {
    return kernels::cpu::matmul_4bit(plan, params, begin, end);
  });
}

void dequantize_into(const char* op, const Weight4bit& w, const at::Tensor& output) {
  const kernels::Dequantize4bitParams params{.packed = packed_bytes(w),
                                             .scales = block_scales(w),
                                             .numel = output.numel(),
                                             .blocksize = w.blocksize,
                                             .quant_type = kernel_type(w.quant_type),
                                             .output = output.mutable_data_ptr(),
                                             .output_dtype = kernel_dtype(output.scalar_type())};
  run(op, output.device(), params,
      {kernels::ceil_div(params.numel, params.blocksize), grain_of(params.blocksize)},
      &kernels::cpu::dequantize_4bit, LOWBIT_CUDA_KERNEL(dequantize_4bit));
}

}  // namespace

at::Tensor linear_4bit(const char* op, const char* argument, const at::Tensor& input,
                       const Weight4bit& w, const at::Tensor& bias, const float* code) {
  check_activations(op, argument, input, w.cols, w.packed.device());
  const Rows rows = as_rows(input, w.cols);
  Product product = make_product(op, input, rows, w, bias);
  product.params.code = code;
  if (product.output.numel() == 0) return product.output;
  if constexpr (kHasCuda) {
    if (input.is_cuda()) {
      cuda::linear_4bit(op, product.params, rows, product.bias, product.output);
      return product.output;
    }
  }
  run_on_cpu(op, product.params);
  return product.output;
}

void linear_4bit_group(const at::Tensor& input, c10::ArrayRef<const Weight4bit*> weights,
                       c10::ArrayRef<at::Tensor> biases, at::Tensor* outputs) {
  constexpr const char* kOp = "lowbit::linear_4bit";
  if (!input.is_cpu()) {  // a launch costs less than what the group saves on threads
    for (size_t i = 0; i < weights.size(); ++i) {
      outputs[i] = linear_4bit(kOp, "input", input, *weights[i], biases[i]);
    }
    return;
  }
  c10::SmallVector<at::Tensor, 4> dense_biases;
  c10::SmallVector<Matmul4bitParams, 4> params;
  Rows rows;
  for (size_t i = 0; i < weights.size(); ++i) {
    check_activations(kOp, "input", input, weights[i]->cols, weights[i]->packed.device());
    if (i == 0) rows = as_rows(input, weights[i]->cols);
    Product product = make_product(kOp, input, rows, *weights[i], biases[i]);
    outputs[i] = product.output;
    dense_biases.push_back(product.bias);
    params.push_back(product.params);
  }
  if (params.empty() || rows.count == 0) return;
  const auto count = static_cast<int32_t>(params.size());
  // Members that are copies of a strided input would differ in their pointer; they are the same
  // rows.
  for (Matmul4bitParams& p : params) p.input = rows.data;
  const kernels::Matmul4bitPlan plan = kernels::cpu::plan_matmul_4bit_group(params.data(), count);
  if (plan.units == 0) {
    for (const Matmul4bitParams& p : params) run_on_cpu(kOp, p);
    return;
  }
  if (C10_UNLIKELY(logs_plans())) log_plan(kOp, params.data(), count, plan);
  const Workspace workspace(plan.workspace_bytes);
  for (Matmul4bitParams& p : params) p.workspace = workspace.data();
  for_units(kOp, plan.prepare_units, plan.prepare_grain, [&](int64_t begin, int64_t end) {
    return kernels::cpu::matmul_4bit_prepare(plan, params[0], begin, end);
  });
  for_units(kOp, plan.units, plan.grain, [&](int64_t begin, int64_t end) {
    return kernels::cpu::matmul_4bit_group(plan, params.data(), count, begin, end);
  });
}

at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const Weight4bit& w) {
  constexpr const char* kOp = "lowbit::linear_4bit_backward_input";
  check_activations(kOp, "grad_output", grad_output, w.rows, w.packed.device());
  const Rows rows = as_rows(grad_output, w.rows);
  at::Tensor output =
      empty(with_last(grad_output.sizes(), w.cols), grad_output.scalar_type(), w.packed.device());
  if (output.numel() == 0) return output;
  Matmul4bitParams params = matmul_params(rows, grad_output.scalar_type(), w);
  params.output = output.mutable_data_ptr();
  if constexpr (kHasCuda) {
    if (output.is_cuda()) {
      cuda::linear_4bit_backward_input(kOp, params, rows, output);
      return output;
    }
  }
  constexpr int64_t kSlice = 64;  // the kernel's unit
  for_units(kOp, kernels::ceil_div(w.cols, kSlice), grain_of(kSlice * rows.count * w.rows),
            [&](int64_t begin, int64_t end) {
              return kernels::cpu::matmul_4bit_backward_input(params, begin, end);
            });
  return output;
}

at::Tensor embedding_4bit(const at::Tensor& ids, const Weight4bit& table, at::ScalarType dtype) {
  constexpr const char* kOp = "lowbit::embedding_4bit";
  check_float(kOp, "dtype", dtype);
  check_ids(kOp, ids, table.packed.device());
  const at::Tensor indices = checked_ids(kOp, ids, table.rows);
  at::DimVector sizes(ids.sizes());
  sizes.push_back(table.cols);
  at::Tensor output = empty(sizes, dtype, ids.device());
  const kernels::Embedding4bitParams params{
      .ids = static_cast<const int64_t*>(indices.const_data_ptr()),
      .count = ids.numel(),
      .rows = table.rows,
      .dim = table.cols,
      .packed = packed_bytes(table),
      .scales = block_scales(table),
      .blocksize = table.blocksize,
      .quant_type = kernel_type(table.quant_type),
      .output = output.mutable_data_ptr(),
      .output_dtype = kernel_dtype(dtype)};
  run(kOp, ids.device(), params, {params.count, grain_of(params.dim)},
      &kernels::cpu::embedding_4bit, LOWBIT_CUDA_KERNEL(embedding_4bit));
  return output;
}

at::Tensor dequantize_4bit(const Weight4bit& w, at::ScalarType dtype) {
  constexpr const char* kOp = "lowbit::dequantize_4bit";
  check_float(kOp, "dtype", dtype);
  at::Tensor output = empty({w.rows, w.cols}, dtype, w.packed.device());
  dequantize_into(kOp, w, output);
  return output;
}

}  // namespace direct

namespace {
namespace entry {  // the dispatcher's: arguments to operands

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor> quantize_4bit(const at::Tensor& A, int64_t blocksize,
                                                 std::string_view quant_type,
                                                 at::ScalarType storage) {
  constexpr const char* kOp = "lowbit::quantize_4bit";
  check_float(kOp, "A", A);
  check_blocksize(kOp, blocksize);
  check_storage(kOp, storage);
  const QuantType type = check_quant_type(kOp, quant_type);
  const at::Tensor input = A.contiguous();
  const int64_t numel = input.numel();
  const int64_t itemsize = static_cast<int64_t>(c10::elementSize(storage));
  const int64_t bytes = (numel + 1) / 2;
  at::Tensor packed = empty({kernels::ceil_div(bytes, itemsize), 1}, storage, A.device());
  at::Tensor absmax = empty({kernels::ceil_div(numel, blocksize)}, at::kFloat, A.device());
  auto* out = static_cast<uint8_t*>(packed.mutable_data_ptr());
  zero_bytes(kOp, A.device(), out + bytes, packed.numel() * itemsize - bytes);
  const kernels::Quantize4bitParams params{
      .input = input.const_data_ptr(),
      .input_dtype = kernel_dtype(input.scalar_type()),
      .numel = numel,
      .blocksize = blocksize,
      .quant_type = kernel_type(type),
      .packed = out,
      .absmax = static_cast<float*>(absmax.mutable_data_ptr())};
  run(kOp, A.device(), params, {absmax.numel(), grain_of(blocksize)}, &kernels::cpu::quantize_4bit,
      LOWBIT_CUDA_KERNEL(quantize_4bit));
  return {packed, absmax};
}

void dequantize_4bit_out(const at::Tensor& A, const at::Tensor& absmax, int64_t blocksize,
                         std::string_view quant_type, at::IntArrayRef shape, at::ScalarType dtype,
                         const at::Tensor& out) {
  constexpr const char* kOp = "lowbit::dequantize_4bit";
  check_float(kOp, "dtype", dtype);
  const int64_t numel = check_shape(kOp, "shape", shape);
  const Weight4bit weight = make_weight_4bit(kOp, "A", A, {1, numel}, absmax, blocksize,
                                             check_quant_type(kOp, quant_type), {}, {}, {});
  check_out(kOp, out, shape, dtype, A.device());
  if (out.is_contiguous()) return direct::dequantize_into(kOp, weight, out);
  const at::Tensor dense = empty(shape, dtype, A.device());
  direct::dequantize_into(kOp, weight, dense);
  out.copy_(dense);
}

at::Tensor dequantize_4bit(const at::Tensor& A, const at::Tensor& absmax, int64_t blocksize,
                           std::string_view quant_type, at::IntArrayRef shape,
                           at::ScalarType dtype) {
  constexpr const char* kOp = "lowbit::dequantize_4bit";
  check_float(kOp, "dtype", dtype);
  check_shape(kOp, "shape", shape);
  at::Tensor out = empty(shape, dtype, A.device());
  dequantize_4bit_out(A, absmax, blocksize, quant_type, shape, dtype, out);
  return out;
}

at::Tensor linear(const char* op, const char* input_name, const char* weight_name,
                  const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef shape,
                  const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                  const OptionalTensor& bias, const OptionalTensor& absmax_8bit,
                  const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  return direct::linear_4bit(
      op, input_name, input,
      make_weight_4bit(op, weight_name, weight, shape, absmax, blocksize,
                       check_quant_type(op, quant_type), value_or_undefined(absmax_8bit),
                       value_or_undefined(absmax_code), value_or_undefined(absmax_offset)),
      value_or_undefined(bias));
}

at::Tensor linear_4bit(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef shape,
                       const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                       const OptionalTensor& bias, const OptionalTensor& absmax_8bit,
                       const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  return linear("lowbit::linear_4bit", "input", "weight", input, weight, shape, absmax, blocksize,
                quant_type, bias, absmax_8bit, absmax_code, absmax_offset);
}

at::Tensor gemm_4bit(const at::Tensor& A, const at::Tensor& B, at::IntArrayRef shape,
                     const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                     const OptionalTensor& bias, const OptionalTensor& absmax_8bit,
                     const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  return linear("lowbit::gemm_4bit", "A", "B", A, B, shape, absmax, blocksize, quant_type, bias,
                absmax_8bit, absmax_code, absmax_offset);
}

at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                      at::IntArrayRef shape, const at::Tensor& absmax,
                                      int64_t blocksize, std::string_view quant_type,
                                      const OptionalTensor& absmax_8bit,
                                      const OptionalTensor& absmax_code,
                                      const OptionalTensor& absmax_offset) {
  constexpr const char* kOp = "lowbit::linear_4bit_backward_input";
  return direct::linear_4bit_backward_input(
      grad_output,
      make_weight_4bit(kOp, "weight", weight, shape, absmax, blocksize,
                       check_quant_type(kOp, quant_type), value_or_undefined(absmax_8bit),
                       value_or_undefined(absmax_code), value_or_undefined(absmax_offset)));
}

at::Tensor embedding_4bit(const at::Tensor& ids, const at::Tensor& weight, at::IntArrayRef shape,
                          const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                          at::ScalarType dtype, const OptionalTensor& absmax_8bit,
                          const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  constexpr const char* kOp = "lowbit::embedding_4bit";
  return direct::embedding_4bit(
      ids,
      make_weight_4bit(kOp, "weight", weight, shape, absmax, blocksize,
                       check_quant_type(kOp, quant_type), value_or_undefined(absmax_8bit),
                       value_or_undefined(absmax_code), value_or_undefined(absmax_offset)),
      dtype);
}

// `code` decides the type: any 16 values, in code order.
at::Tensor gemv_4bit(const at::Tensor& A, const at::Tensor& B, at::IntArrayRef shape,
                     const at::Tensor& absmax, const at::Tensor& code, int64_t blocksize) {
  constexpr const char* kOp = "lowbit::gemv_4bit";
  check_dtype(kOp, "code", code, at::kFloat);
  check_device(kOp, "code", code, A.device());
  check_numel(kOp, "code", code, 16);
  const at::Tensor table = code.contiguous();
  return direct::linear_4bit(
      kOp, "A", A,
      make_weight_4bit(kOp, "B", B, shape, absmax, blocksize, QuantType::kNF4, {}, {}, {}), {},
      static_cast<const float*>(table.const_data_ptr()));
}

void gemv_4bit_out(const at::Tensor& A, const at::Tensor& B, at::IntArrayRef shape,
                   const at::Tensor& absmax, const at::Tensor& code, int64_t blocksize,
                   const at::Tensor& out) {
  const at::Tensor result = gemv_4bit(A, B, shape, absmax, code, blocksize);
  check_out("lowbit::gemv_4bit", out, result.sizes(), A.scalar_type(), A.device());
  out.copy_(result);
}

}  // namespace entry
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("quantize_4bit", &entry::quantize_4bit);
  m.impl("dequantize_4bit", &entry::dequantize_4bit);
  m.impl("dequantize_4bit.out", &entry::dequantize_4bit_out);
  m.impl("gemm_4bit", &entry::gemm_4bit);
  m.impl("gemv_4bit", &entry::gemv_4bit);
  m.impl("gemv_4bit.out", &entry::gemv_4bit_out);
  m.impl("linear_4bit", &entry::linear_4bit);
  m.impl("linear_4bit_backward_input", &entry::linear_4bit_backward_input);
  m.impl("embedding_4bit", &entry::embedding_4bit);
}

#ifdef LOWBIT_HAS_CUDA
TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("quantize_4bit", &entry::quantize_4bit);
  m.impl("dequantize_4bit", &entry::dequantize_4bit);
  m.impl("dequantize_4bit.out", &entry::dequantize_4bit_out);
  m.impl("gemm_4bit", &entry::gemm_4bit);
  m.impl("gemv_4bit", &entry::gemv_4bit);
  m.impl("gemv_4bit.out", &entry::gemv_4bit_out);
  m.impl("linear_4bit", &entry::linear_4bit);
  m.impl("linear_4bit_backward_input", &entry::linear_4bit_backward_input);
  m.impl("embedding_4bit", &entry::embedding_4bit);
}
#endif
