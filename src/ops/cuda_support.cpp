#include "ops/cuda_support.h"

#include <algorithm>
#include <string_view>

#include "lowbit/cuda_info.h"
#include "ops/check.h"

namespace lowbit {

std::string cuda_version_text(int version) {
  return c10::str(version / 1000, ".", version % 1000 / 10);
}

namespace ops {
namespace {

std::string capability_text(int capability) {
  return c10::str(capability / 10, ".", capability % 10);
}

}  // namespace

std::string architecture_problem(int compute_capability) {
  if (compute_capability >= kOldestArchitecture) return "";
  return c10::str("compute capability ", capability_text(compute_capability), "; the kernels need ",
                  capability_text(kOldestArchitecture), " (Turing) or later");
}

void check_architecture(const char* op, int index, int compute_capability) {
  LOWBIT_CHECK(compute_capability >= kOldestArchitecture, op, "device",
               c10::str("a GPU of compute capability ", capability_text(kOldestArchitecture),
                        " (Turing) or later"),
               c10::str("cuda:", index, ", which has ", capability_text(compute_capability)),
               "Move the tensors to the CPU.");
}

int planned_architecture(const char* path, int compute_capability) {
  if (path == nullptr || *path == '\0') return compute_capability;
  if (std::string_view(path) == "sm80") return std::min(compute_capability, 80);
  TORCH_WARN("LOWBIT_CUDA_ARCH_PATH must be sm80, got \"", path, "\". It is ignored.");
  return compute_capability;
}

std::string cuda_advice(int error, int driver_version, int runtime_version) {
  switch (error) {
    case cuda_error::kInsufficientDriver:
      if (driver_version == 0) return "No NVIDIA driver is installed: nvidia-smi would show it.";
      return c10::str("The NVIDIA driver is too old: it runs CUDA ",
                      cuda_version_text(driver_version), ", and this build needs ",
                      cuda_version_text(runtime_version),
                      ". Install a newer driver, or build with an older CUDA.");
    case cuda_error::kNoDevice:
      return "The NVIDIA driver shows no GPU: nvidia-smi lists them, CUDA_VISIBLE_DEVICES may hide "
             "them.";
    case cuda_error::kInvalidDeviceFunction:
    case cuda_error::kNoKernelImageForDevice:
      return "This build has no code for this GPU: build with its architecture in "
             "LOWBIT_CUDA_ARCHITECTURES.";
    case cuda_error::kSystemDriverMismatch:
      return "The NVIDIA driver's library and kernel module differ: restart the machine.";
    default:
      return "";
  }
}

}  // namespace ops
}  // namespace lowbit
