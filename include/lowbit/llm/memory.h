// Where a model's bytes are.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>
#include <vector>

namespace lowbit::llm {

struct MemoryReport {
  struct Device {
    std::string device = {};  ///< "cpu", "cuda:0"
    /// Bytes by scheme: "nf4", "nf4 (double quant)", "fp4", "int8", "bfloat16", ... Statistics
    /// count with their weights.
    std::map<std::string, int64_t> weights = {};
    int64_t kv_cache = 0;  ///< bytes of the cache of `context` tokens
    int64_t free = 0;      ///< bytes available on the device now
    int64_t total = 0;     ///< bytes of the device
    int64_t weight_bytes() const noexcept;
  };
  std::vector<Device> devices;
  std::map<std::string, std::string> device_map;  ///< module path -> device; "" is the whole model
  int64_t parameters = 0;                         ///< elements; tied weights count once
  int64_t context = 0;                            ///< tokens the planned KV cache holds
  int64_t weight_bytes() const noexcept;
};

/// A table.
std::ostream& operator<<(std::ostream& stream, const MemoryReport& report);

}  // namespace lowbit::llm
