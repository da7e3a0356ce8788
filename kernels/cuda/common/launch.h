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
