// Weights that no file holds: for benchmarks of shapes, and for training from nothing.
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "llm/source.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// Standard deviation of linear layers and embeddings, as Transformers initializes this family.
constexpr double kInitializerRange = 0.02;

class RandomSource : public WeightSource {
 public:
  explicit RandomSource(io::ModelConfig config) {
    config_ = std::move(config);
    config_.quantization.reset();
    if (config_.dtype.empty()) config_.dtype = "float32";
  }

  const char* format() const override { return "random"; }
  int64_t total_bytes() const override {
    int64_t sum = 0;
    for (const Slot& slot : decoder_slots(config_)) sum += bytes(slot);
    return sum;
  }
  void check(const std::vector<Slot>&) const override {}
  bool is_quantized(const Slot&) const override { return false; }
  int64_t bytes(const Slot& slot) const override {
    int64_t numel = 1;
    for (const int64_t size : slot.shape) numel *= size;
    return numel * static_cast<int64_t>(c10::elementSize(dtype_from_name(config_.dtype)));
  }
  std::string scheme(const Slot&) const override {
    return ops::dtype_name(dtype_from_name(config_.dtype));
  }
  void set_device(at::Device device) override { device_ = device; }

  at::Tensor load_float(const Slot& slot, at::ScalarType dtype) const override {
    const auto options = at::TensorOptions(dtype).device(device_);
    if (slot.kind == SlotKind::kNorm) return at::ones(slot.shape, options);
    if (slot.kind == SlotKind::kBias) return at::zeros(slot.shape, options);
    return at::empty(slot.shape, options).normal_(0.0, kInitializerRange);
  }
  at::Tensor load_quantized(const Slot&, at::ScalarType,
                            std::optional<at::ScalarType>) const override {
    ops::refuse({__func__, __FILE__, __LINE__}, "from_config", "slot", "a float weight",
                "a quantized one");
  }
  void release(const Slot&) const noexcept override {}

 private:
  at::Device device_ = at::kCPU;
};

}  // namespace

std::unique_ptr<WeightSource> random_source(io::ModelConfig config) {
  return std::make_unique<RandomSource>(std::move(config));
}

}  // namespace lowbit::llm
