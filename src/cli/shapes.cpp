#include "cli/shapes.h"

#include <map>

namespace lowbit::cli {
namespace {

struct Shape {
  int64_t hidden, inner, layers, heads, kv_heads, head_dim, vocab;
  bool tied;
};

const std::map<std::string, Shape>& shapes() {
  static const std::map<std::string, Shape> kShapes = {
      {"smollm2-135m", {576, 1536, 30, 9, 3, 64, 49152, true}},
      {"llama-1b", {2048, 8192, 16, 32, 8, 64, 128256, true}},
      {"llama-3b", {3072, 8192, 28, 24, 8, 128, 128256, true}},
      {"llama-8b", {4096, 14336, 32, 32, 8, 128, 128256, false}},
      {"mistral-7b", {4096, 14336, 32, 32, 8, 128, 32768, false}}};
  return kShapes;
}

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const auto& [name, shape] : shapes()) names.push_back(name);
  return names;
}

io::ModelConfig shape_config(const std::string& name) {
  const Shape& shape = shapes().at(name);
  io::ModelConfig config;
  config.model_type = "llama";
  config.architectures = {"LlamaForCausalLM"};
  config.vocab_size = shape.vocab;
  config.hidden_size = shape.hidden;
  config.intermediate_size = shape.inner;
  config.num_hidden_layers = shape.layers;
  config.num_attention_heads = shape.heads;
  config.num_key_value_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.max_position_embeddings = 8192;
  config.rms_norm_eps = 1e-5;
  config.tie_word_embeddings = shape.tied;
  config.rope.theta = 500000.0;
  config.rope.original_max_position_embeddings = config.max_position_embeddings;
  config.dtype = "bfloat16";
  return config;
}

}  // namespace lowbit::cli
