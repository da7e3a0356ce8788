#include "ops/cuda.h"

#include <ATen/ATen.h>
#include <ATen/cuda/EmptyTensor.h>
#include <ATen/ops/_int_mm_cuda_dispatch.h>
#include <ATen/ops/add_cuda_dispatch.h>
#include <ATen/ops/addmm_cuda_dispatch.h>
#include <ATen/ops/mm_cuda_dispatch.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>

namespace lowbit::ops::cuda {
namespace {

constexpr int kOldestArchitecture = 75;

void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  refuse_launch(op, {kernels::StatusCode::kCudaError, static_cast<int32_t>(error),
                     cudaGetErrorString(error)});
}

/// Once a device: the tensor cores and instructions that the kernels are written for.
void check_architecture(const char* op, int device) {
  static std::array<std::atomic<bool>, 64> known{};
  const auto slot = static_cast<size_t>(device) % known.size();
  if (known[slot].load(std::memory_order_relaxed)) return;
  int major = 0, minor = 0;
  const cudaError_t error = [&] {
    const cudaError_t first =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return first != cudaSuccess
               ? first
               : cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }();
  check_cuda(op, error);
  LOWBIT_CHECK(10 * major + minor >= kOldestArchitecture, op, "device",
               "a GPU of compute capability 7.5 (Turing) or later",
               c10::str("cuda:", device, ", which has ", major, ".", minor),
               "Move the tensors to the CPU.");
  known[slot].store(true, std::memory_order_relaxed);
}

at::Tensor matrix(const at::Tensor& tensor, int64_t rows, int64_t cols) {
  return tensor.dim() == 2 ? tensor : tensor.view({rows, cols});
}

}  // namespace

void refuse_launch(const char* op, const kernels::Status& status) {
  const bool no_code = status.cuda_error == cudaErrorNoKernelImageForDevice ||
                       status.cuda_error == cudaErrorInvalidDeviceFunction;
  TORCH_CHECK(false, op, ": CUDA refused the kernel: ", status.reason, " (error ",
              status.cuda_error, ").",
              no_code ? " This build has no code for this GPU: build with its architecture in "
                        "LOWBIT_CUDA_ARCHITECTURES."
                      : "");
}

Scope::Scope(const char* op, at::Device device) : guard_(device) {
  check_architecture(op, device.index());
  stream_.handle = c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device) {
  return at::Tensor(at::detail::empty_cuda(sizes, dtype, device, std::nullopt));
}

void zero_bytes(const char* op, at::Device device, void* data, int64_t bytes) {
  const Scope scope(op, device);
  const cudaError_t error = cudaMemsetAsync(data, 0, static_cast<size_t>(bytes),
                                            static_cast<cudaStream_t>(scope.stream().handle));
  check_cuda(op, error);
}

// The functions of at::cuda are the CUDA kernels themselves: neither autograd nor autocast sees
// them, and what is inside an op is the op's own business.
void linear(const Rows& rows, const at::Tensor& weight, const at::Tensor& bias,
            const at::Tensor& output) {
  const at::NoGradGuard no_grad;
  const int64_t n = weight.size(0), k = weight.size(1);
  const at::Tensor x = matrix(rows.owner, rows.count, k), w = weight.t();
  at::Tensor y = matrix(output, rows.count, n);
  if (!bias.defined()) {
    at::cuda::mm_out(y, x, w);
  } else if (bias.scalar_type() == output.scalar_type()) {
    at::cuda::addmm_out(y, bias, x, w);
  } else {
    // Only 16-bit operands have a product of another dtype.
    const at::Tensor sum = output.scalar_type() == at::kFloat ? at::cuda::mm(x, w)
                                                              : at::cuda::mm(x, w, at::kFloat);
    at::cuda::add_out(y, sum, bias);
  }
}

void product(const Rows& rows, const at::Tensor& weight, const at::Tensor& output) {
  const at::NoGradGuard no_grad;
  at::Tensor y = matrix(output, rows.count, weight.size(1));
  at::cuda::mm_out(y, matrix(rows.owner, rows.count, weight.size(0)), weight);
}

void product_int8(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  at::Tensor out = c;
  at::cuda::_int_mm_out(out, a, b.t());
}

}  // namespace lowbit::ops::cuda
