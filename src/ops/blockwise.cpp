// Block-wise 8-bit quantization: memory and devices around the kernels.
#include "lowbit/kernels/blockwise.h"

#include <torch/library.h>

#include "ops/blockwise.h"
#include "ops/device.h"
#include "ops/operands.h"
#include "ops/rows.h"

namespace lowbit::ops {
namespace {
namespace entry {

std::tuple<at::Tensor, at::Tensor> quantize_blockwise(const at::Tensor& A, const at::Tensor& code,
                                                      int64_t blocksize) {
  constexpr const char* kOp = "lowbit::quantize_blockwise";
  check_quantize_blockwise(kOp, A, code, blocksize);
  const at::Tensor input = A.contiguous(), map = code.contiguous();
  at::Tensor codes = empty(A.sizes(), at::kByte, A.device());
  at::Tensor absmax = empty({kernels::ceil_div(A.numel(), blocksize)}, at::kFloat, A.device());
  const kernels::QuantizeBlockwiseParams params{
      .input = input.const_data_ptr(),
      .input_dtype = kernel_dtype(input.scalar_type()),
      .numel = input.numel(),
      .blocksize = blocksize,
      .code = static_cast<const float*>(map.const_data_ptr()),
      .codes = static_cast<uint8_t*>(codes.mutable_data_ptr()),
      .absmax = static_cast<float*>(absmax.mutable_data_ptr())};
  run(kOp, A.device(), params, {absmax.numel(), grain_of(blocksize)},
      &kernels::cpu::quantize_blockwise, LOWBIT_CUDA_KERNEL(quantize_blockwise));
  return {codes, absmax};
}

void dequantize_blockwise_out(const at::Tensor& A, const at::Tensor& absmax, const at::Tensor& code,
                              int64_t blocksize, at::ScalarType dtype, const at::Tensor& out) {
  constexpr const char* kOp = "lowbit::dequantize_blockwise";
  check_dequantize_blockwise(kOp, A, absmax, code, blocksize, dtype);
  const int64_t blocks = kernels::ceil_div(A.numel(), blocksize);
  check_numel(kOp, "absmax", absmax, blocks);
  check_out(kOp, out, A.sym_sizes(), dtype, A.device());
  const at::Tensor codes = A.contiguous(), scales = absmax.contiguous(), map = code.contiguous();
  const at::Tensor dense = out.is_contiguous() ? out : empty(out.sizes(), dtype, A.device());
  const kernels::DequantizeBlockwiseParams params{
      .codes = static_cast<const uint8_t*>(codes.const_data_ptr()),
      .absmax = static_cast<const float*>(scales.const_data_ptr()),
      .code = static_cast<const float*>(map.const_data_ptr()),
      .numel = codes.numel(),
      .blocksize = blocksize,
      .output = dense.mutable_data_ptr(),
      .output_dtype = kernel_dtype(dtype)};
  run(kOp, A.device(), params, {blocks, grain_of(blocksize)}, &kernels::cpu::dequantize_blockwise,
      LOWBIT_CUDA_KERNEL(dequantize_blockwise));
  if (!dense.is_same(out)) out.copy_(dense);
}

at::Tensor dequantize_blockwise(const at::Tensor& A, const at::Tensor& absmax,
                                const at::Tensor& code, int64_t blocksize, at::ScalarType dtype) {
  check_float("lowbit::dequantize_blockwise", "dtype", dtype);
  at::Tensor out = empty(A.sizes(), dtype, A.device());
  dequantize_blockwise_out(A, absmax, code, blocksize, dtype, out);
  return out;
}

}  // namespace entry
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("quantize_blockwise", &entry::quantize_blockwise);
  m.impl("dequantize_blockwise", &entry::dequantize_blockwise);
  m.impl("dequantize_blockwise.out", &entry::dequantize_blockwise_out);
}

#ifdef LOWBIT_HAS_CUDA
TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("quantize_blockwise", &entry::quantize_blockwise);
  m.impl("dequantize_blockwise", &entry::dequantize_blockwise);
  m.impl("dequantize_blockwise.out", &entry::dequantize_blockwise_out);
}
#endif
