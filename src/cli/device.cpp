#include "cli/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <stdexcept>

#include "lowbit/cuda_info.h"
#include "lowbit/functional.h"

namespace lowbit::cli {
namespace {

/// Why GPU `index` cannot be used; empty: it can.
std::string gpu_problem(const CudaInfo& info, size_t index) {
  if (!info.problem.empty()) return info.problem;
  if (index >= info.gpus.size()) {
    return "There are " + std::to_string(info.gpus.size()) + " GPUs: nvidia-smi lists them.";
  }
  const GpuInfo& gpu = info.gpus[index];
  if (!gpu.problem.empty()) return gpu.name + ": " + gpu.problem + ".";
  if (!at::hasCUDA()) return "This libtorch has no CUDA, or cannot use the driver.";
  return "";
}

}  // namespace

at::Device parse_device(const std::string& text) {
  if (text == "cpu") return at::kCPU;
  const CudaInfo info = cuda_info();
  if (text == "auto") {
    return gpu_problem(info, 0).empty() ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  }
  const bool indexed = text.rfind("cuda:", 0) == 0 && text.size() > 5 && text.size() < 8 &&
                       text.find_first_not_of("0123456789", 5) == std::string::npos;
  if (text != "cuda" && !indexed) {
    throw std::runtime_error("--device must be auto, cpu, cuda or cuda:N, got " + text);
  }
  const int index = indexed ? std::stoi(text.substr(5)) : 0;
  const std::string problem = gpu_problem(info, static_cast<size_t>(index));
  if (!problem.empty()) throw std::runtime_error("--device " + text + ": " + problem);
  return {at::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

std::string describe_device(at::Device device) {
  if (device.is_cpu()) {
    return std::string("CPU, ") + cpu_isa() + ", " + std::to_string(at::get_num_threads()) +
           " threads";
  }
  const CudaInfo info = cuda_info();
  return info.gpus.at(static_cast<size_t>(device.index())).name + ", driver " +
         (info.driver.empty() ? "unknown" : info.driver) + " (CUDA " +
         cuda_version_text(info.driver_version) + ")";
}

int64_t cache_bytes(at::Device device) {
  return device.is_cpu() ? 0 : cuda_info().gpus.at(static_cast<size_t>(device.index())).l2_bytes;
}

}  // namespace lowbit::cli
