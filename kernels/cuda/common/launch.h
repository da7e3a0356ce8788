// The one way a kernel is launched: sizes checked, error turned into a Status.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "lowbit/kernels/types.h"

namespace lowbit::kernels::cuda {

inline cudaStream_t native(Stream stream) noexcept {
  return static_cast<cudaStream_t>(stream.handle);
}

inline Status status_of(cudaError_t error) noexcept {
  if (error == cudaSuccess) return ok_status();
  return {StatusCode::kCudaError, static_cast<int32_t>(error), cudaGetErrorString(error)};
}

/// Enqueues kernel<<<grid, block, 0, stream>>>(args...). grid is one-dimensional; 0 is an empty
/// problem.
template <typename... Parameters, typename... Args>
Status launch(void (*kernel)(Parameters...), int64_t grid, int block, Stream stream,
              Args... args) noexcept {
  if (grid == 0) return ok_status();
  if (grid < 0 || grid > std::numeric_limits<int32_t>::max()) {
    return unsupported("the problem needs more than 2^31 - 1 thread blocks");
  }
  kernel<<<static_cast<unsigned>(grid), block, 0, native(stream)>>>(args...);
  return status_of(cudaGetLastError());
}

/// Zeros on the stream.
inline Status zero_bytes(void* pointer, int64_t bytes, Stream stream) noexcept {
  if (bytes == 0) return ok_status();
  return status_of(cudaMemsetAsync(pointer, 0, static_cast<size_t>(bytes), native(stream)));
}

/// A launch with dynamic shared memory, two-dimensional, that may begin before the kernel in front
/// of it ended (programmatic dependent launch).
struct LaunchShape {
  int32_t grid_x = 0, grid_y = 1, threads = 0;
  int64_t shared_bytes = 0;
  bool programmatic = false;
  int32_t cluster = 1;  ///< thread blocks of a cluster, along x (sm_90)
};
template <typename... Parameters, typename... Args>
Status launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream,
              Args... args) noexcept {
  const auto failure = [](cudaError_t error) {
    cudaGetLastError();  // not sticky: the next launch must not see it
    return Status{StatusCode::kCudaError, static_cast<int32_t>(error), cudaGetErrorString(error)};
  };
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return failure(error);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = native(stream);
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.programmatic) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  return error == cudaSuccess ? ok_status() : failure(error);
}

/// Multiprocessors of the current device, for persistent grids.
inline int64_t multiprocessors() noexcept {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count;
}

inline bool aligned(const void* pointer, uintptr_t bytes) noexcept {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace lowbit::kernels::cuda
