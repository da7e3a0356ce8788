#include "llm/slots.h"

#include <algorithm>

namespace lowbit::llm {

std::vector<Slot> decoder_slots(const io::ModelConfig& c) {
  std::vector<Slot> slots;
  const auto linear = [&](const std::string& module, int64_t in, int64_t out, bool bias) {
    slots.push_back({module + ".weight", {out, in}, SlotKind::kLinear});
    if (bias) slots.push_back({module + ".bias", {out}, SlotKind::kBias});
  };
  const auto norm = [&](const std::string& module) {
    slots.push_back({module + ".weight", {c.hidden_size}, SlotKind::kNorm});
  };
  const int64_t query = c.num_attention_heads * c.head_dim;
  const int64_t key = c.num_key_value_heads * c.head_dim;
  slots.push_back(
      {"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}, SlotKind::kEmbedding});
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    norm(layer + ".input_layernorm");
    linear(layer + ".self_attn.q_proj", c.hidden_size, query, c.attention_bias);
    linear(layer + ".self_attn.k_proj", c.hidden_size, key, c.attention_bias);
    linear(layer + ".self_attn.v_proj", c.hidden_size, key, c.attention_bias);
    linear(layer + ".self_attn.o_proj", query, c.hidden_size, c.attention_bias);
    norm(layer + ".post_attention_layernorm");
    linear(layer + ".mlp.gate_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);
    linear(layer + ".mlp.up_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);
    linear(layer + ".mlp.down_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
  }
  norm("model.norm");
  if (!c.tie_word_embeddings) {
    slots.push_back({"lm_head.weight", {c.vocab_size, c.hidden_size}, SlotKind::kHead});
  }
  return slots;
}

bool is_skipped(const std::string& module, const std::vector<std::string>& skip) {
  // Dots at both ends make a search for whole components a search for text.
  const std::string path = "." + module + ".";
  return std::any_of(skip.begin(), skip.end(), [&](const std::string& key) {
    return !key.empty() && path.find("." + key + ".") != std::string::npos;
  });
}

Treatment plan_treatment(const Slot& slot, const FromPretrainedOptions& options) {
  const bool table = slot.kind == SlotKind::kEmbedding || slot.kind == SlotKind::kHead;
  if (options.quantization_config &&
      (slot.kind == SlotKind::kLinear || slot.kind == SlotKind::kHead)) {
    static const std::vector<std::string> kDefaultSkip = {"lm_head"};
    const BitsAndBytesConfig& config = *options.quantization_config;
    if (!is_skipped(slot.module(), config.llm_int8_skip_modules.value_or(kDefaultSkip))) {
      return config.load_in_4bit ? Treatment::k4bit : Treatment::k8bit;
    }
  }
  return table && options.quantize_embeddings ? Treatment::k8bitWeightOnly : Treatment::kFloat;
}

}  // namespace lowbit::llm
