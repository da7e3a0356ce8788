#include "lowbit/io/hf_config.h"

#include <filesystem>

#include "io/json.h"
#include "io/json_fields.h"
#include "io/model_config.h"
#include "io/quantization_config.h"
#include "io/quote.h"
#include "lowbit/error.h"
#include "lowbit/io/safetensors.h"

namespace lowbit::io {

namespace {

constexpr int64_t kMaxTokenId = kMaxVocab;
constexpr double kTiny = 1e-30;

RopeConfig parse_rope(const JsonFields& fields, int64_t max_positions) {
  RopeConfig rope;
  rope.theta = fields.number("rope_theta", kTiny, kMaxTheta).value_or(rope.theta);
  rope.original_max_position_embeddings = max_positions;
  // One dictionary with theta in it (5.x), or the scaling alone beside rope_theta (4.x).
  const char* key = fields.contains("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const std::optional<JsonFields> scaling = fields.object(key);
  for (const char* layers : {"full_attention", "sliding_attention"}) {
    if (scaling && scaling->contains(layers)) {
      fields.fail(key, "one set of rotary parameters for all layers",
                  std::string("one for ") + layers);
    }
  }
  for (const JsonFields* place : {&fields, scaling ? &*scaling : &fields}) {
    const double part = place->number("partial_rotary_factor", 0, 1).value_or(1.0);
    if (part != 1.0)
      place->fail("partial_rotary_factor", "1 (rotary embeddings of whole heads)", json_text(part));
  }
  if (!scaling) return rope;
  rope.theta = scaling->number("rope_theta", kTiny, kMaxTheta).value_or(rope.theta);
  rope.type = scaling->string("rope_type").value_or(scaling->string("type").value_or(rope.type));
  rope.factor = scaling->number("factor", kTiny, kMaxTheta).value_or(rope.factor);
  rope.low_freq_factor =
      scaling->number("low_freq_factor", kTiny, kMaxTheta).value_or(rope.low_freq_factor);
  rope.high_freq_factor =
      scaling->number("high_freq_factor", kTiny, kMaxTheta).value_or(rope.high_freq_factor);
  if (const auto original =
          scaling->integer("original_max_position_embeddings", 1, kMaxPositions)) {
    rope.original_max_position_embeddings = *original;
  }
  if (rope.type == "llama3") {
    for (const char* needed :
         {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
      if (!scaling->contains(needed))
        fields.fail(std::string(key) + "." + needed, "a number (llama3 needs it)", "no such field");
    }
    if (rope.low_freq_factor >= rope.high_freq_factor) {
      fields.fail(std::string(key) + ".low_freq_factor", "less than high_freq_factor",
                  json_text(rope.low_freq_factor));
    }
  }
  return rope;
}

/// Old files mark a missing token with -1.
std::optional<int64_t> token_id(const JsonFields& fields, const char* key) {
  const std::vector<int64_t> ids = fields.integers(key, -1, kMaxTokenId);
  if (ids.empty() || ids.front() < 0) return std::nullopt;
  return ids.front();
}

std::vector<int64_t> token_ids(const JsonFields& fields, const char* key) {
  std::vector<int64_t> ids = fields.integers(key, -1, kMaxTokenId);
  std::erase_if(ids, [](int64_t id) { return id < 0; });
  return ids;
}

std::string in_directory(const std::string& directory, const char* name) {
  return (std::filesystem::path(directory) / name).string();
}

}  // namespace

void check_model_config(const ModelConfig& config, const std::string& file) {
  const auto check = [&file](bool good, const char* field, const std::string& expected,
                             int64_t found) {
    if (!good) throw FormatError(file, quote(field), expected, std::to_string(found));
  };
  check(config.num_attention_heads % config.num_key_value_heads == 0, "num_key_value_heads",
        "a divisor of num_attention_heads (" + std::to_string(config.num_attention_heads) + ")",
        config.num_key_value_heads);
  check(config.head_dim % 2 == 0, "head_dim", "an even number (rotary pairs)", config.head_dim);
  check(config.num_attention_heads <= kMaxWidth * 16 / config.head_dim, "head_dim",
        "at most " + std::to_string(kMaxWidth * 16) + " in all heads", config.head_dim);
}

ModelConfig read_model_config(const std::string& directory) {
  const std::string path = in_directory(directory, "config.json");
  return parse_model_config(read_text_file(path), path);
}

ModelConfig parse_model_config(const std::string& text, const std::string& name) {
  const nlohmann::json json = parse_json(text, name);
  const JsonFields fields(json, name);
  ModelConfig config;
  config.json = text;
  config.model_type = fields.string("model_type").value_or("");
  if (config.model_type.empty()) fields.fail("model_type", "the name of a model family", "none");
  const bool mistral = config.model_type == "mistral";
  config.architectures = fields.strings("architectures").value_or(std::vector<std::string>{});
  config.vocab_size = fields.required_integer("vocab_size", 1, kMaxVocab);
  config.hidden_size = fields.required_integer("hidden_size", 1, kMaxWidth);
  config.intermediate_size = fields.required_integer("intermediate_size", 1, kMaxWidth);
  config.num_hidden_layers = fields.required_integer("num_hidden_layers", 1, kMaxLayers);
  config.num_attention_heads = fields.required_integer("num_attention_heads", 1, kMaxWidth);
  // The defaults are those of the family's configuration class, which leaves fields with default
  // values out.
  config.num_key_value_heads = fields.integer("num_key_value_heads", 1, kMaxWidth)
                                   .value_or(mistral ? 8 : config.num_attention_heads);
  if (const auto head_dim = fields.integer("head_dim", 1, kMaxWidth)) {
    config.head_dim = *head_dim;
  } else if (config.hidden_size % config.num_attention_heads == 0) {
    config.head_dim = config.hidden_size / config.num_attention_heads;
  } else {
    fields.fail("num_attention_heads", "a divisor of hidden_size, or a head_dim",
                std::to_string(config.num_attention_heads));
  }
  config.max_position_embeddings =
      fields.integer("max_position_embeddings", 1, kMaxPositions).value_or(mistral ? 131072 : 2048);
  config.rms_norm_eps = fields.number("rms_norm_eps", 0, 1).value_or(config.rms_norm_eps);
  config.hidden_act = fields.string("hidden_act")
                          .value_or(fields.string("hidden_activation").value_or(config.hidden_act));
  config.tie_word_embeddings =
      fields.boolean("tie_word_embeddings").value_or(config.model_type.starts_with("gemma"));
  config.attention_bias = fields.boolean("attention_bias").value_or(false);
  config.mlp_bias = fields.boolean("mlp_bias").value_or(false);
  config.sliding_window = fields.integer("sliding_window", 1, kMaxPositions);
  if (mistral && !json.contains("sliding_window")) config.sliding_window = 4096;
  if (fields.boolean("use_sliding_window") == false) config.sliding_window.reset();
  config.rope = parse_rope(fields, config.max_position_embeddings);
  config.dtype = fields.string("dtype").value_or(fields.string("torch_dtype").value_or(""));
  config.bos_token_id = token_id(fields, "bos_token_id");
  config.pad_token_id = token_id(fields, "pad_token_id");
  config.eos_token_ids = token_ids(fields, "eos_token_id");
  if (const auto quantization = fields.object("quantization_config")) {
    config.quantization = parse_quantization_config(*quantization);
  }
  check_model_config(config, name);
  return config;
}

GenerationConfigJson read_generation_config(const std::string& directory) {
  const std::string path = in_directory(directory, "generation_config.json");
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {};
  return parse_generation_config(read_text_file(path), path);
}

GenerationConfigJson parse_generation_config(const std::string& text, const std::string& name) {
  const nlohmann::json json = parse_json(text, name);
  const JsonFields fields(json, name);
  GenerationConfigJson config;
  config.temperature = fields.number("temperature", 0, 1e6);
  config.top_p = fields.number("top_p", 0, 1);
  config.min_p = fields.number("min_p", 0, 1);
  config.repetition_penalty = fields.number("repetition_penalty", kTiny, 1e6);
  config.top_k = fields.integer("top_k", 0, kMaxVocab);
  config.max_new_tokens = fields.integer("max_new_tokens", 0, kMaxPositions);
  config.do_sample = fields.boolean("do_sample");
  config.eos_token_ids = token_ids(fields, "eos_token_id");
  return config;
}

}  // namespace lowbit::io
