#include "io/quantization_config.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "io/quote.h"

namespace lowbit::io {

namespace {

void read_name(const JsonFields& fields, const char* key,
               std::initializer_list<std::string_view> names, std::string& value) {
  const std::optional<std::string> text = fields.string(key);
  if (!text) return;
  if (std::find(names.begin(), names.end(), *text) == names.end()) {
    std::string expected = "one of";
    for (const std::string_view name : names) expected.append(" ").append(name);
    fields.fail(key, expected, quote(*text));
  }
  value = *text;
}

}  // namespace

QuantizationConfigJson parse_quantization_config(const JsonFields& fields) {
  // Files of the first versions have no quant_method: the load_in_* fields decide.
  std::string method = "bitsandbytes";
  read_name(fields, "quant_method", {"bitsandbytes"}, method);
  QuantizationConfigJson config;
  config.load_in_8bit = fields.boolean("load_in_8bit").value_or(config.load_in_8bit);
  config.load_in_4bit = fields.boolean("load_in_4bit").value_or(config.load_in_4bit);
  if (config.load_in_8bit == config.load_in_4bit) {
    fields.fail("load_in_4bit", "exactly one of load_in_4bit and load_in_8bit to be true",
                config.load_in_4bit ? "both" : "neither");
  }
  config.llm_int8_threshold =
      fields.number("llm_int8_threshold", 0, 1e30).value_or(config.llm_int8_threshold);
  config.llm_int8_skip_modules = fields.strings("llm_int8_skip_modules");
  config.llm_int8_enable_fp32_cpu_offload =
      fields.boolean("llm_int8_enable_fp32_cpu_offload").value_or(false);
  config.llm_int8_has_fp16_weight = fields.boolean("llm_int8_has_fp16_weight").value_or(false);
  read_name(fields, "bnb_4bit_compute_dtype", {"float32", "float16", "bfloat16", "float64"},
            config.bnb_4bit_compute_dtype);
  read_name(fields, "bnb_4bit_quant_type", {"fp4", "nf4"}, config.bnb_4bit_quant_type);
  config.bnb_4bit_use_double_quant = fields.boolean("bnb_4bit_use_double_quant").value_or(false);
  read_name(fields, "bnb_4bit_quant_storage",
            {"float16", "float32", "int8", "uint8", "float64", "bfloat16"},
            config.bnb_4bit_quant_storage);
  return config;
}

nlohmann::json quantization_config_to_json(const QuantizationConfigJson& config) {
  nlohmann::json json = {
      {"_load_in_4bit", config.load_in_4bit},
      {"_load_in_8bit", config.load_in_8bit},
      {"bnb_4bit_compute_dtype", config.bnb_4bit_compute_dtype},
      {"bnb_4bit_quant_storage", config.bnb_4bit_quant_storage},
      {"bnb_4bit_quant_type", config.bnb_4bit_quant_type},
      {"bnb_4bit_use_double_quant", config.bnb_4bit_use_double_quant},
      {"llm_int8_enable_fp32_cpu_offload", config.llm_int8_enable_fp32_cpu_offload},
      {"llm_int8_has_fp16_weight", config.llm_int8_has_fp16_weight},
      {"llm_int8_skip_modules", nullptr},
      {"llm_int8_threshold", config.llm_int8_threshold},
      {"load_in_4bit", config.load_in_4bit},
      {"load_in_8bit", config.load_in_8bit},
      {"quant_method", "bitsandbytes"},
  };
  if (config.llm_int8_skip_modules) json["llm_int8_skip_modules"] = *config.llm_int8_skip_modules;
  return json;
}

}  // namespace lowbit::io
