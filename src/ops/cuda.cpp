#include "ops/cuda.h"

#include <ATen/ATen.h>
#include <ATen/cuda/EmptyTensor.h>
#include <ATen/ops/_grouped_mm_cuda_dispatch.h>
#include <ATen/ops/_int_mm_cuda_dispatch.h>
#include <ATen/ops/add_cuda_dispatch.h>
#include <ATen/ops/addmm_cuda_dispatch.h>
#include <ATen/ops/mm_cuda_dispatch.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstdlib>
#include <mutex>

#include "ops/cuda_support.h"

namespace lowbit::ops::cuda {
namespace {

void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  refuse_launch(op, {kernels::StatusCode::kCudaError, static_cast<int32_t>(error),
                     cudaGetErrorString(error)});
}

struct Device {
  std::once_flag once;
  cudaError_t error = cudaSuccess;
  kernels::DeviceProperties properties;
};

Device& device_of(int index) {
  static std::array<Device, 64> devices;  // more than c10 knows of
  Device& device = devices.at(static_cast<size_t>(index));
  std::call_once(device.once, [&] {
    const auto read = [&](cudaDeviceAttr attribute) {
      int value = 0;
      const cudaError_t error = cudaDeviceGetAttribute(&value, attribute, index);
      if (device.error == cudaSuccess) device.error = error;
      return value;
    };
    const int capability =
        10 * read(cudaDevAttrComputeCapabilityMajor) + read(cudaDevAttrComputeCapabilityMinor);
    device.properties = {.compute_capability =
                             planned_architecture(std::getenv("LOWBIT_CUDA_ARCH_PATH"), capability),
                         .multiprocessors = read(cudaDevAttrMultiProcessorCount),
                         .shared_bytes_per_block = read(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                         .l2_bytes = read(cudaDevAttrL2CacheSize)};
  });
  return device;
}

void check_usable(const char* op, int index) {
  const Device& device = device_of(index);
  check_cuda(op, device.error);
  check_architecture(op, index, device.properties.compute_capability);
}

at::Tensor matrix(const at::Tensor& tensor, int64_t rows, int64_t cols) {
  return tensor.dim() == 2 ? tensor : tensor.view({rows, cols});
}

}  // namespace

void refuse_launch(const char* op, const kernels::Status& status) {
  int driver = 0, runtime = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime);
  const std::string advice = cuda_advice(status.cuda_error, driver, runtime);
  TORCH_CHECK(false, op, ": CUDA refused the kernel: ", status.reason, " (error ",
              status.cuda_error, ").", advice.empty() ? "" : " ", advice);
}

const kernels::DeviceProperties& properties(at::Device device) {
  return device_of(device.index()).properties;
}

Scope::Scope(const char* op, at::Device device) : guard_(device) {
  check_usable(op, device.index());
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
    const at::Tensor sum =
        output.scalar_type() == at::kFloat ? at::cuda::mm(x, w) : at::cuda::mm(x, w, at::kFloat);
    at::cuda::add_out(y, sum, bias);
  }
}

void copy_matrix(const Rows& rows, const at::Tensor& output) {
  const int64_t width = output.size(1), item = static_cast<int64_t>(output.element_size());
  const cudaError_t error =
      cudaMemcpy2DAsync(output.mutable_data_ptr(), static_cast<size_t>(width * item), rows.data,
                        static_cast<size_t>(rows.stride * item), static_cast<size_t>(width * item),
                        static_cast<size_t>(rows.count), cudaMemcpyDeviceToDevice,
                        c10::cuda::getCurrentCUDAStream(output.device().index()).stream());
  check_cuda("lowbit::linear_4bit", error);
}

void product(const Rows& rows, const at::Tensor& weight, const at::Tensor& output) {
  const at::NoGradGuard no_grad;
  at::Tensor y = matrix(output, rows.count, weight.size(1));
  at::cuda::mm_out(y, matrix(rows.owner, rows.count, weight.size(0)), weight);
}

void grouped_product(const at::Tensor& rows, const at::Tensor& weights, const at::Tensor& ends,
                     const at::Tensor& output) {
  const at::NoGradGuard no_grad;
  const int64_t m = rows.size(0);
  // The library stops the device at ends that descend.
  const at::Tensor ascending = std::get<0>(ends.clamp(0, m).cummax(0));
  const at::Tensor behind = at::arange(m, ends.options()).ge(ascending.select(0, -1)).unsqueeze(1);
  // The library asks for the stride of a single row, too.
  const int64_t depth = rows.size(1);
  const at::Tensor x = m == 1 ? rows.as_strided({1, depth}, {depth, 1}) : rows;
  output.copy_(at::cuda::_grouped_mm(x, weights, ascending)).masked_fill_(behind, 0);
}

void product_int8(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  at::Tensor out = c;
  at::cuda::_int_mm_out(out, a, b.t());
}

}  // namespace lowbit::ops::cuda
