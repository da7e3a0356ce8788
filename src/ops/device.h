// Where an op runs. Its body is the same on every device: checks, outputs, the kernel's parameters;
// only the last step differs: threads over ranges of units on the CPU, one launch on the current
// stream of a CUDA device.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <cstring>

#include "lowbit/kernels/device.h"
#include "lowbit/version.h"
#include "ops/parallel.h"

namespace lowbit::ops {

#ifdef LOWBIT_HAS_CUDA
inline constexpr bool kHasCuda = true;
/// The CUDA entry of a kernel, null in a build without CUDA.
#define LOWBIT_CUDA_KERNEL(name) (&::lowbit::kernels::cuda::name)
#else
inline constexpr bool kHasCuda = false;
#define LOWBIT_CUDA_KERNEL(name) nullptr
#endif

namespace cuda {

/// Makes `device` current and gives its current stream. Throws naming `op` when its architecture
/// has no kernels here.
class Scope {
 public:
  Scope(const char* op, at::Device device);
  kernels::Stream stream() const noexcept { return stream_; }

 private:
  c10::DeviceGuard guard_;
  kernels::Stream stream_;
};

[[noreturn]] void refuse_launch(const char* op, const kernels::Status& status);
/// check_status, and what CUDA itself refused.
inline void check_launch(const char* op, const kernels::Status& status) {
  if (status.code == kernels::StatusCode::kCudaError) refuse_launch(op, status);
  check_status(op, status);
}

/// What plans ask for; read once a device.
const kernels::DeviceProperties& properties(at::Device device);

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device);
void zero_bytes(const char* op, at::Device device, void* data, int64_t bytes);

}  // namespace cuda

/// An uninitialized tensor, without a trip through the dispatcher.
inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device) {
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return cuda::empty(sizes, dtype, device);
  }
  return at::detail::empty_cpu(sizes, dtype);
}

/// Zeros over memory of `device`.
inline void zero_bytes(const char* op, at::Device device, void* data, int64_t bytes) {
  if (bytes == 0) return;
  if constexpr (kHasCuda) {
    if (device.is_cuda()) return cuda::zero_bytes(op, device, data, bytes);
  }
  std::memset(data, 0, static_cast<size_t>(bytes));
}

/// How the CPU cuts a problem: `count` units, at least `grain` of them a thread.
struct Units {
  int64_t count, grain;
};

template <class Params>
using CpuKernel = kernels::Status (*)(const Params&, int64_t, int64_t) noexcept;
template <class Params>
using CudaKernel = kernels::Status (*)(const Params&, kernels::Stream) noexcept;

/// Runs a kernel, whole, on `device`.
template <class Params>
void run(const char* op, at::Device device, const Params& params, Units units,
         CpuKernel<Params> on_cpu, CudaKernel<std::type_identity_t<Params>> on_cuda) {
  if constexpr (kHasCuda) {
    if (device.is_cuda()) {
      const cuda::Scope scope(op, device);
      return cuda::check_launch(op, on_cuda(params, scope.stream()));
    }
  }
  for_units(op, units.count, units.grain,
            [&](int64_t begin, int64_t end) { return on_cpu(params, begin, end); });
}

}  // namespace lowbit::ops
