// Which GPUs lowbit runs on, and what a user can do about the errors of CUDA: decisions without
// CUDA itself, so that machines without a GPU test them.
#pragma once

#include <string>

namespace lowbit::ops {

/// Compute capability (10 * major + minor) of Turing, whose tensor cores and instructions the
/// kernels are written for.
inline constexpr int kOldestArchitecture = 75;

/// Why a GPU cannot run the kernels; empty: it can.
std::string architecture_problem(int compute_capability);
/// Throws c10::Error naming `op` when GPU `index` is too old.
void check_architecture(const char* op, int index, int compute_capability);

/// The compute capability that plans are made for: the GPU's, or an older one of the same binaries
/// that the value of LOWBIT_CUDA_ARCH_PATH names ("sm80"; null and empty: the GPU's). Warns about
/// words that name none.
int planned_architecture(const char* path, int compute_capability);

/// Errors of the CUDA runtime that have a cure; the numbers are part of its interface.
namespace cuda_error {
inline constexpr int kInsufficientDriver = 35, kInvalidDeviceFunction = 98, kNoDevice = 100,
                     kNoKernelImageForDevice = 209, kSystemDriverMismatch = 803;
}

/// What CUDA error `error` asks of the user, a sentence or two; empty: nothing in particular.
/// Versions are CUDA's (13000 is 13.0); driver 0: no driver is installed.
std::string cuda_advice(int error, int driver_version, int runtime_version);

}  // namespace lowbit::ops
