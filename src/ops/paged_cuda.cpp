#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "ops/paged.h"

namespace lowbit::ops::cuda {
namespace {

size_t bytes_of(at::IntArrayRef sizes, at::ScalarType dtype) {
  return static_cast<size_t>(c10::multiply_integers(sizes)) * c10::elementSize(dtype);
}

at::Tensor tensor_over(void* data, at::IntArrayRef sizes, at::ScalarType dtype, at::Device device,
                       cudaError_t (*release)(void*)) {
  const auto deleter = [device, release](void* memory) {
    const c10::DeviceGuard guard(device);
    (void)release(memory);  // both wait for the work that still uses it
  };
  // The device is given, not asked for: the pointer is one of the host, too.
  return at::from_blob(data, sizes, deleter, at::TensorOptions().device(device).dtype(dtype),
                       device);
}

}  // namespace

bool can_page(at::Device device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, cudaDevAttrConcurrentManagedAccess, device.index()) ==
             cudaSuccess &&
         value != 0;
}

int64_t free_bytes(at::Device device) {
  const c10::DeviceGuard guard(device);
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<int64_t>(free) : 0;
}

at::Tensor managed_zeros(const char* op, at::IntArrayRef sizes, at::ScalarType dtype,
                         at::Device device) {
  const Scope scope(op, device);
  void* data = nullptr;
  const size_t bytes = bytes_of(sizes, dtype);
  if (cudaMallocManaged(&data, bytes, cudaMemAttachGlobal) != cudaSuccess) {
    (void)cudaGetLastError();  // it is not the next launch's
    return {};
  }
  at::Tensor tensor = tensor_over(data, sizes, dtype, device, &cudaFree);
  zero_bytes(op, device, data, static_cast<int64_t>(bytes));
  return tensor;
}

at::Tensor pinned_zeros(const char* op, at::IntArrayRef sizes, at::ScalarType dtype,
                        at::Device device) {
  const Scope scope(op, device);
  void* data = nullptr;
  const size_t bytes = bytes_of(sizes, dtype);
  const cudaError_t error =
      cudaHostAlloc(&data, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
  if (error != cudaSuccess) (void)cudaGetLastError();
  TORCH_CHECK_WITH(OutOfMemoryError, error == cudaSuccess, op, ": no ", bytes,
                   " bytes of pinned host memory for a paged state: ", cudaGetErrorString(error));
  std::memset(data, 0, bytes);
  return tensor_over(data, sizes, dtype, device, &cudaFreeHost);
}

void prefetch(const at::Tensor& tensor) {
  const auto stream = c10::cuda::getCurrentCUDAStream(tensor.device().index());
#if CUDART_VERSION >= 13000
  const cudaMemLocation place{cudaMemLocationTypeDevice, tensor.device().index()};
  const cudaError_t error =
      cudaMemPrefetchAsync(tensor.const_data_ptr(), tensor.nbytes(), place, 0, stream);
#else
  const cudaError_t error = cudaMemPrefetchAsync(tensor.const_data_ptr(), tensor.nbytes(),
                                                 tensor.device().index(), stream);
#endif
  if (error != cudaSuccess) (void)cudaGetLastError();
}

bool is_capturing(at::Device device) {
  const c10::DeviceGuard guard(device);
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

}  // namespace lowbit::ops::cuda
