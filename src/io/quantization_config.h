// "quantization_config" of config.json, both ways.
#pragma once

#include <nlohmann/json.hpp>

#include "io/json_fields.h"
#include "lowbit/io/hf_config.h"

namespace lowbit::io {

/// Throws FormatError; unknown fields are passed over.
QuantizationConfigJson parse_quantization_config(const JsonFields& fields);
/// All 13 fields, as the reference writes them.
nlohmann::json quantization_config_to_json(const QuantizationConfigJson& config);

}  // namespace lowbit::io
