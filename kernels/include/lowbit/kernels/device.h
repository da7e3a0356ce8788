// What plans ask about a CUDA device.
#pragma once

#include <cstdint>

namespace lowbit::kernels {

/// What a plan needs to know of a CUDA device; the caller asks the runtime once and keeps it.
struct DeviceProperties {
  int32_t compute_capability = 0;  ///< 10 * major + minor
  int32_t multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  ///< with opt-in (cudaDevAttrMaxSharedMemoryPerBlockOptin)
  int64_t l2_bytes = 0;
};

}  // namespace lowbit::kernels
