// Any text is a valid config.json (or generation_config.json) or a FormatError; a valid one
// survives a rewrite.
#include <cstdint>
#include <optional>
#include <string>

#include "fuzz/require.h"
#include "lowbit/error.h"
#include "lowbit/io/hf_config.h"

using lowbit::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowbit::io;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    parse_generation_config(text, "fuzz");
  } catch (const lowbit::FormatError&) {
  }
  std::optional<ModelConfig> config;
  try {
    config = parse_model_config(text, "fuzz");
  } catch (const lowbit::FormatError&) {
    return 0;
  }
  require(config->num_attention_heads % config->num_key_value_heads == 0, "whole groups");
  require(config->hidden_size > 0 && config->head_dim > 0, "sizes");
  const std::string written = model_config_to_json(*config);
  const ModelConfig again = parse_model_config(written, "written");
  require(again.quantization == config->quantization, "quantization after a rewrite");
  require(again.rope == config->rope, "rope after a rewrite");
  require(model_config_to_json(again) == written, "a rewrite of a rewrite");

  // Changed fields must arrive too, whatever else the file holds.
  config->rope.theta = 12345.5;
  config->dtype = "float16";
  config->eos_token_ids = {1, 2};
  config->quantization.reset();
  const ModelConfig changed = parse_model_config(model_config_to_json(*config), "changed");
  require(changed.rope == config->rope, "rope after a change");
  require(changed.dtype == "float16" && changed.eos_token_ids == config->eos_token_ids,
          "fields after a change");
  require(!changed.quantization, "quantization removed");
  return 0;
}
