#include "llm/weight.h"

#include "lowbit/quantize.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

QuantizationConfig how(Treatment treatment, const FromPretrainedOptions& options) {
  if (treatment == Treatment::k8bitWeightOnly) return QuantizationConfig::int8_weight_only();
  const BitsAndBytesConfig& c = *options.quantization_config;
  if (treatment == Treatment::k8bit) return QuantizationConfig::int8(c.llm_int8_threshold);
  auto config =
      c.bnb_4bit_quant_type == "nf4" ? QuantizationConfig::nf4() : QuantizationConfig::fp4();
  config.blocksize(options.blocksize)
      .double_quant(c.bnb_4bit_use_double_quant)
      .quant_storage(c.bnb_4bit_quant_storage);
  if (options.dtype != at::kFloat) config.compute_dtype(c.bnb_4bit_compute_dtype);
  return config;
}

std::string name_4bit(const std::string& type, bool nested) {
  return nested ? type + " (double quant)" : type;
}

}  // namespace

WeightView view_weight(const at::Tensor& weight) {
  if (!is_quantized(weight)) return {};
  const QuantScheme scheme = quant_scheme(weight);
  if (is_4bit(scheme)) {
    return {.weight_4bit = ops::Weight4bit::make(packed_weight(weight), quant_state(weight))};
  }
  return {.weight_8bit = ops::Weight8bit::make(packed_weight(weight), row_scales(weight)),
          .weight_only = scheme == QuantScheme::kInt8WeightOnly,
          .threshold = int8_threshold(weight)};
}

at::Tensor quantize_weight(const std::string& name, const at::Tensor& weight, Treatment treatment,
                           const FromPretrainedOptions& options) {
  try {
    return quantize(weight, how(treatment, options));
  } catch (const c10::Error& e) {
    TORCH_CHECK(false, "from_pretrained: ", name, ": ", e.what_without_backtrace());
  }
}

std::string scheme_of(const at::Tensor& weight) {
  if (!is_quantized(weight)) return ops::dtype_name(weight.scalar_type());
  const QuantScheme scheme = quant_scheme(weight);
  return is_4bit(scheme) ? name_4bit(to_string(scheme), quant_state(weight).nested())
                         : to_string(scheme);
}

int64_t bytes_of(const at::Tensor& weight) {
  return is_quantized(weight) ? quantized_nbytes(weight) : static_cast<int64_t>(weight.nbytes());
}

std::string planned_scheme(Treatment treatment, const FromPretrainedOptions& options,
                           at::ScalarType dtype) {
  switch (treatment) {
    case Treatment::kFloat:
      return ops::dtype_name(dtype);
    case Treatment::k4bit:
      return name_4bit(options.quantization_config->bnb_4bit_quant_type,
                       options.quantization_config->bnb_4bit_use_double_quant);
    case Treatment::k8bit:
      return to_string(QuantScheme::kInt8);
    case Treatment::k8bitWeightOnly:
      return to_string(QuantScheme::kInt8WeightOnly);
  }
  return {};
}

int64_t planned_bytes(const std::vector<int64_t>& shape, Treatment treatment,
                      const FromPretrainedOptions& options, at::ScalarType dtype) {
  int64_t numel = 1;
  for (const int64_t s : shape) numel *= s;
  const auto parts = [](int64_t count, int64_t size) { return (count + size - 1) / size; };
  constexpr int64_t kFloat = 4;
  switch (treatment) {
    case Treatment::kFloat:
      return numel * static_cast<int64_t>(c10::elementSize(dtype));
    case Treatment::k4bit: {
      const int64_t blocks = parts(numel, options.blocksize);
      constexpr int64_t kMap = 16 * kFloat, kNestedMap = 256 * kFloat;
      return parts(numel, 2) + kMap +
             (options.quantization_config->bnb_4bit_use_double_quant
                  ? blocks + parts(blocks, 256) * kFloat + kNestedMap + kFloat
                  : blocks * kFloat);
    }
    case Treatment::k8bit:
    case Treatment::k8bitWeightOnly:
      return numel + shape.front() * kFloat;
  }
  return 0;
}

}  // namespace lowbit::llm
