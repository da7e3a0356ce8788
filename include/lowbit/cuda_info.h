// The CUDA side of this build and this machine: what is there, and why it cannot be used when it
// cannot. Works in builds without CUDA and on machines without a driver.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lowbit {

/// One GPU. Fields are what the driver says.
struct GpuInfo {
  std::string name = {};       ///< "NVIDIA H200"
  int compute_capability = 0;  ///< 10 * major + minor
  int multiprocessors = 0;
  int64_t memory_bytes = 0;  ///< all of it, in use or free
  int64_t l2_bytes = 0;
  /// Why lowbit's kernels cannot run on it; empty when they can. They need compute capability 7.5.
  std::string problem = {};
};

struct CudaInfo {
  bool built = false;       ///< whether this build has CUDA kernels
  std::string driver = {};  ///< of the NVIDIA kernel module, "580.159.04"; empty when unknown
  int driver_version = 0;   ///< the newest CUDA that the driver runs, 1000 * major + 10 * minor
  int runtime_version = 0;  ///< the CUDA that this build uses, likewise
  std::vector<GpuInfo> gpus = {};  ///< by device index
  /// Why no GPU can be used, and what to do; empty when there is one.
  std::string problem = {};
};

/// Asks the driver; creates no CUDA context. Does not throw on what CUDA says.
CudaInfo cuda_info();

/// "13.0" of 13000.
std::string cuda_version_text(int version);

}  // namespace lowbit
