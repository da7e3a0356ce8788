// A build without CUDA kernels: it says so, and a CUDA tensor meets an error that names the op and
// the argument.
#include <torch/library.h>

#include "lowbit/cuda_info.h"
#include "ops/check.h"

namespace {

void refuse_cuda(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  constexpr const char* kHint = "This build has no CUDA kernels.";
  const std::string& name = op.schema().name();
  const auto& arguments = op.schema().arguments();
  const auto values = torch::jit::last(*stack, arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!values[i].isTensor() || values[i].toTensor().is_cpu()) continue;
    LOWBIT_CHECK(false, name, arguments[i].name(), "a CPU tensor", values[i].toTensor().device(),
                 kHint);
  }
  TORCH_CHECK(false, name, ": ", kHint);
}

}  // namespace

namespace lowbit {

CudaInfo cuda_info() {
  return {.problem = "This build has no CUDA kernels: build it with LOWBIT_CUDA=ON."};
}

}  // namespace lowbit

TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  for (const char* op : {"int8_scaled_mm",
                         "int8_linear_matmul",
                         "int8_linear_matmul.out",
                         "int8_vectorwise_dequant",
                         "int8_mm_dequant",
                         "int8_rowwise_quant",
                         "int8_colwise_quant",
                         "quantize_4bit",
                         "dequantize_4bit",
                         "dequantize_4bit.out",
                         "gemm_4bit",
                         "gemv_4bit",
                         "gemv_4bit.out",
                         "quantize_blockwise",
                         "dequantize_blockwise",
                         "dequantize_blockwise.out",
                         "optimizer_update_32bit",
                         "optimizer_update_8bit_blockwise",
                         "optimizer_step_multi_tensor_32bit",
                         "optimizer_step_multi_tensor_8bit",
                         "linear_4bit",
                         "linear_4bit_backward_input",
                         "embedding_4bit",
                         "grouped_mm_4bit",
                         "grouped_mm_4bit_backward_input",
                         "linear_8bit",
                         "linear_8bit_weight_only",
                         "linear_8bit_backward_input",
                         "embedding_8bit"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_cuda>());
  }
}
