// What the CUDA runtime says about this machine.
#include "lowbit/cuda_info.h"

#include <cuda_runtime_api.h>

#include <fstream>

#include "ops/cuda_support.h"

namespace lowbit {
namespace {

static_assert(ops::cuda_error::kInsufficientDriver == cudaErrorInsufficientDriver &&
              ops::cuda_error::kInvalidDeviceFunction == cudaErrorInvalidDeviceFunction &&
              ops::cuda_error::kNoDevice == cudaErrorNoDevice &&
              ops::cuda_error::kNoKernelImageForDevice == cudaErrorNoKernelImageForDevice &&
              ops::cuda_error::kSystemDriverMismatch == cudaErrorSystemDriverMismatch);

/// The runtime knows the driver by its CUDA version alone.
std::string kernel_module_version() {
  std::ifstream file("/sys/module/nvidia/version");
  std::string version;
  file >> version;
  if (!version.empty()) return version;
  // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue ..."
  std::ifstream sentence("/proc/driver/nvidia/version");
  for (std::string word; sentence >> word;) {
    if (word.find_first_not_of("0123456789.") == std::string::npos &&
        word.find('.') != std::string::npos) {
      return word;
    }
  }
  return "";
}

GpuInfo gpu_info(int index) {
  cudaDeviceProp properties{};
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return {.problem = cudaGetErrorString(error)};
  }
  const int capability = 10 * properties.major + properties.minor;
  return {.name = properties.name,
          .compute_capability = capability,
          .multiprocessors = properties.multiProcessorCount,
          .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
          .l2_bytes = properties.l2CacheSize,
          .problem = ops::architecture_problem(capability)};
}

}  // namespace

CudaInfo cuda_info() {
  CudaInfo info{.built = true, .driver = kernel_module_version()};
  (void)cudaDriverGetVersion(&info.driver_version);
  (void)cudaRuntimeGetVersion(&info.runtime_version);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // or the next launch would report it
    count = 0;
    info.problem = ops::cuda_advice(error, info.driver_version, info.runtime_version);
    if (info.problem.empty()) info.problem = cudaGetErrorString(error);
  }
  for (int i = 0; i < count; ++i) info.gpus.push_back(gpu_info(i));
  return info;
}

}  // namespace lowbit
