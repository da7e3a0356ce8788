#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>

#include "io/model_config.h"
#include "io/quote.h"
#include "lowbit/error.h"
#include "lowbit/io/gguf.h"
#include "lowbit/io/hf_config.h"

namespace lowbit::io {

namespace {

/// The decimal number that was meant: 1e-5, where the file's float32 is 9.99999975e-06.
double shortest_decimal(double value) {
  char text[64];
  const auto written = std::to_chars(text, text + sizeof(text), static_cast<float>(value));
  double decimal = value;
  std::from_chars(text, written.ptr, decimal);
  return decimal;
}

class Metadata {
 public:
  Metadata(const GgufFile& file, std::string architecture)
      : file_(file), prefix_(std::move(architecture) + ".") {}

  bool contains(const char* key) const { return file_.contains(prefix_ + key); }

  int64_t integer(const std::string& key, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = {}) const {
    const std::string name = prefix_ + key;
    const int64_t value = fallback ? file_.get_int(name, *fallback) : file_.get_int(name);
    if (value < low || value > high)
      fail(key, "from " + std::to_string(low) + " to " + std::to_string(high),
           std::to_string(value));
    return value;
  }

  double number(const char* key, double low, double high,
                std::optional<double> fallback = {}) const {
    const std::string name = prefix_ + key;
    const double value = fallback ? file_.get_float(name, *fallback) : file_.get_float(name);
    if (!(value >= low && value <= high))
      fail(key, "from " + std::to_string(low) + " to " + std::to_string(high),
           std::to_string(value));
    return shortest_decimal(value);
  }

  std::string text(const char* key, const char* fallback) const {
    return file_.get_string(prefix_ + key, fallback);
  }

  [[noreturn]] void fail(const std::string& key, const std::string& expected,
                         const std::string& found) const {
    throw FormatError(file_.path(), "metadata " + quote(prefix_ + key), expected, found);
  }

 private:
  const GgufFile& file_;
  const std::string prefix_;
};

/// Rotary factors of Llama 3.1 and later, one for each pair of dimensions: frequencies are divided
/// by them.
std::vector<float> llama3_factors(const RopeConfig& rope, int64_t head_dim) {
  std::vector<float> factors;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double frequency =
        std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    // Turns within the original context: many keep their frequency, few are stretched, those
    // between are blended.
    const double turns = static_cast<double>(rope.original_max_position_embeddings) * frequency /
                         (2 * std::numbers::pi);
    const double smooth = std::clamp(
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
    factors.push_back(static_cast<float>(1.0 / ((1 - smooth) / rope.factor + smooth)));
  }
  return factors;
}

/// A GGUF file has the factors, not the parameters they came from. All published models share all
/// but `factor`.
void recognize_llama3(const GgufFile& file, const GgufTensor& tensor, int64_t head_dim,
                      RopeConfig& rope) {
  std::vector<float> factors(static_cast<size_t>(tensor.numel));
  if (tensor.numel == head_dim / 2) {
    file.dequantize(tensor, 0, tensor.numel, factors.data());
    RopeConfig candidate = rope;
    candidate.type = "llama3";
    candidate.factor = *std::max_element(factors.begin(), factors.end());
    candidate.low_freq_factor = 1.0;
    candidate.high_freq_factor = 4.0;
    candidate.original_max_position_embeddings = 8192;
    const std::vector<float> expected = llama3_factors(candidate, head_dim);
    const bool same =
        std::equal(factors.begin(), factors.end(), expected.begin(),
                   [](float a, float b) { return std::abs(a - b) <= 1e-3F * std::abs(b); });
    if (same) {
      rope = candidate;
      return;
    }
  }
  throw FormatError(file.path(), "tensor `rope_freqs.weight`",
                    "the rotary factors of llama3 scaling", "others");
}

RopeConfig read_rope(const GgufFile& file, const Metadata& metadata, const ModelConfig& config) {
  RopeConfig rope;
  rope.theta = metadata.number("rope.freq_base", 1e-30, kMaxTheta, rope.theta);
  const std::string type = metadata.text("rope.scaling.type", "none");
  if (type != "none" && type != "linear" && type != "yarn" && type != "longrope") {
    metadata.fail("rope.scaling.type", "none, linear, yarn or longrope", quote(type));
  }
  rope.type = type == "none" ? "default" : type;
  if (rope.type != "default")
    rope.factor = metadata.number("rope.scaling.factor", 1e-30, kMaxTheta, 1.0);
  rope.original_max_position_embeddings = metadata.integer(
      "rope.scaling.original_context_length", 1, kMaxPositions, config.max_position_embeddings);
  const int64_t rotary = metadata.integer("rope.dimension_count", 1, kMaxWidth, config.head_dim);
  if (rotary != config.head_dim)
    metadata.fail("rope.dimension_count", "the head size " + std::to_string(config.head_dim),
                  std::to_string(rotary));
  if (const GgufTensor* factors = file.find("rope_freqs.weight"))
    recognize_llama3(file, *factors, config.head_dim, rope);
  return rope;
}

std::optional<int64_t> token_id(const GgufFile& file, const char* key, int64_t vocab_size) {
  if (!file.contains(key)) return std::nullopt;
  const int64_t id = file.get_int(key);
  if (id < 0 || id >= vocab_size) {
    throw FormatError(file.path(), "metadata " + quote(key),
                      "an id below " + std::to_string(vocab_size), std::to_string(id));
  }
  return id;
}

/// Rows of the embedding; what the metadata say when there is none (a file of a vocabulary alone).
int64_t read_vocab_size(const GgufFile& file, const Metadata& metadata) {
  const GgufTensor* embedding = file.find("token_embd.weight");
  if (embedding == nullptr) return metadata.integer("vocab_size", 1, kMaxVocab);
  const int64_t rows = embedding->shape.size() == 2 ? embedding->shape[0] : 0;
  if (rows < 1 || rows > kMaxVocab) {
    throw FormatError(file.path(), "tensor `token_embd.weight`",
                      "a matrix of 1 to " + std::to_string(kMaxVocab) + " rows",
                      std::to_string(rows));
  }
  return rows;
}

}  // namespace

ModelConfig model_config_from_gguf(const GgufFile& file) {
  const std::string architecture = file.get_string("general.architecture");
  if (architecture != "llama" && architecture != "mistral") {
    throw FormatError(file.path(), "metadata `general.architecture`", "llama or mistral",
                      quote(architecture));
  }
  const Metadata metadata(file, architecture);
  if (metadata.contains("expert_count") && metadata.integer("expert_count", 0, kMaxWidth) > 0) {
    metadata.fail("expert_count", "a model without experts",
                  std::to_string(metadata.integer("expert_count", 0, kMaxWidth)));
  }
  ModelConfig config;
  config.model_type = architecture;
  config.architectures = {architecture == "llama" ? "LlamaForCausalLM" : "MistralForCausalLM"};
  config.vocab_size = read_vocab_size(file, metadata);
  config.hidden_size = metadata.integer("embedding_length", 1, kMaxWidth);
  config.intermediate_size = metadata.integer("feed_forward_length", 1, kMaxWidth);
  config.num_hidden_layers = metadata.integer("block_count", 1, kMaxLayers);
  config.num_attention_heads = metadata.integer("attention.head_count", 1, kMaxWidth);
  config.num_key_value_heads =
      metadata.integer("attention.head_count_kv", 1, kMaxWidth, config.num_attention_heads);
  if (!metadata.contains("attention.key_length") &&
      config.hidden_size % config.num_attention_heads != 0) {
    metadata.fail("attention.head_count", "a divisor of embedding_length",
                  std::to_string(config.num_attention_heads));
  }
  config.head_dim = metadata.integer("attention.key_length", 1, kMaxWidth,
                                     config.hidden_size / config.num_attention_heads);
  const int64_t value_length =
      metadata.integer("attention.value_length", 1, kMaxWidth, config.head_dim);
  if (value_length != config.head_dim)
    metadata.fail("attention.value_length", "key_length " + std::to_string(config.head_dim),
                  std::to_string(value_length));
  config.max_position_embeddings = metadata.integer("context_length", 1, kMaxPositions);
  config.rms_norm_eps = metadata.number("attention.layer_norm_rms_epsilon", 0, 1);
  if (metadata.contains("attention.sliding_window")) {
    config.sliding_window = metadata.integer("attention.sliding_window", 1, kMaxPositions);
  }
  config.tie_word_embeddings = file.find("output.weight") == nullptr;
  config.attention_bias = file.find("blk.0.attn_q.bias") != nullptr;
  config.mlp_bias = file.find("blk.0.ffn_up.bias") != nullptr;
  check_model_config(config, file.path());
  config.rope = read_rope(file, metadata, config);
  config.bos_token_id = token_id(file, "tokenizer.ggml.bos_token_id", config.vocab_size);
  config.pad_token_id = token_id(file, "tokenizer.ggml.padding_token_id", config.vocab_size);
  if (const auto eos = token_id(file, "tokenizer.ggml.eos_token_id", config.vocab_size))
    config.eos_token_ids = {*eos};
  return config;
}

}  // namespace lowbit::io
