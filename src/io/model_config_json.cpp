#include <optional>

#include "io/json.h"
#include "io/quantization_config.h"
#include "lowbit/io/hf_config.h"

namespace lowbit::io {

namespace {

using Json = nlohmann::json;

template <typename T>
Json to_json(const T& value) {
  return value;
}

Json to_json(const std::optional<int64_t>& value) { return value ? Json(*value) : Json(nullptr); }

/// One token is a number, several are a list.
Json token_ids_to_json(const std::vector<int64_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? Json(ids.front()) : Json(ids);
}

/// Changes what differs from `before` (null: everything) in the dictionary that the file has.
void write_rope(Json& json, const RopeConfig* before, const RopeConfig& rope) {
  const bool one_dictionary =
      json.contains("rope_parameters") && json["rope_parameters"].is_object();
  Json& place = json[one_dictionary ? "rope_parameters" : "rope_scaling"];
  Json scaling = place.is_object() ? place : Json::object();
  const auto write = [&](const char* key, auto member, bool fresh) {
    if (before == nullptr ? fresh : before->*member != rope.*member) scaling[key] = rope.*member;
  };
  const bool scaled = rope.type != "default";
  write("rope_type", &RopeConfig::type, scaled);
  write("factor", &RopeConfig::factor, scaled);
  write("original_max_position_embeddings", &RopeConfig::original_max_position_embeddings,
        scaled && rope.type != "linear" && rope.type != "dynamic");
  write("low_freq_factor", &RopeConfig::low_freq_factor, rope.type == "llama3");
  write("high_freq_factor", &RopeConfig::high_freq_factor, rope.type == "llama3");
  if (before == nullptr || before->theta != rope.theta) {
    (one_dictionary || scaling.contains("rope_theta") ? scaling : json)["rope_theta"] = rope.theta;
  }
  json[one_dictionary ? "rope_parameters" : "rope_scaling"] =
      scaling.empty() ? Json(nullptr) : std::move(scaling);
}

}  // namespace

std::string model_config_to_json(const ModelConfig& config) {
  Json json = Json::object();
  std::optional<ModelConfig> before;
  if (!config.json.empty()) {
    json = parse_json(config.json, "config.json");
    before = parse_model_config(config.json, "config.json");
  }
  const auto differs = [&](auto member) { return !before || (*before).*member != config.*member; };
  const auto write = [&](const char* key, auto member) {
    if (differs(member)) json[key] = to_json(config.*member);
  };
  write("model_type", &ModelConfig::model_type);
  write("architectures", &ModelConfig::architectures);
  write("vocab_size", &ModelConfig::vocab_size);
  write("hidden_size", &ModelConfig::hidden_size);
  write("intermediate_size", &ModelConfig::intermediate_size);
  write("num_hidden_layers", &ModelConfig::num_hidden_layers);
  write("num_attention_heads", &ModelConfig::num_attention_heads);
  write("num_key_value_heads", &ModelConfig::num_key_value_heads);
  write("head_dim", &ModelConfig::head_dim);
  write("max_position_embeddings", &ModelConfig::max_position_embeddings);
  write("rms_norm_eps", &ModelConfig::rms_norm_eps);
  write(json.contains("hidden_activation") ? "hidden_activation" : "hidden_act",
        &ModelConfig::hidden_act);
  write("tie_word_embeddings", &ModelConfig::tie_word_embeddings);
  write("attention_bias", &ModelConfig::attention_bias);
  write("mlp_bias", &ModelConfig::mlp_bias);
  write("sliding_window", &ModelConfig::sliding_window);
  write("bos_token_id", &ModelConfig::bos_token_id);
  write("pad_token_id", &ModelConfig::pad_token_id);
  if (differs(&ModelConfig::eos_token_ids))
    json["eos_token_id"] = token_ids_to_json(config.eos_token_ids);
  if (differs(&ModelConfig::rope)) write_rope(json, before ? &before->rope : nullptr, config.rope);
  if (differs(&ModelConfig::dtype)) {
    const char* key = json.contains("dtype") ? "dtype" : "torch_dtype";
    json[key] = config.dtype.empty() ? Json(nullptr) : Json(config.dtype);
  }
  json.erase("quantization_config");
  if (config.quantization)
    json["quantization_config"] = quantization_config_to_json(*config.quantization);
  // ASCII with escapes, sorted, a newline at the end: the form in which the reference writes.
  return json.dump(2, ' ', true) + "\n";
}

}  // namespace lowbit::io
