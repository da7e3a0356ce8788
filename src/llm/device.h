// Where a model goes, and how its weights get there.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "lowbit/llm/config.h"

namespace c10 {
class Event;
}

namespace lowbit::llm {

struct DeviceMemory {
  int64_t free = 0, total = 0;  ///< bytes
};

/// Of the system, or of one GPU.
DeviceMemory memory_of(at::Device device);

/// The device that options.device_map names for weights of `bytes`. "auto" is the first GPU when
/// the weights fit (into what is free and into max_memory), else the CPU. Throws c10::Error for a
/// name that is none, a device that is not there, and weights above the device's max_memory.
at::Device choose_device(const FromPretrainedOptions& options, int64_t bytes);

/// Copies host tensors to a device through two pinned buffers: reading one part of a mapped file
/// overlaps with the transfer of the part before. Host targets get the tensor itself.
class DeviceUploader {
 public:
  explicit DeviceUploader(at::Device device);
  ~DeviceUploader();
  DeviceUploader(const DeviceUploader&) = delete;
  DeviceUploader& operator=(const DeviceUploader&) = delete;
  at::Tensor operator()(const at::Tensor& host);

 private:
  struct Buffer;
  at::Device device_;
  std::array<std::unique_ptr<Buffer>, 2> buffers_;
  size_t next_ = 0;
};

}  // namespace lowbit::llm
