// config.json and generation_config.json of a Hugging Face model directory, and the same facts read
// from a GGUF file.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace lowbit::io {

class GgufFile;

/// "quantization_config" of config.json: the fields of Transformers' BitsAndBytesConfig, one for
/// one, same defaults.
struct QuantizationConfigJson {
  bool load_in_8bit = false;
  bool load_in_4bit = false;
  double llm_int8_threshold = 6.0;
  std::optional<std::vector<std::string>> llm_int8_skip_modules = std::nullopt;
  bool llm_int8_enable_fp32_cpu_offload = false;
  bool llm_int8_has_fp16_weight = false;
  std::string bnb_4bit_compute_dtype = "float32";
  std::string bnb_4bit_quant_type = "fp4";
  bool bnb_4bit_use_double_quant = false;
  std::string bnb_4bit_quant_storage = "uint8";

  bool operator==(const QuantizationConfigJson&) const = default;
};

/// rope_parameters (Transformers 5), or rope_theta and rope_scaling (4). type as the file writes
/// it: "default", "linear", "dynamic", "llama3", "yarn", ...
struct RopeConfig {
  std::string type = "default";
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  /// max_position_embeddings when the file does not say.
  int64_t original_max_position_embeddings = 0;

  bool operator==(const RopeConfig&) const = default;
};

/// What a decoder needs. Every number is validated (positive, divisible where it must be, below a
/// sane limit).
struct ModelConfig {
  std::string model_type;                  ///< "llama", "mistral", ...
  std::vector<std::string> architectures;  ///< {"LlamaForCausalLM"}
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  std::string hidden_act = "silu";
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  std::optional<int64_t> sliding_window;
  RopeConfig rope;
  std::string dtype;  ///< "bfloat16", ...; empty when the file does not say
  std::optional<int64_t> bos_token_id, pad_token_id;
  std::vector<int64_t> eos_token_ids;
  std::optional<QuantizationConfigJson> quantization;
  std::string json;  ///< the original text, so that saving keeps fields that lowbit does not know
};

/// Throws FormatError naming the JSON path, or IoError.
ModelConfig read_model_config(const std::string& directory);
/// `name` stands for the file in errors.
ModelConfig parse_model_config(const std::string& json, const std::string& name);
/// From a GGUF file's metadata (architectures llama, mistral). Llama 3's rotary factors, which such
/// a file holds as the tensor rope_freqs.weight, become RopeConfig of type "llama3"; other factors
/// are a FormatError. `json` stays empty.
ModelConfig model_config_from_gguf(const GgufFile& file);
/// config.json text: keys sorted, 2-space indent. Fields of `config.json` that lowbit does not know
/// are kept, known ones are written where they differ from it (in its spelling);
/// quantization_config is written in full (13 fields) when set and removed when not. Without
/// `config.json` (GGUF) a whole file is made, in the spelling of Transformers 4, which 5 reads too.
std::string model_config_to_json(const ModelConfig& config);

/// Defaults for generate(), from generation_config.json; empty optionals when the file or field is
/// missing.
struct GenerationConfigJson {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k, max_new_tokens;
  std::optional<bool> do_sample;
  std::vector<int64_t> eos_token_ids;
};
/// Throws FormatError naming the JSON path (a value out of its range), or IoError.
GenerationConfigJson read_generation_config(const std::string& directory);
GenerationConfigJson parse_generation_config(const std::string& json, const std::string& name);

}  // namespace lowbit::io
