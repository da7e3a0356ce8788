#include "lowbit/llm/memory.h"

#include <algorithm>
#include <iomanip>
#include <ostream>
#include <sstream>

#include "llm/device.h"
#include "llm/weight.h"
#include "lowbit/llm/model.h"

namespace lowbit::llm {
namespace {

std::string mib(int64_t bytes) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / 0x1p20 << " MiB";
  return text.str();
}

}  // namespace

int64_t MemoryReport::Device::weight_bytes() const noexcept {
  int64_t sum = 0;
  for (const auto& [scheme, bytes] : weights) sum += bytes;
  return sum;
}

int64_t MemoryReport::weight_bytes() const noexcept {
  int64_t sum = 0;
  for (const Device& d : devices) sum += d.weight_bytes();
  return sum;
}

MemoryReport CausalLM::memory_report(int64_t context) const {
  MemoryReport report;
  report.device_map = device_map();
  const DeviceMemory memory = memory_of(device());
  MemoryReport::Device place{.device = device().str(), .free = memory.free, .total = memory.total};
  for (const at::Tensor& p : module()->parameters()) {  // a tied head is no parameter of its own
    place.weights[scheme_of(p)] += bytes_of(p);
    report.parameters += p.numel();
  }
  const int64_t most = config().max_position_embeddings;
  report.context = context > 0 ? std::min(context, most) : most;
  place.kv_cache = 2 * config().num_hidden_layers * config().num_key_value_heads * report.context *
                   config().head_dim * static_cast<int64_t>(c10::elementSize(dtype()));
  report.devices.push_back(std::move(place));
  return report;
}

std::ostream& operator<<(std::ostream& stream, const MemoryReport& report) {
  std::ostringstream text;  // the caller's flags stay as they are
  const auto row = [&](const std::string& name, const std::string& value) {
    text << "  " << std::left << std::setw(28) << name << std::right << std::setw(14) << value
         << '\n';
  };
  for (const MemoryReport::Device& d : report.devices) {
    text << d.device << '\n';
    for (const auto& [scheme, bytes] : d.weights) row("weights, " + scheme, mib(bytes));
    row("weights", mib(d.weight_bytes()));
    row("KV cache, " + std::to_string(report.context) + " tokens", mib(d.kv_cache));
    row("free", mib(d.free));
  }
  text << "parameters: " << report.parameters << '\n' << "device map:";
  for (const auto& [module, device] : report.device_map) {
    text << ' ' << (module.empty() ? "model" : module) << " -> " << device;
  }
  return stream << text.str() << '\n';
}

}  // namespace lowbit::llm
