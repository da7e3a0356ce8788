#include "lowbit/llm/config.h"

#include <cctype>
#include <cmath>
#include <limits>
#include <map>

#include "ops/check.h"

namespace lowbit {
namespace {

constexpr const char* kOp = "BitsAndBytesConfig";

}  // namespace

void BitsAndBytesConfig::validate() const {
  LOWBIT_CHECK(load_in_4bit != load_in_8bit, kOp, "load_in_4bit",
               "set, or load_in_8bit, but not both", load_in_4bit ? "both" : "neither");
  LOWBIT_CHECK(llm_int8_threshold >= 0.0 && std::isfinite(llm_int8_threshold), kOp,
               "llm_int8_threshold", "a number of at least 0", llm_int8_threshold);
  LOWBIT_CHECK(!llm_int8_has_fp16_weight, kOp, "llm_int8_has_fp16_weight", "false", "true",
               "Training 16-bit weights through LLM.int8() is a matter of Linear8bitLt");
  LOWBIT_CHECK(bnb_4bit_quant_type == "nf4" || bnb_4bit_quant_type == "fp4", kOp,
               "bnb_4bit_quant_type", "nf4 or fp4", bnb_4bit_quant_type);
  LOWBIT_CHECK(ops::is_kernel_dtype(bnb_4bit_compute_dtype), kOp, "bnb_4bit_compute_dtype",
               "float32, float16 or bfloat16", llm::dtype_to_name(bnb_4bit_compute_dtype));
  const auto storage = bnb_4bit_quant_storage;
  LOWBIT_CHECK(storage == at::kByte || ops::is_kernel_dtype(storage), kOp, "bnb_4bit_quant_storage",
               "uint8, float32, float16 or bfloat16", llm::dtype_to_name(storage));
}

io::QuantizationConfigJson BitsAndBytesConfig::to_json() const {
  io::QuantizationConfigJson json;
  json.load_in_8bit = load_in_8bit;
  json.load_in_4bit = load_in_4bit;
  json.llm_int8_threshold = llm_int8_threshold;
  json.llm_int8_skip_modules = llm_int8_skip_modules;
  json.llm_int8_enable_fp32_cpu_offload = llm_int8_enable_fp32_cpu_offload;
  json.llm_int8_has_fp16_weight = llm_int8_has_fp16_weight;
  json.bnb_4bit_compute_dtype = llm::dtype_to_name(bnb_4bit_compute_dtype);
  json.bnb_4bit_quant_type = bnb_4bit_quant_type;
  json.bnb_4bit_use_double_quant = bnb_4bit_use_double_quant;
  json.bnb_4bit_quant_storage = llm::dtype_to_name(bnb_4bit_quant_storage);
  return json;
}

BitsAndBytesConfig BitsAndBytesConfig::from_json(const io::QuantizationConfigJson& json) {
  BitsAndBytesConfig config;
  config.load_in_8bit = json.load_in_8bit;
  config.load_in_4bit = json.load_in_4bit;
  config.llm_int8_threshold = json.llm_int8_threshold;
  config.llm_int8_skip_modules = json.llm_int8_skip_modules;
  config.llm_int8_enable_fp32_cpu_offload = json.llm_int8_enable_fp32_cpu_offload;
  config.llm_int8_has_fp16_weight = json.llm_int8_has_fp16_weight;
  config.bnb_4bit_compute_dtype = llm::dtype_from_name(json.bnb_4bit_compute_dtype);
  config.bnb_4bit_quant_type = json.bnb_4bit_quant_type;
  config.bnb_4bit_use_double_quant = json.bnb_4bit_use_double_quant;
  config.bnb_4bit_quant_storage = llm::dtype_from_name(json.bnb_4bit_quant_storage);
  return config;
}

namespace llm {

c10::ScalarType dtype_from_name(const std::string& name) {
  constexpr std::string_view kTorch = "torch.";
  const bool prefixed = name.compare(0, kTorch.size(), kTorch) == 0;
  return ops::parse_dtype(prefixed ? name.substr(kTorch.size()) : name, "from_pretrained", "dtype");
}

std::string dtype_to_name(c10::ScalarType dtype) { return ops::dtype_name(dtype); }

int64_t parse_bytes(const std::string& text) {
  static const std::map<std::string, double> kUnits = {
      {"", 1.0},    {"B", 1.0},      {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
      {"TB", 1e12}, {"KIB", 0x1p10}, {"MIB", 0x1p20}, {"GIB", 0x1p30}, {"TIB", 0x1p40}};
  size_t end = 0;
  double value = -1.0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  std::string unit;
  for (const char c : text.substr(end)) {
    if (c != ' ') unit += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  const auto found = kUnits.find(unit);
  const double bytes = found != kUnits.end() ? value * found->second : -1.0;
  LOWBIT_CHECK(end > 0 && bytes >= 0.0 && bytes < 0x1p62, "from_pretrained", "max_memory",
               "a size such as 6GiB or 500MB", text);
  return static_cast<int64_t>(bytes);
}

}  // namespace llm
}  // namespace lowbit
