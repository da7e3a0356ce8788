#include "llm/cuda_linear.h"

#include <ATen/ops/index_select.h>

#include <algorithm>

#include "lowbit/quantized_tensor.h"
#include "ops/cuda.h"
#include "ops/fourbit_cuda.h"
#include "ops/rows.h"
#include "ops/weight.h"

namespace lowbit::llm {
namespace {

constexpr const char* kOp = "forward";

/// Where a weight's numbers are: Module::to() changes that and keeps the tensor.
const void* data_of(const at::Tensor& weight) {
  return is_quantized(weight) ? packed_weight(weight).const_data_ptr() : weight.const_data_ptr();
}

kernels::Matmul4bitParams params_4bit(const ops::Rows& rows, const ops::Weight4bit& w,
                                      const at::Tensor& bias, at::ScalarType dtype) {
  return {.input = rows.data,
          .input_stride = rows.stride,
          .dtype = ops::kernel_dtype(dtype),
          .m = rows.count,
          .n = w.rows,
          .k = w.cols,
          .packed = ops::packed_bytes(w),
          .scales = ops::block_scales(w),
          .blocksize = w.blocksize,
          .quant_type = ops::kernel_type(w.quant_type),
          .bias = bias.defined() ? bias.const_data_ptr() : nullptr,
          .bias_dtype =
              bias.defined() ? ops::kernel_dtype(bias.scalar_type()) : kernels::DType::kFloat32};
}

}  // namespace

CudaLinear::CudaLinear(const at::Tensor& weight, const at::Tensor& bias)
    : weight_(weight), bias_(bias), data_(data_of(weight)), view_(view_weight(weight)) {
  if (!view_.is_4bit() && !view_.is_8bit()) dense_ = weight.detach();
  if (bias.defined()) dense_bias_ = bias.detach().contiguous();
}

bool CudaLinear::reads(const at::Tensor& weight, const at::Tensor& bias) const {
  return weight_.is_same(weight) && bias_.is_same(bias) && data_ == data_of(weight);
}

at::Tensor CudaLinear::multiply(const at::Tensor& input, bool programmatic) const {
  if (view_.is_8bit()) {
    return view_.weight_only
               ? ops::linear_8bit_weight_only(input, *view_.weight_8bit, dense_bias_)
               : ops::linear_8bit(input, *view_.weight_8bit, dense_bias_, view_.threshold);
  }
  const int64_t cols = input.size(1);
  const int64_t rows = view_.is_4bit() ? view_.weight_4bit->rows : dense_.size(0);
  const ops::Rows x = ops::as_rows(input, cols);
  at::Tensor output = ops::empty({x.count, rows}, input.scalar_type(), input.device());
  if (view_.is_4bit()) {
    kernels::Matmul4bitParams params =
        params_4bit(x, *view_.weight_4bit, dense_bias_, output.scalar_type());
    params.output = output.mutable_data_ptr();
    params.programmatic_launch = programmatic;
    ops::cuda::linear_4bit(kOp, params, x, dense_bias_, output);
  } else {
    ops::cuda::linear(x, dense_, dense_bias_, output);
  }
  return output;
}

void CudaLinear::multiply_group(c10::ArrayRef<const CudaLinear*> linears, const at::Tensor& input,
                                bool programmatic, at::Tensor* outputs) {
  const bool all_4bit = std::all_of(linears.begin(), linears.end(),
                                    [](const CudaLinear* l) { return l->view_.is_4bit(); });
  if (all_4bit) {
    const ops::Rows x = ops::as_rows(input, input.size(1));
    c10::SmallVector<kernels::Matmul4bitParams, 4> members;
    for (const CudaLinear* l : linears) {
      members.push_back(params_4bit(x, *l->view_.weight_4bit, l->dense_bias_, input.scalar_type()));
      members.back().programmatic_launch = programmatic;
    }
    if (ops::cuda::linear_4bit_group(kOp, members, input, outputs)) return;
  }
  for (size_t i = 0; i < linears.size(); ++i) {
    outputs[i] = linears[i]->multiply(input, programmatic);
  }
}

at::Tensor CudaLinear::gather(const at::Tensor& ids, at::ScalarType dtype) const {
  if (view_.is_4bit()) return ops::embedding_4bit(ids, *view_.weight_4bit, dtype);
  if (view_.is_8bit()) return ops::embedding_8bit(ids, *view_.weight_8bit, dtype);
  return at::index_select(dense_, 0, ids);
}

}  // namespace lowbit::llm
