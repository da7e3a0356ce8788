#include "llm/device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>

#include "lowbit/cuda_info.h"
#include "lowbit/quantized_tensor.h"
#include "lowbit/version.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

constexpr const char* kOp = "from_pretrained";
/// Bytes of a pinned buffer: large enough that a transfer runs at the speed of the bus.
constexpr int64_t kPart = int64_t{16} << 20;
/// Of a GPU's free memory, what "auto" leaves for caches and activations.
constexpr double kSpare = 0.1;

#ifdef LOWBIT_HAS_CUDA
constexpr bool kHasKernels = true;
#else
constexpr bool kHasKernels = false;
#endif

int64_t gpus() { return kHasKernels && at::hasCUDA() ? at::accelerator::deviceCount() : 0; }

/// A field of /proc/meminfo, in bytes; 0 when there is none.
int64_t system_memory(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    int64_t kib = 0;
    file >> kib;
    if (name == field + ":") return kib * 1024;
    file.ignore(256, '\n');
  }
  return 0;
}

std::optional<int64_t> limit_of(const FromPretrainedOptions& options, const std::string& device) {
  const auto found = options.max_memory.find(device);
  if (found == options.max_memory.end()) return std::nullopt;
  return parse_bytes(found->second);
}

/// "cuda", "cuda:N"
std::optional<int64_t> gpu_index(const std::string& name) {
  if (name == "cuda") return 0;
  if (name.rfind("cuda:", 0) != 0 || name.size() == 5 || name.size() > 8) return std::nullopt;
  int64_t index = 0;
  for (const char c : name.substr(5)) {
    if (c < '0' || c > '9') return std::nullopt;
    index = index * 10 + (c - '0');
  }
  return index;
}

void check_limit(const FromPretrainedOptions& options, const std::string& device, int64_t bytes) {
  const auto limit = limit_of(options, device);
  LOWBIT_CHECK(!limit || bytes <= *limit, kOp, "max_memory",
               c10::str("at least the ", bytes, " bytes of the weights"),
               options.max_memory.at(device), "Quantize the model, or allow more");
}

}  // namespace

DeviceMemory memory_of(at::Device device) {
  if (device.is_cpu()) return {system_memory("MemAvailable"), system_memory("MemTotal")};
  const auto [free, total] = at::accelerator::getMemoryInfo(device.index());
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

at::Device choose_device(const FromPretrainedOptions& options, int64_t bytes) {
  const std::string& name = options.device_map;
  if (name == "auto" && gpus() > 0) {
    const at::Device gpu(at::kCUDA, 0);
    const auto usable = static_cast<double>(memory_of(gpu).free) * (1.0 - kSpare);
    const bool fits = static_cast<double>(bytes) <= usable;
    if (fits && bytes <= limit_of(options, gpu.str()).value_or(bytes)) return gpu;
  }
  if (name == "cpu" || name == "auto") {
    check_limit(options, "cpu", bytes);
    return at::kCPU;
  }
  const auto index = gpu_index(name);
  LOWBIT_CHECK(index.has_value(), kOp, "device_map", "cpu, cuda, cuda:N or auto", name);
  LOWBIT_CHECK(kHasKernels, kOp, "device_map", "cpu or auto", name,
               "This lowbit was built without CUDA kernels: build it with LOWBIT_CUDA=ON");
  LOWBIT_CHECK(
      *index<gpus(), kOp, "device_map",
             c10::str("one of the ", gpus(), " GPUs that the CUDA driver shows"), name, gpus()> 0
          ? "nvidia-smi lists them."
          : cuda_info().problem);
  const at::Device gpu(at::kCUDA, static_cast<c10::DeviceIndex>(*index));
  check_limit(options, gpu.str(), bytes);
  return gpu;
}

struct DeviceUploader::Buffer {
  at::Tensor pinned = at::empty({kPart}, at::TensorOptions(at::kByte).pinned_memory(true));
  c10::Event sent{at::kCUDA};  ///< the transfer that reads the buffer
};

DeviceUploader::DeviceUploader(at::Device device) : device_(device) {}
DeviceUploader::~DeviceUploader() = default;

at::Tensor DeviceUploader::operator()(const at::Tensor& host) {
  if (host.device() == device_) return host;
  // A payload is made of tensors of many kinds; it knows how to move itself.
  if (is_quantized(host) || !host.is_contiguous() ||
      static_cast<int64_t>(host.nbytes()) < kPart / 16) {
    return host.to(device_);
  }
  at::Tensor target = at::empty(host.sizes(), host.options().device(device_));
  const at::Tensor bytes = target.view({-1}).view(at::kByte);
  const auto* from = static_cast<const std::byte*>(host.const_data_ptr());
  const c10::Stream stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device_);
  const auto total = static_cast<int64_t>(host.nbytes());
  for (int64_t begin = 0; begin < total; begin += kPart) {
    const int64_t size = std::min(kPart, total - begin);
    std::unique_ptr<Buffer>& buffer = buffers_[next_++ % buffers_.size()];
    if (buffer == nullptr) buffer = std::make_unique<Buffer>();
    buffer->sent.synchronize();
    std::memcpy(buffer->pinned.mutable_data_ptr(), from + begin, static_cast<size_t>(size));
    bytes.narrow(0, begin, size).copy_(buffer->pinned.narrow(0, 0, size), /*non_blocking=*/true);
    buffer->sent.record(stream);
  }
  return target;
}

}  // namespace lowbit::llm
